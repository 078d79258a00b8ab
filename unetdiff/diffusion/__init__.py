"""The diffusion head's side: objectives, guidance, the sampling pipeline, and how samples are judged.

Import from the modules: `objectives` and `guidance` are pure functions, `pipeline` holds `GenerationPipeline`,
`pictures` draws, `judge` classifies.
"""
