"""The diffusion head's side: objectives, guidance, the sampling pipeline, and images of what it draws.

Import from the modules: `objectives` and `guidance` are pure functions, `pipeline` holds `GenerationPipeline`,
`images` draws. How samples are judged is in `unetdiff.evaluation`.
"""
