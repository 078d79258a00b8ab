"""`python -m unetdiff` and `accelerate launch -m unetdiff train ...`."""

from __future__ import annotations

import sys

from unetdiff.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
