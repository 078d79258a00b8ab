"""`unetdiff data ACTION`: what can be done with a data set before any training; one small file an action."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from unetdiff.errors import UserError, nearest

# action -> (module with `main(argv) -> exit status`, what it does)
ACTIONS = {
    "check": ("unetdiff.cli.data_check", "every fault of a set, with its file, value and remedy"),
    "stats": ("unetdiff.cli.data_stats", "classes of the masks with pixels, images and weights; captions"),
    "download": ("unetdiff.cli.data_download", "fetch PASCAL VOC 2012; build its split trainaug from SBD"),
}


def main(argv: Sequence[str]) -> int:
    """Hand over to one action; its exit status. Raises UserError without one."""
    if argv and argv[0] in ("-h", "--help", "help"):
        print("usage: unetdiff data ACTION ...\n\nactions:")
        for name, (_, what) in ACTIONS.items():
            print(f"  {name:<12}{what}")
        print("\n`unetdiff data ACTION --help` tells what an action takes.")
        return 0
    if not argv:
        raise UserError(f"unetdiff data: no action; one of {', '.join(ACTIONS)}")
    if argv[0] not in ACTIONS:
        near = nearest(argv[0], ACTIONS)
        raise UserError(f"unetdiff data: unknown action {argv[0]!r}; nearest: {near} (one of {', '.join(ACTIONS)})")
    return import_module(ACTIONS[argv[0]][0]).main(argv[1:])
