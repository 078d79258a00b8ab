"""Painting in the browser: a layout in the colors of its classes, and the hole of inpainting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from unetdiff.app.display import shown_image, shown_size
from unetdiff.app.html import hex_color
from unetdiff.segmentation.palette import colorize

HOLE_COLOR = "#e11d74"
"""Of the strokes over what is repainted."""
MAX_DISTANCE = 3 * 255**2

EDITOR: dict[str, Any] = {
    "image_mode": "RGBA",
    "type": "numpy",
    "format": "png",
    "sources": (),
    "transforms": (),
    "layers": False,
    "buttons": [],
    "elem_classes": "painting",
}
"""Of both editors: only painting is offered."""
Editor = dict[str, Any]
"""The value of an ImageEditor: "background", "layers", "composite", RGBA arrays (H, W, 4) or None."""


def layout_canvas(mask: NDArray[np.uint8] | None, size: tuple[int, int], palette: NDArray[np.uint8]) -> Editor:
    """A canvas with a mask (H, W) in its colors, or of the first class, at the size the page shows."""
    mask = np.zeros(size, np.uint8) if mask is None else mask
    # ignored pixels are of no class: they become the first
    image = shown_image(colorize(np.where(mask < len(palette), mask, 0).astype(np.uint8), palette))
    return {"background": image, "layers": [], "composite": image}


def layout_editor(palette: NDArray[np.uint8], size: tuple[int, int], class_index: int = 1) -> Any:
    """An editor whose brush has the colors of the classes."""
    height, width = shown_size(*size)
    return gr.ImageEditor(
        layout_canvas(None, size, palette),
        label="Paint the layout",
        canvas_size=(width, height),
        fixed_canvas=True,
        brush=layout_brush(palette, min(class_index, len(palette) - 1), size),
        eraser=gr.Eraser(default_size=height // 8),
        **EDITOR,
    )


def layout_brush(palette: NDArray[np.uint8], class_index: int, size: tuple[int, int]) -> Any:
    """A brush that paints one class."""
    colors = [hex_color(color) for color in palette]
    height, _ = shown_size(*size)
    return gr.Brush(height // 8, colors, colors[class_index], color_mode="fixed")


def painted_layout(value: Editor | None, palette: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """The class of every pixel of a painting at a size (H, W): that of most of the painting's pixels in it.

    A painted pixel has the class of the nearest color; smooth edges between two colors can be nearest to a third, which
    the majority removes.
    """
    if value is None or value.get("composite") is None:
        return None
    rgb = np.asarray(value["composite"])[..., :3].astype(np.int32)
    best = np.full(rgb.shape[:2], MAX_DISTANCE + 1, np.int32)
    index = np.zeros(rgb.shape[:2], np.uint8)
    for number, color in enumerate(palette):
        distance = ((rgb - color.astype(np.int32)) ** 2).sum(axis=-1)
        index, best = np.where(distance < best, np.uint8(number), index), np.minimum(distance, best)
    fractions = [_pooled(index == number, size) for number in range(len(palette))]
    return np.stack(fractions).argmax(axis=0).astype(np.uint8)


def _pooled(plane: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.float32]:
    """The fraction of true pixels in every cell of a grid (H, W)."""
    pixels = rearrange(torch.from_numpy(plane.astype(np.float32)), "h w -> 1 1 h w")
    return rearrange(F.adaptive_avg_pool2d(pixels, size), "1 1 h w -> h w").numpy()


def start_editor() -> Any:
    """An editor for the image that sampling starts from, without an image, hidden."""
    return gr.ImageEditor(
        None,
        label="Paint over a part",
        brush=gr.Brush(60, [HOLE_COLOR], HOLE_COLOR, color_mode="fixed"),
        eraser=gr.Eraser(default_size=60),
        visible=False,
        **EDITOR,
    )


def start_canvas(image: Any) -> Any:
    """The editor with an image, shown."""
    shown = shown_image(image)
    value = {"background": shown, "layers": [], "composite": shown}
    return gr.ImageEditor(value, visible=True, canvas_size=shown.size)


def start_image(value: Editor | None) -> Image.Image | None:
    """The image of a `start_editor`."""
    if value is None or value.get("background") is None:
        return None
    return Image.fromarray(np.asarray(value["background"])[..., :3].astype(np.uint8))


def painted_hole(value: Editor | None) -> Image.Image | None:
    """The painted pixels as an image of mode "L", white where it is repainted; None where nothing was painted."""
    layers: Sequence[Any] = [] if value is None else value.get("layers") or []
    holes = [np.asarray(layer)[..., 3] > 127 for layer in layers if layer is not None]
    hole = np.logical_or.reduce(holes) if holes else np.zeros((1, 1), bool)
    return Image.fromarray(hole.astype(np.uint8) * 255) if hole.any() else None
