"""What the two heads share, asked one question at a time: `unetdiff experiment NAME`.

Each experiment is a module that leaves a `Record` (record.py), which `unetdiff compare --with` shows. It has:

- `add_arguments(parser)`: its options, with defaults that take minutes on two cores;
- `run(given, overrides, output, command) -> Record`: everything that it trains lies under `output` and is kept, so that
  a second call is quick and a call after a kill goes on;
- its docstring: the question, the paper, the method.
"""

from __future__ import annotations

EXPERIMENTS: dict[str, tuple[str, str]] = {
    "mask_diffusion": (
        "unetdiff.experiments.mask_diffusion",
        "is a mask better labelled by a head, or drawn by a denoiser that is told the picture",
    ),
    "synthesis": (
        "unetdiff.experiments.synthesis",
        "do synthesised pictures with their masks help a segmenter of few labels",
    ),
}
"""Name -> (module, what it asks); imported when called."""
