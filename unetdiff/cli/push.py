"""`unetdiff push RUN OWNER/NAME`: upload a run's model, with its model card, to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unetdiff.cli.model_path import output_folder
from unetdiff.cli.parser import Parser
from unetdiff.config.model_directory import model_directory
from unetdiff.errors import UserError, config_error, printable
from unetdiff.files.folders import files_in
from unetdiff.files.model_card import CARD, Card
from unetdiff.files.push import require_name, staged, upload
from unetdiff.files.writing import require_writable


def main(argv: Sequence[str]) -> int:
    """Upload, or with --dry_run write the folder that would be uploaded; prints its files.

    Raises:
        UserError: no model there, a name that is not OWNER/NAME, an output that exists, or the Hub refuses.
    """
    parser = Parser(
        "unetdiff push",
        "Upload a run's best weights (or a model directory) with a model card, the metrics and the sample images. "
        "`hf auth login` stores the token. Afterwards OWNER/NAME stands where a run or model directory is expected.",
    )
    parser.add_argument("path", type=Path, help="a run directory or a model directory")
    parser.add_argument("name", help="OWNER/NAME on the Hub; created if it does not exist")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--revision", help="branch; created if it does not exist (default: main)")
    parser.add_argument("--message", help="commit message")
    parser.add_argument("--dry_run", action="store_true", help="write the folder OWNER--NAME here instead of uploading")
    args = parser.parse_strictly(argv)
    source = model_directory(args.path)
    require_name(args.name)
    target = output_folder(Path(args.name)) if args.dry_run else None
    if target is not None:
        if target.exists():
            raise config_error("--dry_run", target, "a new folder", "Delete it, or run the command elsewhere.")
        require_writable("--dry_run", target, folder=True)

    with staged(source, target) as folder:
        _write_card(folder, source, args.name)
        for path in files_in(folder, recursive=True):
            print(f"{path.stat().st_size:>12,}  {printable(str(path.relative_to(folder)))}")
        if target is not None:
            print(f"{printable(str(target))}: written, nothing was uploaded")
            return 0
        private = True if args.private else None
        print(upload(folder, args.name, private=private, revision=args.revision, commit_message=args.message))
    return 0


def _write_card(folder: Path, source: Path, name: str) -> None:
    """The card of a run's model with its name on the Hub; of another directory its own, or a plain one."""
    from unetdiff.training.logger import CONFIG
    from unetdiff.training.run_card import step_of, write_run_card

    if (source.parent / CONFIG).is_file():
        write_run_card(folder, source.parent, name, step_of(source))
    elif not (folder / CARD).is_file():
        from unetdiff.models.unet import UNet

        config = UNet.read_config(folder / "unet")
        heads = [head for head in ("segmentation", "diffusion") if config["heads"][head] is not None]
        if not heads:
            raise UserError(f"{source}: must have a segmentation or a diffusion head.")
        loaders = {"segmentation.json": "SegmentationPipeline", "model_index.json": "GenerationPipeline"}
        Card(name, heads, [loader for file, loader in loaders.items() if (folder / file).is_file()]).write(folder)
