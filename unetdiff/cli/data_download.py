"""`unetdiff data download voc|sbd`: PASCAL VOC 2012 onto the disk, and its split trainaug with SBD's masks."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from unetdiff.cli.parser import Parser

USAGE = "unetdiff data download {voc,sbd} --root DIR"
WHAT = (
    "Fetch PASCAL VOC 2012 (2 GB), or build its split trainaug from SBD (1.4 GB more); done already: nothing is done."
)


def main(argv: Sequence[str]) -> int:
    """Fetch and build; prints where the set is and what to run next."""
    parser = Parser("unetdiff data download", WHAT, USAGE)
    parser.add_argument("set", choices=("voc", "sbd"), help="which set; sbd needs voc in the same folder")
    folder = "folder for the archives and VOCdevkit/VOC2012"
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", default=argparse.SUPPRESS, help=folder)
    given = parser.parse_strictly(argv)

    from unetdiff.data.download import download_voc
    from unetdiff.data.sbd import download_sbd

    root = shlex.quote(str(given.root))
    train = "unetdiff train segmentation configs/segmentation"
    if given.set == "voc":
        print(f"VOC 2012 is in {download_voc(given.root)}")
        print(f"Next: {train}/voc_resnet50_reference.yaml --data.root {root}")
        print(f"For 10,582 training images instead of 1,464: unetdiff data download sbd --root {root}")
    else:
        path = download_sbd(given.root)
        print(f"{path}: {len(path.read_text(encoding='utf-8').split())} training images, none of them in val")
        print(f"Next: {train}/voc_resnet50.yaml --data.root {root}")
        left = [str(given.root / name) for name in ("benchmark.tgz", "sbd") if (given.root / name).exists()]
        if left:
            print(f"No longer needed: {', '.join(left)}")
    return 0
