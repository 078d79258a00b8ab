"""What `--overwrite` deletes: the files that runs write, in a directory that contains nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from unetdiff.config.reading import from_yaml, to_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.errors import FileError, UserError, config_error
from unetdiff.files.folders import JUNK, names_in
from unetdiff.files.model_card import CARD
from unetdiff.files.texts import read_text
from unetdiff.files.writing import OLD, WRITING, delete_whole, remove_tree, write_text
from unetdiff.models.adapters import LORA_WEIGHTS
from unetdiff.segmentation.context import FOLDER as CONTEXT
from unetdiff.training import checkpoints
from unetdiff.training.logger import CONFIG, IMAGES, METRICS, SUMMARY
from unetdiff.training.nonfinite import NONFINITE
from unetdiff.training.trackers import CSV, FOLDERS, TENSORBOARD

OVERWRITING = f"{WRITING}overwrite"
"""Exists while `--overwrite` deletes a run: a directory with it counts as empty, whatever was not deleted yet."""
SYSTEM = frozenset({".ds_store", *JUNK})
FILES = (CONFIG, METRICS, SUMMARY, NONFINITE)
PARTS = (
    "unet",
    "scheduler",
    "conditioner",
    "vae",
    "vqvae",
    "text_encoder",
    "bert",
    "tokenizer",
    CONTEXT,
    re.escape(LORA_WEIGHTS),
)
MODEL = "|".join([*PARTS, r".*\.json", re.escape(CARD), r"[\w-]+\.png"])
OURS = {
    **{name: None for name in FILES},
    "best": MODEL,
    "latest": MODEL,
    checkpoints.FOLDER: r"step-\d+",
    IMAGES: r"step-\d+-[\w-]+\.png",
    TENSORBOARD: r"events\.out\.tfevents\..*",
    CSV: r"\w+\.csv",
    **{folder: None for folder in FOLDERS.values()},
    "evaluation-val": r".*\.(json|csv|md|png|html)",
    "evaluation-train": r".*\.(json|csv|md|png|html)",
    "classifier.json": None,
    "classifier.safetensors": None,
    "class_consistency.json": None,
    "reference": r".*\.(json|safetensors)",
}
"""What commands write in a run directory -> pattern of the names in it (None: anything)."""


def _inputs(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Keys that name files or folders to read, with their values."""
    prompts = config.task != "segmentation" and config.diffusion.condition == "text"
    class_names = config.task != "diffusion" and config.segmentation.context != "none"
    paths = {
        "model.pretrained": config.model.pretrained,
        "data.root": None if config.data.name == "scenes" else config.data.root,
        "data.regularization_root": config.data.regularization_root,
        "data.unlabelled_root": config.data.unlabelled_root,
        "model.encoder.weights": config.model.encoder.weights,
        "latent.vae": config.latent.vae,
        "diffusion.text.encoder": config.diffusion.text.encoder if prompts or class_names else None,
    }
    for key, value in paths.items():
        if value is not None:
            yield key, value


def require_inputs_outside(config: RunConfig, run: Path) -> None:
    inside = run.resolve()
    for key, value in _inputs(config):
        path = Path(value).expanduser()
        if path.exists() and path.resolve().is_relative_to(inside):
            raise config_error(key, value, f"outside of training.output_dir={run}", "Give another output directory.")
    if config.training.overwrite:
        for name, place in (("the working directory", Path.cwd()), ("your home folder", Path.home())):
            if place.resolve().is_relative_to(inside):
                remedy = f"It is or contains {name}. Give another directory."
                raise config_error("training.output_dir", run, "a directory that can be deleted", remedy)


def require_deletable(run: Path) -> None:
    """Refuse to delete a directory that is not exactly what runs write."""
    remedy = "Move it, or give another training.output_dir."
    if not (run / OVERWRITING).exists():
        try:
            is_ours = read_text(run / CONFIG) == to_yaml(from_yaml(run / CONFIG))
        except UserError as error:
            raise FileError.of(run / CONFIG, f"must be of a run, to be replaced ({error})", remedy) from None
        if not is_ours:
            reason = "must be as a run wrote it, to be replaced (got one that was written or edited manually)"
            raise FileError.of(run / CONFIG, reason, remedy)
    for path in _foreign(run):
        raise FileError.of(path, "was not written by a run, so its directory is not replaced", remedy)


def own_names(folder: Path) -> list[str]:
    """The names in a folder, without those that operating systems add to any folder."""
    return [name for name in names_in(folder) if not (name.lower() in SYSTEM or name.startswith(("._", ".nfs")))]


def _foreign(run: Path) -> Iterator[Path]:
    for name in own_names(run):
        path, plain = run / name, name.removeprefix(WRITING).removeprefix(OLD)
        if (
            plain not in OURS
            and not name.startswith(WRITING)
            or path.is_symlink()
            or (plain in FILES and not path.is_file())
        ):
            yield path
        elif plain in OURS and (pattern := OURS[plain]) is not None:
            if not path.is_dir():
                yield path
                continue
            for inner in own_names(path):
                if not inner.startswith((WRITING, OLD)) and not re.fullmatch(pattern, inner):
                    yield path / inner


def delete(run: Path) -> None:
    """Delete what runs write; after a kill, the directory counts as empty."""
    write_text(run / OVERWRITING, "")
    names = [name for name in own_names(run) if name != OVERWRITING]
    for name in sorted(names, key=lambda name: name == CONFIG):
        delete_whole(run / name) if name in OURS else remove_tree(run / name)
