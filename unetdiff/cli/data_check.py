"""`unetdiff data check`: every fault of a data set, before any training."""

from __future__ import annotations

from collections.abc import Sequence

from unetdiff.cli.parser import Parser, split_overrides
from unetdiff.errors import UserError

USAGE = "unetdiff data check [CONFIG] [--data.name NAME --data.root DIR ...]"


def main(argv: Sequence[str]) -> int:
    """Check both splits; prints a line for each fault. 0 for a set without faults, else 1."""
    overrides, words = split_overrides(argv, known=[])
    parser = Parser("unetdiff data check", "Look for faults in a data set: each with file, value and remedy.", USAGE)
    parser.add_argument("config", nargs="?", help="YAML file with a `data:` section")
    parser.add_argument(
        "--no-masks", action="store_true", help="leave masks out (a denoiser needs them for layouts only)"
    )
    parser.add_argument("--quick", action="store_true", help="decode images only where the file looks odd")
    given = parser.parse_strictly(words)
    if given.config is None and not overrides:
        raise UserError("unetdiff data check: nothing to check; give a config file, or --data.name and --data.root")

    from unetdiff.config.reading import parse
    from unetdiff.data.check import check
    from unetdiff.training.conditions import needs_layout

    config = parse(given.config, overrides)
    masks = (config.task != "diffusion" or needs_layout(config)) and not given.no_masks
    issues = check(config.data, masks=masks, full=not given.quick)
    for issue in issues:
        print(issue)
    name = config.data.name if config.data.root is None else f"{config.data.name} in {config.data.root}"
    print(f"{name}: {len(issues)} fault{'' if len(issues) == 1 else 's'} found" if issues else f"{name}: good")
    return 1 if issues else 0
