"""What steps, sampler and guidance cost and give: one table over all of them."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from unetdiff.evaluation.classifier import Judge, share_right
from unetdiff.evaluation.distances import frechet_distance
from unetdiff.evaluation.features import FeatureNetwork
from unetdiff.evaluation.reference import Reference
from unetdiff.evaluation.text_report import sweep_rows
from unetdiff.evaluation.types import SamplingConfig
from unetdiff.text import markdown

Draw = Callable[[int, SamplingConfig], tuple[Tensor, Tensor | None]]
"""(number, setting) -> uint8 images (N, 3, H, W) and the classes (N,) that they were asked for, or None."""


@dataclass(frozen=True)
class Cell:
    """One setting, and what it gave."""

    steps: int
    scheduler: str
    guidance: float
    seconds_per_image: float
    """Of drawing alone."""
    frechet: float | None
    """Fréchet distance; None: there is no feature network."""
    class_consistency: float | None
    """Share taken for the class asked for; None: there are no classes."""


@dataclass(frozen=True)
class Sweep:
    """Every cell, and what all of them share."""

    cells: list[Cell]
    n: int
    """Samples of each cell."""
    seed: int
    """Of the noise, the same for every cell."""
    distance: str | None
    """What the distance is called."""
    reference: str | None
    """Set and split of the real images, and how many."""

    def figures(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    def write(self, folder: Path) -> list[Path]:
        """sweep.json, sweep.csv and sweep.md."""
        figures = self.figures()
        paths = [folder / f"sweep.{kind}" for kind in ("json", "csv", "md")]
        paths[0].write_text(json.dumps(figures, indent=1) + "\n")
        with paths[1].open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(figures["cells"][0]))
            writer.writeheader()
            writer.writerows(figures["cells"])
        paths[2].write_text("\n".join(markdown(sweep_rows(figures))) + "\n", encoding="utf-8")
        return paths


def sweep(
    draw: Draw,
    steps: Sequence[int],
    schedulers: Sequence[str],
    guidance: Sequence[float],
    n: int,
    seed: int = 0,
    network: FeatureNetwork | None = None,
    real: Reference | None = None,
    classifier: Judge | None = None,
) -> Sweep:
    """Draw `n` images with every setting, from the same noise, and judge them.

    Two images are drawn and thrown away first, so that the first setting does not pay for what torch sets up once.

    Args:
        draw: the sampler.
        steps: denoising steps to try.
        schedulers: samplers to try, by name.
        guidance: guidance scales to try.
        n: images of each setting; held are those of one.
        seed: of the noise.
        network: for the Fréchet distance; None: none.
        real: what the distance is taken to, in that network's features.
        classifier: for class consistency; None: none.
    """
    settings = [SamplingConfig(s, g, seed, name) for name, s, g in product(schedulers, steps, guidance)]
    draw(min(n, 2), settings[0])
    cells = []
    for setting in tqdm(settings, desc="settings", unit="setting", disable=None):
        img2img_timesteps = time.perf_counter()
        images, labels = draw(n, setting)
        seconds = (time.perf_counter() - img2img_timesteps) / n
        frechet = consistency = None
        if network is not None and real is not None:
            frechet = frechet_distance(real.gaussian, network(images))
        if classifier is not None and labels is not None:
            consistency = share_right(classifier.predict(images), labels)
        assert setting.scheduler is not None
        cells.append(Cell(setting.steps, setting.scheduler, setting.guidance_scale, seconds, frechet, consistency))
    known = network is not None and real is not None
    return Sweep(
        cells,
        n,
        seed,
        network.frechet if known and network else None,
        f"{real.name}, {len(real.features)} images" if known and real else None,
    )
