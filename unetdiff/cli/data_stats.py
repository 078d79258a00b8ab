"""`unetdiff data stats`: statistics of both splits of a dataset, as a table and as JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unetdiff.cli.parser import Parser, split_overrides
from unetdiff.errors import UserError, config_error, printable
from unetdiff.text import aligned

if TYPE_CHECKING:
    from unetdiff.config.schema import RunConfig
    from unetdiff.data.stats import SplitCounts

USAGE = "unetdiff data stats [CONFIG] [--data.name NAME --data.root DIR ...] [--output FILE.json]"
SPLITS: tuple[Literal["train"], Literal["val"]] = ("train", "val")
MAX_CAPTION_CHARS = 60  # of the longest caption
MAX_COMMON_SIZES = 3


def main(argv: Sequence[str]) -> int:
    """Count both splits and print a table; returns 0, or 1 with the keys that fit, where the masks cannot be read.

    Raises:
        UserError: a dataset that cannot be read, or one with neither masks nor captions.
    """
    overrides, words = split_overrides(argv, known=[])
    about = "Count the pixels and images of each class, ignored pixels, image sizes, class weights, and captions."
    parser = Parser("unetdiff data stats", about, USAGE)
    parser.add_argument("config", nargs="?", help="YAML file with a `data:` section")
    parser.add_argument("--output", type=Path, help="also write the statistics to this JSON file")
    args = parser.parse_strictly(words)
    if args.config is None and not overrides:
        raise UserError("nothing to count. Give a config file, or --data.name and --data.root.")

    from unetdiff.config.reading import parse
    from unetdiff.files.records import write_json
    from unetdiff.files.writing import file_errors, make_folder, require_writable

    if args.output is not None:
        if os.path.isdir(args.output):
            raise config_error("--output", args.output, "a file", f"Give e.g. {args.output / 'stats.json'}.")
        require_writable("--output", args.output.parent, folder=True)
        if os.path.lexists(args.output):
            require_writable("--output", args.output)

    config = parse(args.config, overrides)
    try:
        stats = count_both(config)
    except UserError as error:
        proposal = _propose_encoding(config, error)
        if not proposal:
            raise
        print("\n".join([str(error), "", *proposal]))
        return 1
    if args.output is not None:
        with file_errors(args.output, "Give another path for --output."):
            make_folder(args.output.parent)
            write_json(args.output, stats)
    print(table(stats))
    return 0


def _propose_encoding(config: RunConfig, error: UserError) -> list[str]:
    """What masks that cannot be counted hold, and the keys that read them; [] where these are set or would not help."""
    from unetdiff.data.masks.inspect import inspect_masks, proposal
    from unetdiff.data.masks.mask_files import mask_files

    files = mask_files(config.data)
    if not files:
        return []
    found = inspect_masks(files)
    keys = found.keys()
    is_set = all(getattr(config.data, key) == value for key, value in keys.items())
    is_about_classes = "num_classes" not in keys or "data.num_classes" in str(error)
    return proposal(found) if is_about_classes and not is_set else []


def count_both(config: RunConfig) -> dict[str, Any]:
    """The statistics of a config's dataset: class counts and weights of its masks, and its captions."""
    from unetdiff.config.validation.data import require_captions
    from unetdiff.data.capabilities import WITH_CAPTIONS, WITH_MASKS

    data = config.data
    masks = data.name in WITH_MASKS
    captions = data.name in WITH_CAPTIONS
    if not masks and not captions:
        right = ", ".join(dict.fromkeys((*WITH_MASKS, *WITH_CAPTIONS)))
        raise config_error("data.name", data.name, f"a dataset with masks or captions: {right}")
    stats: dict[str, Any] = {"data": data.name, "root": data.root}
    for role, split in zip(SPLITS, (data.train_split, data.val_split), strict=True):
        stats[role] = {"split": split}
    if masks:
        _count_masks(config, stats)
    if captions:
        require_captions("data.name", data.name, data)
        _count_captions(config, stats)
    stats["images"] = _image_facts(config, masks)
    return stats


def _image_facts(config: RunConfig, masks: bool) -> dict[str, Any] | None:
    """Channels, range, mean and deviation of the training images, as training reads them; None where an image cannot be
    read, as `data check` says."""
    from unetdiff.config.validation.data import reads_rgb
    from unetdiff.data.build import build_dataset
    from unetdiff.data.image_format import pixel_statistics, resolve_image_format

    data = resolve_image_format(config.data, masks, only_rgb=reads_rgb(config))
    try:
        mean, std = pixel_statistics(build_dataset(data, "train", masks))
    except UserError:
        return None
    return {"channels": len(mean), "image_range": data.image_range, "mean": mean, "std": std}


def _count_masks(config: RunConfig, stats: dict[str, Any]) -> None:
    from unetdiff.data.build import build_dataset
    from unetdiff.data.labelled import labelled_part
    from unetdiff.data.stats import CLASS_WEIGHT_METHODS, class_weights, count

    whole = build_dataset(config.data, "train", segmentation=True)
    datasets = {"train": labelled_part(whole), "val": build_dataset(config.data, "val", segmentation=True)}
    classes = stats["classes"] = datasets["train"].classes
    counts: dict[str, SplitCounts] = {
        role: count(images, config.segmentation.ignore_index, description=role) for role, images in datasets.items()
    }
    for role in SPLITS:
        stats[role] |= _split_stats(counts[role], classes)
    if whole.labelled is not None:
        stats["train"]["without_masks"] = len(whole) - len(whole.labelled)
    stats["class_weights"] = {
        method: dict(zip(classes, class_weights(method, counts["train"]), strict=True))
        for method in CLASS_WEIGHT_METHODS
    }


def _count_captions(config: RunConfig, stats: dict[str, Any]) -> None:
    from unetdiff.data.caption_stats import count_captions, read_captions

    for role in SPLITS:
        counts = count_captions(read_captions(config.data, role))
        stats[role]["images"] = counts.captions + counts.empty
        stats[role]["captions"] = {
            **asdict(counts),
            "duplicates": counts.duplicates,
            "longest_words": counts.longest_words,
        }


def _split_stats(counts: SplitCounts, classes: list[str]) -> dict[str, Any]:
    heights, widths = (sorted(size[side] for size in counts.sizes.elements()) for side in (0, 1))
    return {
        "images": counts.sizes.total(),
        "pixels_by_class": dict(zip(classes, counts.pixels.tolist(), strict=True)),
        "images_by_class": dict(zip(classes, counts.images.tolist(), strict=True)),
        "ignored_pixels": counts.ignored,
        "ignored_fraction": counts.ignore_fraction,
        "width": _range(widths),
        "height": _range(heights),
        "sizes": len(counts.sizes),
        "most_common_sizes": [
            {"width": width, "height": height, "images": images}
            for (height, width), images in counts.sizes.most_common(MAX_COMMON_SIZES)
        ],
    }


def _range(values: list[int]) -> dict[str, int]:
    return {"min": values[0], "median": values[len(values) // 2], "max": values[-1]}


def table(stats: Mapping[str, Any]) -> str:
    """The statistics as aligned tables: a row per class, and a row per property of the images."""
    where = stats["data"] if stats["root"] is None else printable(f"{stats['data']} in {stats['root']}")
    lines, rows = [where], CAPTION_ROWS
    if "classes" in stats:
        lines = [f"{where}: {len(stats['classes'])} classes", "", *_class_table(stats)]
        rows = ROWS | CAPTION_ROWS if "captions" in stats["train"] else ROWS
    facts = [["", *(f"{role} ({stats[role]['split']})" for role in SPLITS)]]
    facts += [[name, *(text(stats[role]) for role in SPLITS)] for name, text in rows.items()]
    if count := stats["train"].get("without_masks"):
        facts.insert(2, ["images without masks", f"{count:,}", ""])
    images = [] if stats["images"] is None else ["", _image_line(stats["images"])]
    return "\n".join([*lines, "", *aligned(facts, "<"), *images])


def _image_line(images: Mapping[str, Any]) -> str:
    numbers = [", ".join(f"{x:g}" for x in images[key]) for key in ("mean", "std")]
    limits = images["image_range"]
    depth = "8 bits" if limits is None else f"more than 8 bits, [{', '.join(f'{x:g}' for x in limits)}] is 0..255"
    return f"images: {images['channels']} channel(s), {depth}; in [0, 1], mean {numbers[0]}, deviation {numbers[1]}"


def _class_table(stats: Mapping[str, Any]) -> list[str]:
    weights = stats["class_weights"]
    head = ["class"]
    for role in SPLITS:
        head += [f"{role} pixels", "fraction", "images"]
    rows = [head + [f"weight: {method}" for method in weights]]
    for name in stats["classes"]:
        row = [printable(name)]
        for role in SPLITS:
            row += _class_cells(stats[role], name)
        rows.append(row + [f"{by_class[name]:.3f}" for by_class in weights.values()])
    return aligned(rows, ">")


def _class_cells(split: Mapping[str, Any], name: str) -> list[str]:
    pixels = split["pixels_by_class"]
    fraction = pixels[name] / max(1, sum(pixels.values()))
    return [f"{pixels[name]:,}", f"{fraction:.2%}", f"{split['images_by_class'][name]:,}"]


def _spread(side: str) -> Any:
    return lambda split: " / ".join(f"{split[side][key]}" for key in ("min", "median", "max"))


ROWS: dict[str, Any] = {
    "images": lambda split: f"{split['images']:,}",
    "ignored": lambda split: f"{split['ignored_fraction']:.2%} of the pixels",
    "width, min / median / max": _spread("width"),
    "height, min / median / max": _spread("height"),
    "sizes": lambda split: f"{split['sizes']:,}",
    "most common (width x height)": lambda split: ", ".join(
        f"{size['width']} x {size['height']} ({size['images']:,})" for size in split["most_common_sizes"]
    ),
}

CAPTION_ROWS: dict[str, Any] = {
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
    text = printable(text)
    return text if len(text) <= MAX_CAPTION_CHARS else f"{text[: MAX_CAPTION_CHARS - 3]}..."
