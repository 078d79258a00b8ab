"""Any folder of images and any folder of masks: matched by name, whatever their depth and suffixes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from unetdiff.data.base import empty_palette
from unetdiff.data.config import DataConfig
from unetdiff.data.decoding import RGB
from unetdiff.data.issues import Issue
from unetdiff.data.masks.classes import classes_of
from unetdiff.data.masks.globs import named_files
from unetdiff.data.masks.pairs import ImageMaskPair, PairReader
from unetdiff.data.masks.splits import Role, split_of
from unetdiff.data.roots import dataset_root
from unetdiff.data.stacks import page_count, stack_size
from unetdiff.errors import FileError, UserError, config_error

Files = Mapping[str, list[Path]]
TIFF_SUFFIXES = frozenset({".tif", ".tiff"})


def folders(config: DataConfig, role: Role, masks: bool) -> PairReader:
    """Images of `data.images` and masks of `data.masks`; see `split_of` for the splits."""
    root = dataset_root(config)
    if config.images is None:
        raise config_error("data.images", None, "set with data.name=folders", "Give a folder or a glob in data.root.")
    mask_files: Files = {}
    if config.masks is not None:
        mask_files = named_files("data.masks", config.masks, root)
    elif masks:
        raise config_error("data.masks", None, "set with data.name=folders", "Give a folder or a glob in data.root.")
    image_files = _without(named_files("data.images", config.images, root), mask_files, config)
    pairs, listing = match_files(image_files, mask_files, root) if masks else (_images(image_files), [])
    pairs = _pages(pairs, config.channels or RGB)
    split = split_of([pair.name for pair in pairs], [pair.image for pair in pairs], root, config, role)
    pairs = [pairs[i] for i in split.indices]
    if not masks:
        return PairReader(pairs, None, [], empty_palette(), split.place)
    classes = classes_of(config, root, [pair.mask for pair in pairs])
    return PairReader(pairs, *classes, split.place, listing)


def match_files(images: Files, masks: Files, root: Path) -> tuple[list[ImageMaskPair], list[Issue]]:
    """An image and a mask per name, and issues of masks without an image.

    Where no name agrees, names without their folders are compared.

    Raises:
        UserError: no image has a mask.
    """
    if not set(images) & set(masks):
        flat_images, flat_masks = _flat(images), _flat(masks)
        if flat_images is not None and flat_masks is not None and set(flat_images) & set(flat_masks):
            masks = {name: flat_masks.get(PurePosixPath(name).name, []) for name in images}
    if len(images) == len(masks) == 1:  # two stacks
        masks = dict(zip(images, masks.values(), strict=True))
    if not any(masks.get(name) for name in images):
        raise UserError(
            f"data.root={root}: no image has a mask of its name ({_first(images)} of data.images, {_first(masks)} of "
            f"data.masks). Give globs whose wildcards match what the names share, e.g. data.images={_example(images)} "
            f"and data.masks={_example(masks)}."
        )
    pairs = []
    for name, files in images.items():
        own = masks.get(name) or [_expected(name, masks)]
        ambiguous = files if len(files) > 1 else own if len(own) > 1 else []
        pairs.append(ImageMaskPair(name, files[0], own[0], tuple(ambiguous)))
    alone = [files[0] for name, files in masks.items() if name not in images and files]
    if not alone:
        return pairs, []
    remedy = "Correct data.masks, or remove the masks."
    return pairs, [Issue(str(alone[0]), f"{len(alone)} mask(s) without an image", alone[0].name, remedy)]


def _pages(pairs: list[ImageMaskPair], channels: int) -> list[ImageMaskPair]:
    """The pairs of all pages, NAME/0000 and so on, if the first image is a stack (and its mask one of as many pages).

    Raises:
        UserError: stacks of an image and its mask whose pages differ in number.
    """
    if not pairs or not _is_stack(pairs[0], channels):
        return pairs
    pages = []
    for pair in pairs:
        count = page_count(pair.image)
        if pair.mask != pair.image and pair.mask.is_file() and page_count(pair.mask) != count:
            reason = f"has {page_count(pair.mask)} pages, its image {pair.image.name} {count}"
            raise FileError.of(pair.mask, reason, "Correct or remove it.")
        pages += [replace(pair, name=f"{pair.name}/{page:04d}", page=page) for page in range(count)]
    return pages


def _is_stack(pair: ImageMaskPair, channels: int) -> bool:
    if pair.image.suffix.lower() not in TIFF_SUFFIXES or pair.ambiguous:
        return False
    try:
        if pair.mask == pair.image:  # images alone
            return stack_size(pair.image, channels) > 1
        return pair.mask.is_file() and page_count(pair.mask) > 1
    except FileError:
        return False


def _without(images: Files, masks: Files, config: DataConfig) -> Files:
    """Images that are not masks, where both are in one folder."""
    taken = {path for files in masks.values() for path in files}
    if not taken:
        return images
    kept = {name: [path for path in files if path not in taken] for name, files in images.items()}
    kept = {name: files for name, files in kept.items() if files}
    if not kept:
        constraint = "a folder or a glob of other files than data.masks"
        raise config_error("data.images", config.images, constraint)
    return kept


def _images(files: Files) -> list[ImageMaskPair]:
    return [
        ImageMaskPair(name, found[0], found[0], tuple(found) if len(found) > 1 else ()) for name, found in files.items()
    ]


def _flat(files: Files) -> dict[str, list[Path]] | None:
    """Files by name without folder; None if a name occurs twice."""
    counts = Counter(PurePosixPath(name).name for name in files)
    if any(count > 1 for count in counts.values()):
        return None
    return {PurePosixPath(name).name: found for name, found in files.items()}


def _expected(name: str, masks: Files) -> Path:
    """Where the mask of a name would be, by the place of another mask."""
    other, files = next(item for item in masks.items() if item[1])
    text = files[0].as_posix()
    at = text.rfind(other)
    if at < 0:
        at, other = text.rfind(PurePosixPath(other).name), PurePosixPath(other).name
        name = PurePosixPath(name).name
    return Path(text[:at] + name + text[at + len(other) :])


def _first(files: Files) -> str:
    return next(iter(files), "none")


def _example(files: Files) -> str:
    """A glob of what the names of some files share."""
    paths = [found[0] for found in files.values() if found]
    return f"'{paths[0].parent.name}/*{common_suffix([path.name for path in paths])}'" if paths else "'*.png'"


def common_suffix(names: Sequence[str]) -> str:
    """The longest end that names share, from a separator on: "_mask.png" of a_mask.png and b_mask.png."""
    shortest = min(names, key=len)
    length = 0
    while length < len(shortest) - 1 and len({name[-length - 1] for name in names}) == 1:
        length += 1
    end = shortest[len(shortest) - length :]
    start = next((i for i, character in enumerate(end) if character in "_-. "), len(end))
    return end[start:] or PurePosixPath(shortest).suffix
