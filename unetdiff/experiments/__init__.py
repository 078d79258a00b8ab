"""Experiments on what the segmentation head and the diffusion head share: `unetdiff experiment NAME`.

Each experiment is a module with

- `add_arguments(parser)`: its options, whose defaults take minutes on two cores;
- `run(args, overrides, output, command) -> Record`: trains what is missing under `output`, evaluates, and returns a
  `Record` (`unetdiff.reports.record`) for `unetdiff compare --experiments`. Trained runs and cached results are reused,
  so a second call is quick and an interrupted one resumes;
- a docstring with the question, the paper and the method.

The record is assembled in `<name>_report`.
"""

from __future__ import annotations

EXPERIMENTS: dict[str, tuple[str, str]] = {
    "budget": (
        "unetdiff.experiments.budget",
        "joint versus separate training of both heads, at equal optimizer steps",
    ),
    "pretraining": (
        "unetdiff.experiments.pretraining",
        "label efficiency of a segmenter initialized from a denoiser",
    ),
    "probe": ("unetdiff.experiments.probe", "linear probes of frozen features, by block and timestep"),
    "noise": (
        "unetdiff.experiments.noise",
        "noise robustness of segmenters, with and without timestep conditioning",
    ),
    "similarity": ("unetdiff.experiments.similarity", "layer-wise linear CKA between networks"),
    "agreement": (
        "unetdiff.experiments.agreement",
        "accuracy of a segmenter on conditional samples",
    ),
    "loss_guidance": (
        "unetdiff.experiments.loss_guidance",
        "layout guidance of a denoiser by the gradient of a segmenter",
    ),
    "mask_diffusion": (
        "unetdiff.experiments.mask_diffusion",
        "discriminative head versus mask-generating denoiser for segmentation",
    ),
    "synthesis": (
        "unetdiff.experiments.synthesis",
        "synthetic training images for a segmenter with few labels",
    ),
}
"""Name -> (module, summary); the module is imported when the experiment runs."""
