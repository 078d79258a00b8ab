"""What the two heads share, asked one question at a time: `unetdiff experiment NAME`.

Each experiment is a module that leaves a `Record` (record.py), which `unetdiff compare --with` shows. It has:

- `add_arguments(parser)`: its options, with defaults that take minutes on two cores;
- `run(args, overrides, output, command) -> Record`: everything that it trains lies under `output` and is kept, so that
  a second call is quick and a call after a kill goes on;
- its docstring: the question, the paper, the method.
"""

from __future__ import annotations

EXPERIMENTS: dict[str, tuple[str, str]] = {
    "budget": (
        "unetdiff.experiments.budget",
        "one backbone trained for one budget as segmenter, as denoiser and as both",
    ),
    "pretraining": (
        "unetdiff.experiments.pretraining",
        "whether a segmenter of few labels gains from a denoiser's start",
    ),
    "probe": ("unetdiff.experiments.probe", "what a linear probe finds in each block at each timestep"),
    "noise": ("unetdiff.experiments.noise", "how well a segmenter sees through noise, told how much there is or not"),
    "similarity": ("unetdiff.experiments.similarity", "how alike two networks are, layer by layer (linear CKA)"),
    "agreement": ("unetdiff.experiments.agreement", "whether a segmentation head sees what samples were asked for"),
    "loss_guidance": (
        "unetdiff.experiments.loss_guidance",
        "layout guidance of a denoiser by a segmentation head",
    ),
    "mask_diffusion": (
        "unetdiff.experiments.mask_diffusion",
        "is a mask better labelled by a head, or drawn by a denoiser that is told the image",
    ),
    "synthesis": (
        "unetdiff.experiments.synthesis",
        "do synthesised images with their masks help a segmenter of few labels",
    ),
}
"""Name -> (module, what it asks); imported when called."""
