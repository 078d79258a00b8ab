"""Hugging Face datasets with a column of images and one of masks: parquet, a folder of `save_to_disk`, or a Hub id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unetdiff.data.base import empty_palette
from unetdiff.data.config import DataConfig
from unetdiff.data.issues import BadFile, Issue, issue_of
from unetdiff.data.masks.classes import classes_of
from unetdiff.data.masks.encodings import Encoding, Values
from unetdiff.data.masks.pairs import read_values
from unetdiff.data.masks.reader import Indices, MaskReader
from unetdiff.data.masks.splits import STAND_INS, Role, split_of
from unetdiff.data.parquet import open_parquet, parquet_files
from unetdiff.data.roots import dataset_root
from unetdiff.errors import UserError, config_error
from unetdiff.files.folders import files_in, inside
from unetdiff.files.hub import NAME
from unetdiff.files.hub_errors import hub_reason
from unetdiff.files.writing import file_errors

IMAGE_COLUMNS, MASK_COLUMNS = ("image", "img", "pixel_values"), ("mask", "label", "annotation", "segmentation_mask")
"""Columns that are read where none is named."""


class HuggingFaceReader(MaskReader):
    """Rows of a table; images and masks are decoded on access."""

    def __init__(self, rows: Any, folder: Path, columns: tuple[str, str], names: Sequence[str], place: str) -> None:
        self.rows, self.folder, self.columns, self.names, self.place = rows, folder, columns, names, place
        self.encoding: Encoding | None = None
        self.classes, self.palette = [], empty_palette()

    def image(self, index: int) -> tuple[Path | bytes, str]:
        return self._cell(index, self.columns[0])

    def mask_place(self, index: int) -> Path:
        return Path(f"{self.names[index]} ({self.columns[1]})")

    def mask(self, index: int) -> Indices:
        assert self.encoding is not None
        return self.encoding.decode(self._values(index), str(self.mask_place(index)))

    def mask_issues(self, index: int, image_size: tuple[int, int] | None) -> list[Issue]:
        assert self.encoding is not None
        try:
            values = self._values(index)
        except BadFile as error:
            return [issue_of(error)]
        issue = self.encoding.issue(values, str(self.mask_place(index)))
        return ([] if issue is None else [issue]) + self.size_issues(index, image_size, values.shape[:2])

    def _values(self, index: int) -> Values:
        assert self.encoding is not None
        source, name = self._cell(index, self.columns[1])
        return read_values(source, self.encoding.of_colors, name)

    def _cell(self, index: int, column: str) -> tuple[Path | bytes, str]:
        name = f"{self.names[index]} ({column})"
        cell = self.rows[index][column]
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise BadFile.from_issue(Issue(name, "no image in the row", "empty", "Remove the row."))
        if cell["bytes"] is not None:
            return cell["bytes"], name
        path = Path(cell["path"])
        return (path if path.is_absolute() else inside(self.folder, cell["path"], links=True)), name


def huggingface(config: DataConfig, role: Role, masks: bool) -> HuggingFaceReader:
    """The rows of a split of `data.root`; without a validation split, `data.val_fraction` is held out."""
    import datasets as hf

    tables, folder = tables_of(config)
    train, val = (_table(tables, split) for split in (config.train_split, config.val_split))
    own = next(iter(tables)) if len(tables) == 1 and config.train_split == DataConfig.train_split else None
    whole = train or own
    if val is not None and train is not None and config.val_fraction is None:
        name, rows = (train, tables[train]) if role == "train" else (val, tables[val])
        names = [f"{name}/{i:06d}" for i in range(len(rows))]
    elif whole is not None and config.val_split == DataConfig.val_split:
        name, rows = whole, tables[whole]
        names = [f"{name}/{i:06d}" for i in range(len(rows))]
        split = split_of(names, [folder / name] * len(names), folder, config, role)
        rows, names = rows.select(split.indices), [names[i] for i in split.indices]
    else:
        key, split_name = (
            ("data.train_split", config.train_split) if train is None else ("data.val_split", config.val_split)
        )
        raise config_error(key, split_name, f"a split of {config.root}: {', '.join(tables)}")
    columns = columns_of(config, rows, masks)
    wanted = columns if masks else columns[:1]
    rows = rows.select_columns(list(wanted))
    for column in wanted:
        rows = rows.cast_column(column, hf.Image(decode=False))
    reader = HuggingFaceReader(rows, folder, columns, names, f"{config.root} ({name})")
    if masks:
        reader.encoding, reader.classes, reader.palette = classes_of(config, folder)
        reader.keeps = reader.encoding.of_colors
    return reader


def tables_of(config: DataConfig) -> tuple[dict[str, Any], Path]:
    """The tables of a dataset by split, and the folder that its relative paths are in."""
    import datasets as hf

    root = dataset_root(config)
    if (root / "dataset_dict.json").is_file() or (root / "dataset_info.json").is_file():
        with file_errors(root, "Give a folder that `save_to_disk` wrote."):
            loaded = hf.load_from_disk(str(root))
        return (dict(loaded) if isinstance(loaded, hf.DatasetDict) else {"train": loaded}), root
    if root.exists():
        files = files_in(root, {".parquet"}, recursive=True) if root.is_dir() else [root]
        if not files:
            constraint = "a parquet file, a folder of parquet files or of save_to_disk, or owner/name on the Hub"
            raise config_error("data.root", config.root, constraint)
        folder = root if root.is_dir() else root.parent
        if not root.is_dir():
            return {"train": open_parquet([root])}, folder
        names = list(dict.fromkeys(file.stem.split("-")[0] for file in files))
        return {name: open_parquet(parquet_files(root, name)) for name in names}, folder
    if not NAME.fullmatch(str(config.root)):
        raise config_error("data.root", config.root, "an existing file or folder, or owner/name on the Hub")
    try:
        loaded = hf.load_dataset(str(config.root))
    except Exception as error:  # the Hub's client has many types
        raise UserError(f"data.root={config.root}: cannot be loaded from the Hub ({hub_reason(error)}).") from None
    return dict(loaded), Path()


def _table(tables: dict[str, Any], split: str) -> str | None:
    return next((name for name in STAND_INS.get(split, (split,)) if name in tables), None)


def columns_of(config: DataConfig, rows: Any, masks: bool) -> tuple[str, str]:
    """The columns of images and masks: those named, else common names, else the first two with images."""
    import datasets as hf

    names = list(rows.column_names)
    image_columns = [name for name in names if isinstance(rows.features[name], hf.Image)]
    chosen: list[str] = []
    for key, given, default, common in (
        ("image_column", config.image_column, DataConfig.image_column, IMAGE_COLUMNS),
        ("mask_column", config.mask_column, None, MASK_COLUMNS),
    ):
        if not masks and key == "mask_column":
            return chosen[0], ""
        left = [name for name in image_columns if name not in chosen]
        column = given if given != default else next((n for n in (*common, *left) if n in left), None)
        if column is None or column not in names:
            raise config_error(f"data.{key}", given, f"a column of images in {config.root}: {', '.join(names)}")
        if not isinstance(rows.features[column], hf.Image):
            raise config_error(f"data.{key}", column, f"a column of images (got {rows.features[column]})")
        chosen.append(column)
    return chosen[0], chosen[1]
