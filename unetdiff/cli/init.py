"""`unetdiff init PATH`: look at a folder, say what it holds, and write a config that trains on it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unetdiff.cli.parser import Parser
from unetdiff.errors import FileError, printable
from unetdiff.files.writing import file_errors, make_folder, require_writable, write_text

if TYPE_CHECKING:
    from unetdiff.cli.init_facts import Facts
    from unetdiff.config.schema import RunConfig

USAGE = "unetdiff init PATH [--output CONFIG.yaml] [--weights imagenet|FILE|null] [--overwrite]"


def main(argv: Sequence[str]) -> int:
    """Describe the dataset, write the config and check the data; returns 0, or 1 where the data has problems.

    Raises:
        UserError: a folder without a dataset, or a config that exists.
    """
    about = "Look at a folder: its images, masks, encoding, classes and sizes; write a config with a reason per choice."
    parser = Parser("unetdiff init", about, USAGE)
    parser.add_argument("path", type=Path, help="folder with the data")
    parser.add_argument("--output", type=Path, help="config to write (default: NAME.yaml here, by the folder's name)")
    parser.add_argument(
        "--weights", default="imagenet", help="of the segmenter's encoder: imagenet, a safetensors file, or null"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing config")
    args = parser.parse_strictly(argv)

    path: Path = args.path
    name = re.sub(r"\W+", "_", path.resolve().name) or "data"
    output: Path = args.output or Path(f"{name}.yaml")
    if os.path.lexists(output) and not args.overwrite:
        remedy = "--overwrite replaces it, with your edits; --output NAME.yaml writes another."
        raise FileError.of(output, "exists already", remedy)
    require_writable("--output", output.parent, folder=True)

    from unetdiff.cli.init_config import config_text, next_commands  # imports torch
    from unetdiff.cli.init_facts import gather
    from unetdiff.config.reading import load
    from unetdiff.data.check import check
    from unetdiff.data.discovery.discover import discover

    facts = gather(discover(path))
    for line in describe(facts):
        print(line)
    text = config_text(facts, name, output, args.weights)
    with file_errors(output, "Give another path for --output."):
        make_folder(output.parent)
        write_text(output, text)
    config = load(output)
    issues = check(config.data, masks=facts.found.task == "segmentation", full=False, progress=False)
    for issue in issues[:5]:
        print(issue)
    if issues:
        more = f", {len(issues) - 5} more" if len(issues) > 5 else ""
        print(f"{len(issues)} problem{'' if len(issues) == 1 else 's'} found{more}: see `unetdiff data check {output}`")
    print(f"\nwrote {printable(str(output))}. Next:")
    for command in next_commands(facts, name, output):
        print(f"  {command}")
    for line in about_training(config, facts):
        print(line)
    return 1 if issues else 0


def describe(facts: Facts) -> list[str]:
    """What was found, as lines."""
    from unetdiff.data.issues import first_values

    lines = [f"{printable(str(facts.found.root))}: {facts.found.kind}", f"  images   {facts.images}"]
    if facts.found.masks is not None:
        lines.append(
            f"  masks    {facts.found.masks.files}, {facts.found.masks.describe()} ({facts.found.masks.encoding})"
        )
    if facts.classes and (facts.found.task == "segmentation" or facts.found.condition == "class"):
        lines.append(f"  classes  {facts.class_line}")
    if facts.problem:
        lines.append(f"  problem  {facts.problem}")
    elif facts.imbalance:
        lines.append(f"  balance  {facts.imbalance}")
    lines.append(f"  splits   {facts.splits}")
    if facts.found.left_out:
        shown = first_values([printable(str(one)) for one in facts.found.left_out])
        lines.append(f"  left out {shown}: environments, packages or runs")
    if facts.found.hint:
        lines.append(f"  note     {facts.found.hint}")
    return lines


def about_training(config: RunConfig, facts: Facts) -> list[str]:
    """How long it trains and how to shorten that; that weights are downloaded, and how to go without."""
    from unetdiff.cli.init_config import rounded

    epochs = config.training.epochs or 1
    steps = round(epochs * facts.num_train / config.training.batch_size)
    lines = [f"It trains for {epochs:g} epochs ({steps:,} steps). Shorter: --training.epochs {rounded(0.3 * epochs)}"]
    if config.model.encoder.weights == "imagenet":
        lines.append(
            f"The first training downloads the weights of {config.model.encoder.name}. Without a network: "
            "--model.encoder.weights null (random weights, which learn less from few images)"
        )
    return lines
