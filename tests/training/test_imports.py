"""What an import of the training package loads."""

from __future__ import annotations

import subprocess
import sys

LATER = ("evaluation", "benchmark", "reports", "experiments", "cli")


def test_train_is_imported_lazily_and_without_later_rooms() -> None:
    code = (
        "import sys, unetdiff.training; assert 'torch' not in sys.modules;"
        "from unetdiff.training import train; assert callable(train);"
        f"print([name for name in sys.modules if name.startswith(tuple('unetdiff.' + room for room in {LATER}))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
