"""Figures of samples: labeled grids, and trajectories from noise to image; and statistics of their colors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont

from unetdiff.data.transforms import to_model_range
from unetdiff.diffusion.trajectory import Trajectory
from unetdiff.errors import UserError
from unetdiff.files.images import save_image

PAPER, INK, FAINT = "#ffffff", "#1f2933", "#7b8794"
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
"""matplotlib's own, so that an image looks the same everywhere."""

ImageBatch = torch.Tensor | Sequence[Image.Image]


def grid(
    images: ImageBatch,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    title: str | None = None,
    cell: int = 64,
) -> Image.Image:
    """A grid of images with labeled rows and columns.

    Args:
        images: (N, 3, H, W) uint8, or float in [0, 1], or N PIL images; row by row, the last row may be short.
        rows: a label for each row; None: no labels, and without columns about as many rows as columns.
        columns: a label for each column.
        title: a line above.
        cell: smallest side of a cell in pixels; smaller images are enlarged by whole pixels.

    Raises:
        UserError: no images, or another number of labels than of rows.
    """
    tiles = [_enlarged(image, cell) for image in _as_pil(images)]
    count = len(tiles)
    if not count:
        raise UserError("grid: images: must not be empty.")
    if columns is not None:
        across = len(columns)
    elif rows is not None:
        across = -(-count // len(rows))
    else:
        across = max(1, round(count**0.5))
    down = -(-count // across)
    if rows is not None and len(rows) != down:
        raise UserError(f"grid: rows: must be {down} labels for {count} images in {across} columns (got {len(rows)}).")

    width, height = tiles[0].size
    size = max(12, min(18, height // 4))
    font, small, large = _font(size), _font(max(11, size - 3)), _font(size + 3)
    gap = max(2, width // 24)
    margin = 2 * gap + 8
    left = margin + (max(_extent(font, label) for label in rows) + 12 if rows else 0)
    top = margin + (size + 16 if title else 0) + (size + 8 if columns else 0)
    right_edge = left + across * (width + gap) - gap + margin
    if title:
        right_edge = max(right_edge, 2 * margin + _extent(large, title))
    canvas = Image.new("RGB", (right_edge, top + down * (height + gap) - gap + margin), PAPER)
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((margin, margin), title, INK, large, anchor="lt")
    for column, label in enumerate(columns or []):
        draw.text((left + column * (width + gap) + width // 2, top - 9), label, FAINT, small, anchor="ms")
    for row, label in enumerate(rows or []):
        draw.text((left - 12, top + row * (height + gap) + height // 2), label, INK, font, anchor="rm")
    for index, image in enumerate(tiles):
        row, column = divmod(index, across)
        canvas.paste(image, (left + column * (width + gap), top + row * (height + gap)))
    return canvas


def table(samples: ImageBatch, conditions: torch.Tensor, truth: torch.Tensor | None = None) -> Image.Image:
    """One row per layout or condition image: the condition, its samples, and the real image.

    Args:
        samples: row by row, as many for each.
        conditions: (rows, 3, H, W) in [0, 1].
        truth: the same, or None.
    """
    rows = len(conditions)
    across = len(samples) // rows
    sampled, first = _as_pil(samples), _as_pil(conditions)
    last = [] if truth is None else _as_pil(truth)
    images: list[Image.Image] = []
    for row in range(rows):
        of_row = sampled[row * across : (row + 1) * across]
        size = of_row[0].size
        images += [first[row].resize(size, Image.Resampling.NEAREST), *of_row]
        images += [image.resize(size) for image in last[row : row + 1]]
    columns = ["condition", *[f"{i + 1}" for i in range(across)], *(["real"] if last else [])]
    return grid(images, columns=columns)


def save_film(trajectory: Trajectory, path: Path) -> None:
    """A GIF of a trajectory, of the first 16 images of the batch in one grid."""
    save_frames([grid(noisy[:16]) for noisy in trajectory.noisy], path)


def save_frames(frames: Sequence[Image.Image], path: Path, back: bool = False, milliseconds: int = 120) -> None:
    """A GIF that pauses on its last frame for a second; `back`: and then runs in reverse."""
    ordered = list(frames)
    durations = [milliseconds] * (len(ordered) - 1) + [1000]
    if back:
        ordered += ordered[-2:0:-1]
        durations += [milliseconds] * (len(ordered) - len(durations))
    options = {"append_images": ordered[1:], "duration": durations, "loop": 0, "optimize": False}
    save_image(ordered[0], path, save_all=True, **options)


def strip(
    trajectory: Trajectory, image: int = 0, title: str | None = None, predicted: bool = True, cell: int = 96
) -> Image.Image:
    """The trajectory of one image, left to right: x_t, and the x_0 predicted from it.

    Args:
        trajectory: of a `TrajectoryRecorder`.
        image: which of the batch.
        title: a line above.
        predicted: show the predicted clean image too, as a second row.
        cell: smallest side of a cell in pixels.
    """
    steps = [f"t = {t}" for t in trajectory.timesteps[:-1]] + ["image"]
    images = trajectory.noisy[:, image]  # (k, C, H, W)
    rows = ["noisy"]
    if predicted:
        images = torch.cat([images, trajectory.predicted[:, image]])
        rows = ["noisy", "predicted"]
    return grid(images, rows=rows, columns=steps, title=title, cell=cell)


def strips(trajectory: Trajectory, rows: Sequence[str], title: str | None = None, cell: int = 64) -> Image.Image:
    """The trajectory of every image of the batch (x_t), one labeled row each.

    Raises:
        UserError: another number of labels than of images.
    """
    steps = [f"t = {t}" for t in trajectory.timesteps[:-1]] + ["image"]
    images = rearrange(trajectory.noisy, "k b c h w -> (b k) c h w")
    return grid(images, rows=rows, columns=steps, title=title, cell=cell)


def color_statistics(images: ImageBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel over all pixels, on the scale of [-1, 1]: (3,), (3,).

    Args:
        images: (N, 3, H, W) uint8, or float in [0, 1], or PIL images of one size.
    """
    pixels = to_model_range(_as_uint8(images)).double()
    channels = rearrange(pixels, "n c h w -> c (n h w)")
    return channels.mean(dim=1).float(), channels.std(dim=1).float()


def color_error(samples: ImageBatch, data: ImageBatch) -> dict[str, float]:
    """Distance of the samples' color statistics from the data's: a tint shows in the mean, grayness in the deviation.

    Returns:
        color_mean_error and color_std_error: mean absolute difference over the channels of the per-channel mean
        and standard deviation, on the scale of [-1, 1] (0.02 is 2.5 of 255 levels).
    """
    (mean, std), (data_mean, data_std) = color_statistics(samples), color_statistics(data)
    return {
        "color_mean_error": (mean - data_mean).abs().mean().item(),
        "color_std_error": (std - data_std).abs().mean().item(),
    }


def _as_uint8(images: ImageBatch) -> torch.Tensor:
    """(N, C, H, W) uint8."""
    if not isinstance(images, torch.Tensor):
        rows = [torch.frombuffer(bytearray(i.convert("RGB").tobytes()), dtype=torch.uint8) for i in images]
        width, height = images[0].size
        return rearrange(torch.stack(rows), "n (h w c) -> n c h w", h=height, w=width)
    if images.dtype == torch.uint8:
        return images.cpu()
    return (images.float().cpu() * 255).round().clamp(0, 255).to(torch.uint8)


def _as_pil(images: ImageBatch) -> list[Image.Image]:
    if not isinstance(images, torch.Tensor):
        return [image.convert("RGB") for image in images]
    pixels = rearrange(_as_uint8(images), "n c h w -> n h w c").numpy()
    return [Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array).convert("RGB") for array in pixels]


def _enlarged(image: Image.Image, least: int) -> Image.Image:
    """Small images by a whole factor, nearest neighbor."""
    factor = max(1, -(-least // min(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONT, size)


def _extent(font: ImageFont.FreeTypeFont, text: str) -> int:
    return round(font.getlength(text))
