"""Diffusion: objectives, noise, guidance, the denoising loop, the generation pipeline, and figures of samples.

Import from the modules. `objectives`, `noise` and `guidance` are pure functions, `denoising` is the sampling loop,
`pipeline` holds `GenerationPipeline`. Samples are evaluated in `unetdiff.evaluation`.
"""
