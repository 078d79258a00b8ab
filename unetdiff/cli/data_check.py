"""`unetdiff data check`: every problem of a dataset, before training."""

from __future__ import annotations

from collections.abc import Sequence

from unetdiff.cli.parser import Parser, split_overrides
from unetdiff.errors import UserError, printable

USAGE = "unetdiff data check [CONFIG] [--data.name NAME --data.root DIR ...]"


def main(argv: Sequence[str]) -> int:
    """Check both splits and print a line per problem; returns 0 if there is none, else 1."""
    overrides, words = split_overrides(argv, known=[])
    parser = Parser("unetdiff data check", "List every problem of a dataset: file, value and suggested fix.", USAGE)
    parser.add_argument("config", nargs="?", help="YAML file with a `data:` section")
    parser.add_argument(
        "--no_masks", action="store_true", help="skip the masks (a denoiser needs them only for layouts)"
    )
    parser.add_argument("--quick", action="store_true", help="decode an image only if its file looks damaged")
    args = parser.parse_strictly(words)
    if args.config is None and not overrides:
        raise UserError("nothing to check. Give a config file, or --data.name and --data.root.")

    from unetdiff.config.reading import parse
    from unetdiff.config.validation.data import needs_layout
    from unetdiff.data.check import examine

    config = parse(args.config, overrides)
    masks = (config.task != "diffusion" or needs_layout(config)) and not args.no_masks
    report = examine(config.data, masks=masks, full=not args.quick)
    issues = report.issues
    for line in (*issues, *(printable(f"note: {note}") for note in report.notes)):
        print(line)
    name = config.data.name if config.data.root is None else f"{config.data.name} in {config.data.root}"
    print(f"{printable(name)}: {len(issues) or 'no'} problem{'' if len(issues) == 1 else 's'} found")
    return 1 if issues else 0
