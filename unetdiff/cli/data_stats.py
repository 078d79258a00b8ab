"""`unetdiff data stats`: what both splits of a set hold, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unetdiff.cli.parser import Parser, split_overrides
from unetdiff.errors import UserError
from unetdiff.text import aligned

if TYPE_CHECKING:
    from unetdiff.config.schema import RunConfig
    from unetdiff.data.stats import SplitCounts

USAGE = "unetdiff data stats [CONFIG] [--data.name NAME --data.root DIR ...] [--output FILE.json]"
SPLITS: tuple[Literal["train"], Literal["val"]] = ("train", "val")
SHOWN = 60  # letters of the longest caption
SIZES = 3  # of the most common sizes, how many are told


def main(argv: Sequence[str]) -> int:
    """Count both splits and print a table; 0. UserError for a set that cannot be read or has neither masks nor
    captions.
    """
    overrides, words = split_overrides(argv, known=[])
    about = "Masks: pixels and images of each class, class weights, void, sizes. Captions: how many, how long."
    parser = Parser("unetdiff data stats", about, USAGE)
    parser.add_argument("config", nargs="?", help="YAML file with a `data:` section")
    parser.add_argument("--output", type=Path, help="write the same figures to this JSON file")
    given = parser.parse_strictly(words)
    if given.config is None and not overrides:
        raise UserError("unetdiff data stats: nothing to count; give a config file, or --data.name and --data.root")
    if given.output is not None and given.output.is_dir():
        raise UserError(f"--output: '{given.output}' is a directory; give a file, e.g. {given.output / 'stats.json'}")

    from unetdiff.config.reading import parse

    figures = count_both(parse(given.config, overrides))
    if given.output is not None:
        try:
            given.output.parent.mkdir(parents=True, exist_ok=True)
            given.output.write_text(json.dumps(figures, indent=1))
        except OSError as error:
            raise UserError(f"--output: '{given.output}' cannot be written ({error.strerror}); give another") from None
    print(table(figures))
    return 0


def count_both(config: RunConfig) -> dict[str, Any]:
    """The figures of a RunConfig's set: each split's captions, and of masks classes, counts and class weights."""
    from unetdiff.config.validation.data import require_captions
    from unetdiff.data.capabilities import WITH_CAPTIONS, WITH_MASKS

    data = config.data
    masks = data.name in WITH_MASKS
    captions = data.name in WITH_CAPTIONS
    if not masks and not captions:
        right = ", ".join(dict.fromkeys((*WITH_MASKS, *WITH_CAPTIONS)))
        raise UserError(f"data.name: '{data.name}' has no masks or captions to count; use one of {right}")
    figures: dict[str, Any] = {"data": data.name, "root": data.root}
    for role, split in zip(SPLITS, (data.train_split, data.val_split), strict=True):
        figures[role] = {"split": split}
    if masks:
        _count_masks(config, figures)
    if captions:
        require_captions("data.name", data.name, data)
        _count_captions(config, figures)
    return figures


def _count_masks(config: RunConfig, figures: dict[str, Any]) -> None:
    from unetdiff.data.build import build_dataset
    from unetdiff.data.stats import CLASS_WEIGHT_METHODS, class_weights, count

    sets = {role: build_dataset(config.data, role, segmentation=True) for role in SPLITS}
    classes = figures["classes"] = sets["train"].classes
    counts: dict[str, SplitCounts] = {
        role: count(images, config.segmentation.ignore_index, description=role) for role, images in sets.items()
    }
    for role in SPLITS:
        figures[role] |= _split_figures(counts[role], classes)
    figures["class_weights"] = {
        method: dict(zip(classes, class_weights(method, counts["train"]), strict=True))
        for method in CLASS_WEIGHT_METHODS
    }


def _count_captions(config: RunConfig, figures: dict[str, Any]) -> None:
    from unetdiff.data.caption_stats import count_captions, read_captions

    for role in SPLITS:
        counts = count_captions(read_captions(config.data, role))
        figures[role]["images"] = counts.captions + counts.empty
        figures[role]["captions"] = {
            **asdict(counts),
            "duplicates": counts.duplicates,
            "longest_words": counts.longest_words,
        }


def _split_figures(counts: SplitCounts, classes: list[str]) -> dict[str, Any]:
    heights, widths = (sorted(size[side] for size in counts.sizes.elements()) for side in (0, 1))
    return {
        "images": counts.sizes.total(),
        "pixels_by_class": dict(zip(classes, counts.pixels.tolist(), strict=True)),
        "images_by_class": dict(zip(classes, counts.images.tolist(), strict=True)),
        "void_pixels": counts.ignored,
        "void_share": counts.ignore_fraction,
        "width": _range(widths),
        "height": _range(heights),
        "sizes": len(counts.sizes),
        "most_common_sizes": [
            {"width": width, "height": height, "images": images}
            for (height, width), images in counts.sizes.most_common(SIZES)
        ],
    }


def _range(values: list[int]) -> dict[str, int]:
    return {"min": values[0], "median": values[len(values) // 2], "max": values[-1]}


def table(figures: Mapping[str, Any]) -> str:
    """The figures as aligned tables: a row for each class of the masks, and a row for each fact of the images."""
    where = figures["data"] if figures["root"] is None else f"{figures['data']} in {figures['root']}"
    lines, told = [where], CAPTION_FACTS
    if "classes" in figures:
        lines = [f"{where}: {len(figures['classes'])} classes", "", *_class_table(figures)]
        told = FACTS | CAPTION_FACTS if "captions" in figures["train"] else FACTS
    facts = [["", *(f"{role} ({figures[role]['split']})" for role in SPLITS)]]
    facts += [[name, *(tell(figures[role]) for role in SPLITS)] for name, tell in told.items()]
    return "\n".join([*lines, "", *aligned(facts, "<")])


def _class_table(figures: Mapping[str, Any]) -> list[str]:
    weights = figures["class_weights"]
    head = ["class"]
    for role in SPLITS:
        head += [f"{role} pixels", "share", "images"]
    rows = [head + [f"weight: {method}" for method in weights]]
    for name in figures["classes"]:
        row = [name]
        for role in SPLITS:
            row += _class_cells(figures[role], name)
        rows.append(row + [f"{by_class[name]:.3f}" for by_class in weights.values()])
    return aligned(rows, ">")


def _class_cells(split: Mapping[str, Any], name: str) -> list[str]:
    pixels = split["pixels_by_class"]
    share = pixels[name] / max(1, sum(pixels.values()))
    return [f"{pixels[name]:,}", f"{share:.2%}", f"{split['images_by_class'][name]:,}"]


def _spread(side: str) -> Any:
    return lambda split: " / ".join(f"{split[side][key]}" for key in ("min", "median", "max"))


FACTS: dict[str, Any] = {
    "images": lambda split: f"{split['images']:,}",
    "void": lambda split: f"{split['void_share']:.2%} of the pixels",
    "width, min / median / max": _spread("width"),
    "height, min / median / max": _spread("height"),
    "sizes": lambda split: f"{split['sizes']:,}",
    "most common (width x height)": lambda split: ", ".join(
        f"{size['width']} x {size['height']} ({size['images']:,})" for size in split["most_common_sizes"]
    ),
}

CAPTION_FACTS: dict[str, Any] = {
    "images": lambda split: f"{split['images']:,}",
    "captions": lambda split: f"{split['captions']['captions']:,}",
    "empty": lambda split: f"{split['captions']['empty']:,}",
    "duplicates": lambda split: f"{split['captions']['duplicates']:,}",
    "words, median / longest": lambda split: (
        f"{split['captions']['median_words']} / {split['captions']['longest_words']}"
    ),
    "longest": lambda split: _shortened(split["captions"]["longest"]),
}


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
