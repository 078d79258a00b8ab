"""`unetdiff configs [NAME]`: the configs that come with the package, or one of them."""

from __future__ import annotations

from collections.abc import Sequence

from unetdiff.cli.parser import Parser
from unetdiff.config.shipped import find_config, shipped_configs, title_of
from unetdiff.files.texts import read_text
from unetdiff.text import aligned


def main(argv: Sequence[str]) -> int:
    """List names with their first comments, or print a config; returns 0.

    Raises:
        UserError: an unknown name.
    """
    parser = Parser(
        "unetdiff configs",
        "List the configs of the package; `unetdiff train TASK NAME` trains one. With a name, print it: "
        "unetdiff configs segmentation/scenes > mine.yaml",
    )
    parser.add_argument("name", nargs="?", help="TASK/NAME of a config to print")
    args = parser.parse_strictly(argv)
    if args.name is not None:
        print(read_text(find_config(args.name)), end="")
        return 0
    print("\n".join(aligned([(name, title_of(path)) for name, path in shipped_configs()], "<")))
    return 0
