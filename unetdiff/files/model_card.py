"""The model card of a directory: README.md with the Hub's metadata, metrics with their split and n, and limits."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unetdiff.files.writing import write_file, write_text

CARD, LIBRARY = "README.md", "unetdiff"
IMAGE_SEGMENTATION, TEXT_TO_IMAGE = "image-segmentation", "text-to-image"
UNCONDITIONAL = "unconditional-image-generation"
LOADERS = {
    "SegmentationPipeline": 'masks = SegmentationPipeline.from_pretrained("{name}")("image.jpg")',
    "GenerationPipeline": 'pipeline = GenerationPipeline.from_pretrained("{name}")',
    "UNet": 'unet = UNet.from_pretrained("{name}")',
}
"""Class -> how a model is loaded by it."""
CALLS = {
    "none": "images = pipeline(num_inference_steps=25).images",
    "class": "images = pipeline(class_labels=0, num_inference_steps=25).images",
    "text": 'images = pipeline(prompt="...", num_inference_steps=25).images',
}
"""Condition -> how a denoiser is sampled; others need an image."""


@dataclass
class CardMetric:
    """A metric, and what it was measured on."""

    key: str
    """ "segmentation/mean_iou"."""
    value: float
    split: str
    images: int | None
    """Number of images; None: unknown."""

    @property
    def name(self) -> str:
        return self.key.partition("/")[2].replace("_", " ")


@dataclass
class Card:
    """What a model card says.

    Raises:
        ValueError: by huggingface_hub, of metadata that the Hub would refuse.
    """

    name: str
    """OWNER/NAME on the Hub, or the directory's."""
    heads: Sequence[str]
    """segmentation, diffusion."""
    loaders: Sequence[str] = ("UNet",)
    """Names in `LOADERS`."""
    about: str = "A U-Net"
    """The first sentence, without "trained with"."""
    condition: str = "none"
    """Of the denoiser, as `diffusion.condition`."""
    dataset: str | None = None
    """Its name in words."""
    dataset_id: str | None = None
    """OWNER/NAME, if it is one of the Hub."""
    metrics: Sequence[CardMetric] = ()
    images: Sequence[str] = ()
    """Names of image files next to the card."""
    command: str | None = None
    details: dict[str, str] = field(default_factory=dict)
    """Rows of the table on training."""
    limits: Sequence[str] = ()

    @property
    def pipeline_tag(self) -> str:
        """The Hub's name of the task; a model with both heads is listed as a segmenter."""
        if "segmentation" in self.heads:
            return IMAGE_SEGMENTATION
        return self._generation_tag

    def metadata(self) -> str:
        """The YAML block, made and checked by huggingface_hub; without a license, which the author of a model sets."""
        from huggingface_hub import EvalResult, ModelCardData

        data = self.dataset or "unknown"
        results = [
            EvalResult(
                task_type=IMAGE_SEGMENTATION if one.key.startswith("segmentation") else self._generation_tag,
                dataset_type=self.dataset_id or data,
                dataset_name=data,
                dataset_split=one.split,
                dataset_args=None if one.images is None else {"num_images": one.images},
                metric_type=one.key.partition("/")[2],
                metric_name=one.name,
                metric_value=one.value,
            )
            for one in self.metrics
        ]
        card = ModelCardData(
            library_name=LIBRARY,
            pipeline_tag=self.pipeline_tag,
            tags=["pytorch", "u-net", *self.heads],
            datasets=None if self.dataset_id is None else [self.dataset_id],
            metrics=list(dict.fromkeys(one.key.partition("/")[2] for one in self.metrics)) or None,
            model_name=self.name.rpartition("/")[2],
            eval_results=results or None,
        )
        return card.to_yaml()

    @property
    def _generation_tag(self) -> str:
        return TEXT_TO_IMAGE if self.condition == "text" else UNCONDITIONAL

    def text(self) -> str:
        """The whole README.md."""
        import unetdiff

        data = f" on {self.dataset}" if self.dataset else ""
        calls = [LOADERS[loader].format(name=self.name) for loader in self.loaders]
        if "GenerationPipeline" in self.loaders and self.condition in CALLS:
            calls.append(CALLS[self.condition])
        parts = [
            f"---\n{self.metadata().strip()}\n---",
            f"# {self.name}",
            f"{self.about}, trained with {LIBRARY} {unetdiff.__version__}{data}.",
            *(f"![{Path(name).stem}]({name})" for name in self.images),
            "## Use",
            "\n".join([f"```python\nfrom unetdiff import {', '.join(self.loaders)}\n", *calls, "```"]),
        ]
        if self.metrics:
            rows = [
                f"| {one.key} | {one.value:.4g} | {one.split} | {'unknown' if one.images is None else one.images} |"
                for one in self.metrics
            ]
            parts += ["## Metrics", "\n".join(["| metric | value | split | images |", "|---|---|---|---|", *rows])]
        if self.command or self.details:
            parts.append("## Training")
        if self.command:
            parts.append(f"```bash\n{self.command}\n```")
        if self.details:
            rows = [f"| {key} | {value} |" for key, value in self.details.items()]
            parts.append("\n".join(["| | |", "|---|---|", *rows]))
        if self.limits:
            parts += ["## Limits", "\n".join(f"- {limit}" for limit in self.limits)]
        return "\n\n".join(parts) + "\n"

    def write(self, directory: Path) -> None:
        """Write README.md into a directory."""
        write_text(directory / CARD, self.text())


def copy_image(source: Path, target: Path) -> None:
    """Copy an image next to a card, atomically."""
    write_file(target, lambda aside: shutil.copyfile(source, aside))
