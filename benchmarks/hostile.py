"""What breaks: at least a thousand `unetdiff` commands on hostile input, each of which must end well.

    python benchmarks/hostile.py --commands 1000 --seed 0        # about ten minutes on one core
    python benchmarks/hostile.py --only image --list             # the commands of a kind
    python benchmarks/hostile.py --case "list/train BOM, check" --keep

Broken images, masks, lists, captions, tables, YAML, checkpoints, model directories, records, command lines and paths:
named cases of every kind, spread over all of them (`--named` runs them all), and mutations by seed. Each command runs
in a process of its own, in a directory of its own with a copy of valid data and tiny trained runs, one file of which
was broken. It fails if

- it ends with a traceback, by a signal, after more than 20 seconds, with more than 2 GB of memory, or with an exit
  status that is not documented;
- it accepts what must be refused, refuses what is valid, or its refusal is longer than a few lines or does not name
  the file;
- it writes control characters to the terminal, changes or deletes data, runs code from a file, leaves temporary files,
  or writes records that are not JSON.

Exits with 1 if any failed. Linux only (fork, pidfd).
"""

from __future__ import annotations

import argparse
import math
import random
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

from attacks import command_cases, data_cases, material, model_cases, table_cases
from attacks.case import Case, fault, snapshot
from attacks.process import TIME_LIMIT, command, preload, run_forked

KINDS: dict[str, tuple[Callable[[], Iterator[Case]], Callable[[int], Case] | None]] = {
    "image": (data_cases.image_cases, data_cases.image_mutations),
    "mask": (data_cases.mask_cases, data_cases.mask_mutations),
    "list": (data_cases.list_cases, data_cases.list_mutations),
    "captions": (table_cases.caption_cases, table_cases.caption_mutations),
    "parquet": (table_cases.parquet_cases, table_cases.parquet_mutations),
    "checkpoint": (model_cases.checkpoint_cases, model_cases.checkpoint_mutations),
    "model": (model_cases.model_cases, model_cases.model_mutations),
    "record": (model_cases.record_cases, model_cases.record_mutations),
    "yaml": (command_cases.yaml_cases, command_cases.yaml_mutations),
    "option": (command_cases.option_cases, None),
    "path": (command_cases.path_cases, None),
    "directory": (command_cases.directory_cases, None),
}
"""Kind -> its named cases, and a mutation by number."""


def choose(commands: int, kinds: list[str], seed: int = 0) -> list[Case]:
    """So many cases, as many of each kind: three quarters of a kind are named cases, the rest are mutations.

    Where a kind has more named cases than that, every so many of them is taken, from another first one for each seed.
    """
    chosen: list[Case] = []
    available = {kind: math.inf if KINDS[kind][1] else sum(1 for _ in KINDS[kind][0]()) for kind in kinds}
    kinds = sorted(kinds, key=lambda kind: available[kind])  # what some lack, the later ones have more of
    for index, kind in enumerate(kinds):
        share = (commands - len(chosen)) // (len(kinds) - index)
        name_cases, mutate = KINDS[kind]
        named = list(name_cases())
        count = min(len(named), share if mutate is None else share - share // 4)
        first = random.Random(f"{seed}/{kind}").randrange(len(named))
        chosen += [named[(first + i * len(named) // count) % len(named)] for i in range(count)]
        if mutate is not None:
            chosen += [mutate(1000 * seed + i) for i in range(share - count)]
    return chosen


def run_case(case: Case, made: Path, scratch: Path, seed: int, limit: float = TIME_LIMIT) -> tuple[str, str] | None:
    """Run one case in a new directory; (verdict, detail) if it ended wrongly."""
    material.copy(made, case.uses, scratch)
    streams = scratch.with_name(f"{scratch.name}.streams")
    try:
        if case.before:
            result = run_forked(command(case.before), scratch, streams)
        case.spoil(scratch, random.Random(f"{seed}/{case.title}"))
        before = snapshot(scratch, case)
        result = run_forked(command(case.argv), scratch, streams, limit, case.stdin)
        wrong = fault(case, result, scratch, before)
        if wrong is None and result.status == 0 and case.check is not None:
            complaint = case.check(scratch, result)
            wrong = ("wrong output", complaint) if complaint else None
        return wrong
    finally:
        for path in scratch.rglob("*"):
            if not path.is_symlink() and path.is_dir():
                path.chmod(0o755)


def run_all(
    cases: list[Case], made: Path, scratch: Path, seed: int, keep: bool, limit: float = TIME_LIMIT
) -> Counter[tuple[str, str]]:
    """Run all cases; prints each failure at once and returns the counts by (kind, verdict)."""
    counts: Counter[tuple[str, str]] = Counter()
    start = time.monotonic()
    for number, case in enumerate(cases):
        folder = scratch / f"{number:04d}"
        try:
            wrong = run_case(case, made, folder, seed, limit)
        except Exception as error:  # of the case itself: its output could not even be read
            wrong = ("wrong output", f"{type(error).__name__}: {error}")
        counts[case.kind, wrong[0] if wrong else "ok"] += 1
        if wrong:
            print(f"{case.title}: {wrong[0]}: {wrong[1]!s}\n    unetdiff {shlex.join(case.argv)}", flush=True)
        if not (keep and wrong):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(f"{folder}.streams", ignore_errors=True)
        if sys.stderr.isatty():
            print(f"\r{number + 1}/{len(cases)}, {time.monotonic() - start:.0f} s ", end="", file=sys.stderr)
    return counts


def table(counts: Counter[tuple[str, str]]) -> str:
    """Counts by kind and verdict as Markdown."""
    verdicts = ["ok", *sorted({verdict for _, verdict in counts} - {"ok"})]
    kinds = list(dict.fromkeys(kind for kind, _ in counts))
    lines = ["| kind | commands | " + " | ".join(verdicts) + " |", "|---" * (2 + len(verdicts)) + "|"]
    for kind in (*kinds, "all"):
        row = [sum(n for (k, v), n in counts.items() if kind in (k, "all") and v == verdict) for verdict in verdicts]
        lines.append(f"| {kind} | {sum(row)} | " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The script's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", type=int, default=1000, help="number of commands (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (default: 0)")
    parser.add_argument("--only", nargs="+", choices=tuple(KINDS), default=list(KINDS), help="kinds of input")
    parser.add_argument("--case", nargs="+", metavar="TITLE", help="run these cases only")
    parser.add_argument("--list", action="store_true", help="print the cases and their commands without running them")
    parser.add_argument("--limit", type=float, default=TIME_LIMIT, help="seconds before a command counts as hung")
    parser.add_argument("--keep", action="store_true", help="keep the directories of commands that fail")
    parser.add_argument("--named", action="store_true", help="the named cases only, all of them")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run; returns 1 if any command ended wrongly."""
    args = build_parser().parse_args(argv)
    if args.named:
        cases = [case for kind in args.only for case in KINDS[kind][0]()]
    else:
        cases = choose(args.commands, args.only, args.seed)
    if args.case:
        everything = [case for named, _ in KINDS.values() for case in named()]
        everything += [
            mutate(1000 * args.seed + i) for _, mutate in KINDS.values() if mutate for i in range(args.commands)
        ]
        cases = [case for case in everything if case.title in args.case]
    if args.list:
        for case in cases:
            print(f"{case.title}: unetdiff {shlex.join(case.argv)}")
        return 0
    start = time.monotonic()
    root = Path(mkdtemp(prefix="hostile-"))
    preload()
    material.make(root / "material")
    print(f"{len(cases)} commands in {root}, prepared in {time.monotonic() - start:.0f} s", flush=True)
    counts = run_all(cases, root / "material", root, args.seed, args.keep, args.limit)
    print(f"\n{table(counts)}\n\n{len(cases)} commands in {(time.monotonic() - start) / 60:.1f} minutes")
    if not args.keep:
        shutil.rmtree(root, ignore_errors=True)
    return 0 if all(verdict == "ok" for _, verdict in counts) else 1


if __name__ == "__main__":
    sys.exit(main())
