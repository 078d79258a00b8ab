"""Runs killed at chosen file operations and at random moments, then resumed: they must end as if never stopped.

    python benchmarks/kills.py --operations 100 --random 50      # about eight minutes on one core

Tiny segmentation, diffusion and joint trainings with validations, previews and checkpoints (one or two kept, also with
`--overwrite` of an earlier run) are killed with SIGKILL before, after or in the middle of a rename, a deletion, a new
directory, an fsync or a file opened for writing; half of the kills are in the last 20 operations of the run. They are
resumed with `--resume`, sometimes killed again, until they finish. Then all weights, the average, the optimizer,
`metrics.jsonl` and `summary.json` (all but times), `best/`, `latest/`, `config.yaml` and the images must be those of
an uninterrupted run, bit for bit, and the directory must hold the same files: nothing left from writing.

Exits with 1 on any difference. Linux only (fork).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from attacks import material
from attacks.operations import MOMENTS, Moment, Operations
from attacks.process import Result, command, preload, run_forked

LAST = 20
"""Operations at the end of a run that are killed more often."""
AGAIN = 0.3
"""Probability that a resumed run is killed, too."""
MAX_SESSIONS = 6
LIMIT = 60.0
TIMES = {"minutes", "train_minutes", "images_per_second", "data_wait", "command", "peak_memory", "machine", "versions"}
"""Keys of records that depend on the clock, the machine or the session."""
UNCOMPARED = ("tensorboard",)
"""Folders whose files are named by the time."""

SETTINGS = ["--training.steps", "6", "--training.validate_every", "3", "--training.log_every", "2"]
VARIANTS: dict[str, tuple[str, list[str], bool]] = {
    "segmentation, 2 kept": ("seg", ["--training.checkpoint_every", "2", "--training.keep_checkpoints", "2"], False),
    "diffusion, 1 kept": ("diff", ["--training.checkpoint_every", "3", "--training.keep_checkpoints", "1"], False),
    "joint, 1 kept": ("joint", ["--training.checkpoint_every", "1", "--training.keep_checkpoints", "1"], False),
    "segmentation, overwriting": ("seg", ["--training.checkpoint_every", "3"], True),
    "joint, overwriting": ("joint", ["--training.checkpoint_every", "2"], True),
}
"""Name -> config, options, whether the directory holds an earlier run."""


@dataclass(frozen=True)
class Variant:
    """A training with what its uninterrupted run left."""

    name: str
    argv: tuple[str, ...]
    uses: tuple[str, ...]
    overwrites: bool
    reference: Path
    """Directory of the uninterrupted run."""
    operations: int
    """Operations on files of that run."""
    seconds: float


@dataclass(frozen=True)
class Kill:
    """When a session is killed: at an operation, or after seconds."""

    number: int | None = None
    moment: Moment = "before"
    seconds: float | None = None

    def __str__(self) -> str:
        if self.number is None:
            return "never" if self.seconds is None else f"after {self.seconds:.2f} s"
        return f"{self.moment} operation {self.number}"


def session(variant: Variant, folder: Path, flags: list[str], kill: Kill, log: Path | None = None) -> Result:
    """One process of the run in `folder`/run."""

    def run() -> int:
        Operations(folder / "run", kill.number, kill.moment, log).install()
        return command([*variant.argv, *flags])()

    return run_forked(run, folder, folder.with_name(f"{folder.name}.streams"), LIMIT, kill_after=kill.seconds)


def prepare(made: Path, root: Path, name: str) -> Variant:
    """Train a variant without interruption; counts its operations."""
    config, options, overwrites = VARIANTS[name]
    argv = (
        "train",
        str(material.CONFIGS[config]["task"]),
        f"{config}.yaml",
        "--output_dir",
        "run",
        *SETTINGS,
        *options,
    )
    uses = {"seg": ("seg.yaml", "voc"), "diff": ("diff.yaml", "images"), "joint": ("joint.yaml",)}[config]
    folder, log = root / f"reference {name}", root / f"operations {name}"
    draft = Variant(name, argv, uses, overwrites, folder / "run", 0, 0.0)
    new_folder(made, draft, folder)
    result = session(draft, folder, ["--overwrite"] if overwrites else [], Kill(), log)
    if result.status != 0:
        raise RuntimeError(f"{name}: the uninterrupted run failed\n{result.stderr}")
    count = len(log.read_text().splitlines())
    return Variant(name, argv, uses, overwrites, folder / "run", count, result.seconds)


def new_folder(made: Path, variant: Variant, folder: Path) -> None:
    """The directory that a run starts in, with an earlier run of another seed where it overwrites one."""
    material.copy(made, variant.uses, folder)
    if not variant.overwrites:
        return
    earlier = made.parent / f"earlier {variant.name}"
    if not earlier.is_dir():
        material.copy(made, variant.uses, earlier)
        draft = session(variant, earlier, ["--training.seed", "7", "--training.steps", "2"], Kill())
        if draft.status != 0:
            raise RuntimeError(f"{variant.name}: the earlier run failed\n{draft.stderr}")
    shutil.copytree(earlier / "run", folder / "run")


def choose(variant: Variant, by_operation: bool, rng: random.Random) -> Kill:
    """A moment of the run: half of the operations are among the last ones."""
    if not by_operation:
        return Kill(seconds=rng.uniform(0, variant.seconds))
    total = variant.operations
    number = rng.randint(max(1, total - LAST + 1), total) if rng.random() < 0.5 else rng.randint(1, total)
    return Kill(number, rng.choice(MOMENTS))


def killed_and_resumed(
    variant: Variant, made: Path, folder: Path, by_operation: bool, rng: random.Random
) -> tuple[int, str]:
    """Kill a run, resume it until it is done; (kills, what is wrong or "")."""
    new_folder(made, variant, folder)
    kill, kills, story = choose(variant, by_operation, rng), 0, []
    flags = ["--overwrite"] if variant.overwrites else []
    for _ in range(MAX_SESSIONS):
        result = session(variant, folder, flags, kill)
        story.append(str(kill))
        if result.status == 0:
            wrong = difference(variant.reference, folder / "run")
            return kills, f"{wrong} (killed {', '.join(story)})" if wrong else ""
        if result.signal != 9 or result.hung:
            words = result.stderr.strip().splitlines() or ["(no output)"]
            if result.status == 2 and variant.overwrites and flags == ["--resume"]:
                flags, kill = ["--overwrite"], Kill()  # the new run had not begun: the command is given again
                continue
            return (
                kills,
                f"{' '.join(flags)}: exit status {result.status}: {words[-1][:300]} (killed {', '.join(story)})",
            )
        kills += 1
        flags, kill = ["--resume"], choose(variant, by_operation, rng) if rng.random() < AGAIN else Kill()
    return kills, f"still not done after {MAX_SESSIONS} sessions ({', '.join(story)})"


# ------------------------------------------------------------------------------------------ comparison


def difference(reference: Path, run: Path) -> str:
    """The first difference between two run directories, times aside; "" if there is none."""
    expected, found = listing(reference), listing(run)
    if found != expected:
        more, less = sorted(found - expected), sorted(expected - found)
        return f"leftovers: {', '.join(more[:5])}" if more else f"missing: {', '.join(less[:5])}"
    for name in sorted(expected):
        one, other = reference / name, run / name
        if one.is_dir() or one.read_bytes() == other.read_bytes():
            continue
        if one.suffix not in (".json", ".jsonl"):
            return f"differs: {name}"
        if timeless(one) != timeless(other):
            return f"differs: {name}: {first_key(timeless(one), timeless(other))}"
    return ""


def listing(run: Path) -> set[str]:
    """Every file and folder of a run directory, relative, but for those named by the time."""
    names = {str(path.relative_to(run)) for path in run.rglob("*")}
    return {name for name in names if not any(name.startswith(f"{folder}/") for folder in UNCOMPARED)}


def timeless(path: Path) -> list[Any]:
    """The lines of a record without the keys that depend on the clock."""
    text = path.read_text(encoding="utf-8")
    entries = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
    return [
        {k: v for k, v in entry.items() if k not in TIMES} if isinstance(entry, dict) else entry for entry in entries
    ]


def first_key(one: list[Any], other: list[Any]) -> str:
    """Where two records differ, in words."""
    if len(one) != len(other):
        return f"{len(one)} and {len(other)} lines"
    for number, (a, b) in enumerate(zip(one, other, strict=True)):
        for key in dict.fromkeys((*a, *b)):
            if a.get(key) != b.get(key) and str(a.get(key)) != str(b.get(key)):
                return f"line {number + 1}, {key}: {str(a.get(key))[:80]} and {str(b.get(key))[:80]}"
    return "only NaN"


# ------------------------------------------------------------------------------------------------ main


def run_all(
    variants: list[Variant], made: Path, root: Path, counts: tuple[int, int], seed: int, keep: bool
) -> Counter[str]:
    """Kill and resume so many runs at operations and at random moments; prints each failure."""
    totals: Counter[str] = Counter()
    start = time.monotonic()
    for number in range(sum(counts)):
        variant, by_operation = variants[number % len(variants)], number < counts[0]
        folder = root / f"{number:03d}"
        kills, wrong = killed_and_resumed(variant, made, folder, by_operation, random.Random(f"{seed}/{number}"))
        totals += Counter(runs=1, killed=min(kills, 1), kills=kills, identical=int(not wrong))
        if wrong:
            what = wrong.partition(":")[0]
            totals[what if what in ("leftovers", "missing", "differs") else "not resumed"] += 1
            print(f"run {number}, {variant.name}: {wrong}", flush=True)
        if not (keep and wrong):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(f"{folder}.streams", ignore_errors=True)
        if sys.stderr.isatty():
            print(f"\r{number + 1}/{sum(counts)}, {time.monotonic() - start:.0f} s ", end="", file=sys.stderr)
    return totals


def build_parser() -> argparse.ArgumentParser:
    """The script's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=100, help="runs killed at operations (default: 100)")
    parser.add_argument("--random", type=int, default=50, help="runs killed at random moments (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS), help="trainings")
    parser.add_argument("--keep", action="store_true", help="keep the directories of runs that differ")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run; returns 1 on any difference."""
    args = build_parser().parse_args(argv)
    start = time.monotonic()
    root = Path(mkdtemp(prefix="kills-"))
    preload()
    made = root / "material"
    material.make(made, [])
    variants = [prepare(made, root, name) for name in args.variants]
    for variant in variants:
        print(f"{variant.name}: {variant.operations} operations, {variant.seconds:.1f} s", flush=True)
    totals = run_all(variants, made, root, (args.operations, args.random), args.seed, args.keep)
    print("\n| runs | killed | kills | identical | not resumed | differs | missing | leftovers |\n|" + "---|" * 8)
    keys = ("runs", "killed", "kills", "identical", "not resumed", "differs", "missing", "leftovers")
    print("| " + " | ".join(str(totals[key]) for key in keys) + " |")
    print(f"\n{totals['runs']} runs in {(time.monotonic() - start) / 60:.1f} minutes")
    if not args.keep:
        shutil.rmtree(root, ignore_errors=True)
    return 0 if totals["identical"] == totals["runs"] else 1


if __name__ == "__main__":
    sys.exit(main())
