"""How the segmentation head is trained and judged: the typed `segmentation:` section of a config file."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class SegmentationConfig:
    """Loss and judgement of the segmentation head."""

    losses: dict[str, float] = field(default_factory=lambda: {"cross_entropy": 1.0, "dice": 1.0})
    """Weighted sum of losses, by name: cross_entropy, focal, dice."""
    class_weights: list[float] | None = None
    """A weight for each class in cross_entropy and focal; None: all 1."""
    ignore_index: int = 255
    """Void: counted in no loss and no metric."""
    preview_pictures: int = 6
    """Validation pictures drawn with truth and prediction."""
