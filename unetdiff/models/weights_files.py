"""The safetensors files of a model directory: one, or shards and an index that says which tensors each holds."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from unetdiff.errors import FileError
from unetdiff.files import records, tensors
from unetdiff.files.folders import inside
from unetdiff.files.writing import sha256_of

STEM, SUFFIX = "diffusion_pytorch_model", ".safetensors"
WEIGHTS = STEM + SUFFIX
INDEX = f"{WEIGHTS}.index.json"
REMEDY = "Download or save the model again."


def weights_file(variant: str | None) -> str:
    """Name of the weights file of a diffusers variant."""
    return f"{STEM}.{variant}{SUFFIX}" if variant else WEIGHTS


def index_files(variant: str | None) -> tuple[str, ...]:
    """Names of the index of a variant's shards, today's first."""
    return (f"{WEIGHTS}.index.{variant}.json", f"{WEIGHTS}.{variant}.index.json") if variant else (INDEX,)


def hub_patterns(variant: str | None, folders: tuple[str, ...]) -> list[str]:
    """The names of the files of a network in these folders of a model on the Hub, not of its other variants."""
    shard = "-?????-of-?????"
    shards = [f"{STEM}.{variant}{shard}", f"{STEM}{shard}.{variant}"] if variant else [f"{STEM}{shard}"]
    names = ["config.json", weights_file(variant), *index_files(variant), *(f"{one}{SUFFIX}" for one in shards)]
    names.append("segmentation_head.safetensors")
    return [f"{folder}/{name}" if folder else name for folder in folders for name in names]


def find_weights(directory: Path, variant: str | None = None) -> Path:
    """The weights file of a directory, or the index of its shards if it has no such file."""
    whole = directory / weights_file(variant)
    indices = [directory / name for name in index_files(variant)]
    return whole if whole.is_file() else next((index for index in indices if index.is_file()), whole)


def is_index(path: Path) -> bool:
    """Whether a path is that of an index."""
    return path.suffix == ".json"


def shards(index: Path) -> dict[Path, set[str]]:
    """The files of an index, and the names of the tensors in each.

    Raises:
        FileError: an index without weight_map, or whose files are elsewhere or not safetensors.
    """
    weight_map = records.read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise FileError.of(index, "must have the key 'weight_map', with the file of each tensor", REMEDY)
    files: dict[Path, set[str]] = {}
    for tensor, name in weight_map.items():
        if not name.endswith(SUFFIX):
            raise FileError.of(index, f"must name safetensors files (got {name})", tensors.conversion(Path(name)))
        files.setdefault(inside(index.parent, name, links=True), set()).add(tensor)
    return files


def read_header(index: Path) -> dict[str, tensors.Entry]:
    """dtype and shape of every tensor of all shards, by name.

    Raises:
        FileError: a shard that is missing, damaged, or does not hold the tensors that the index says.
    """
    entries: dict[str, tensors.Entry] = {}
    for file, names in shards(index).items():
        header = tensors.read_header(file, REMEDY)
        if wrong := sorted(names ^ set(header)):
            verb = "lacks" if wrong[0] in names else "holds"
            reason = f"{verb} {wrong[0]}, unlike {index.name} says ({len(wrong)} such tensors)"
            raise FileError.of(file, reason, REMEDY)
        entries |= header
    return entries


def read_tensors(index: Path) -> dict[str, Tensor]:
    """The tensors of all shards, by name. Errors as of `read_header`."""
    return {name: tensor for file in shards(index) for name, tensor in tensors.read_tensors(file, REMEDY).items()}


def fingerprint(directory: Path) -> str:
    """A hash of a network's weights."""
    path = find_weights(directory)
    if not is_index(path):
        return sha256_of(path)[:16]
    return "-".join(sha256_of(file)[:16] for file in sorted(shards(path)))
