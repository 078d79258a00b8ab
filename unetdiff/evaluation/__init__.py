"""Evaluation of a trained model: segmentation metrics, and the quality, diversity and likelihood of a denoiser.

`evaluate` is the entry point of `unetdiff evaluate`; `load_run` opens a run with its data, `sampling` draws from it.
For a denoiser (`denoiser`, which sees it as the functions of `types`): `features` are the feature networks,
`feature_extractors` applies them to samples, `reference` caches the features of real images, `distances` has Fréchet
and kernel distance, precision and recall, `classifier` measures class consistency, `layout_consistency` layout
consistency, `memorization` compares samples with their nearest training images, `likelihood` gives bits per dimension
and `sweep` tries sampler settings. `robustness` measures segmenters on noisy images. Import from the modules.
"""
