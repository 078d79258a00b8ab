"""`unetdiff data ACTION`: check a dataset, count it, or download one; one module per action."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from unetdiff.errors import UserError, did_you_mean

# action -> (module with `main(argv) -> exit status`, help)
ACTIONS = {
    "check": ("unetdiff.cli.data_check", "list every problem of a dataset with file, value and fix"),
    "stats": ("unetdiff.cli.data_stats", "count pixels and images per class, class weights, captions"),
    "download": ("unetdiff.cli.data_download", "download PASCAL VOC 2012; build its trainaug split from SBD"),
}


def main(argv: Sequence[str]) -> int:
    """Run one action; returns its exit status.

    Raises:
        UserError: no action, or an unknown one.
    """
    if argv and argv[0] in ("-h", "--help", "help"):
        print("usage: unetdiff data ACTION ...\n\nactions:")
        for name, (_, what) in ACTIONS.items():
            print(f"  {name:<12}{what}")
        print("\n`unetdiff data ACTION --help` lists an action's options.")
        return 0
    if not argv:
        raise UserError(f"no action. Give one of {', '.join(ACTIONS)}.")
    if argv[0] not in ACTIONS:
        near = f"{did_you_mean(argv[0], ACTIONS)} (one of {', '.join(ACTIONS)})".lstrip()
        raise UserError(f"unknown action {argv[0]!r}. {near}")
    return import_module(ACTIONS[argv[0]][0]).main(argv[1:])
