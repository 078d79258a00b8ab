"""`unetdiff app RUN ...`: a local page to segment, generate and compare with trained models."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from unetdiff.app.port import require_free_port
from unetdiff.cli.inference import chosen_device
from unetdiff.cli.model_path import HELP, local_model
from unetdiff.cli.parser import Parser
from unetdiff.console import say
from unetdiff.errors import UserError
from unetdiff.files.writing import temporary_folder


def main(argv: Sequence[str]) -> int:
    """Serve the page until Ctrl-C.

    Raises:
        UserError: gradio is not installed, a run that cannot be loaded, or a port that is not free.
    """
    args = _parser().parse_strictly(argv)
    if args.port is not None:
        require_free_port(args.port)
    paths = [local_model(path, "RUN") for path in args.runs]
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    for name in ("NO_PROXY", "no_proxy"):  # gradio's own requests to the page
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
    require_gradio()
    say(f"Loading {', '.join(map(str, paths))} …", sys.stdout)

    from unetdiff.app.page import build_page, serve
    from unetdiff.app.runs import load_runs

    device = chosen_device(args.device)
    runs = load_runs(paths, device)
    with temporary_folder() as folder:  # of uploads and results
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        if args.share:
            say("unetdiff: --share: everyone who has the public address can use the page until it is stopped.")
        serve(build_page(runs), args.port, args.share, lambda line: say(line, sys.stdout))
    return 0


def require_gradio() -> None:
    """UserError if gradio is not installed."""
    if find_spec("gradio") is None:
        raise UserError("The page needs gradio. Run `pip install 'unetdiff[app]'`.")


def _parser() -> Parser:
    parser = Parser("unetdiff app", "Segment, generate and compare with trained models on a local page.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=HELP)
    parser.add_argument("--port", type=int, help="port of the page (default: the first free one from 7860)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if available)")
    parser.add_argument("--share", action="store_true", help="also give the page a public address, through gradio.live")
    return parser
