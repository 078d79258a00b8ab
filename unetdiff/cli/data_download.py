"""`unetdiff data download voc|sbd`: PASCAL VOC 2012, and its trainaug split with the masks of SBD."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from unetdiff.cli.parser import Parser

USAGE = "unetdiff data download {voc,sbd} --root DIR"
DESCRIPTION = "Download PASCAL VOC 2012 (2 GB), or SBD (1.4 GB) for its trainaug split; files that exist are kept."


def main(argv: Sequence[str]) -> int:
    """Download and build; prints where the dataset is and what to run next."""
    parser = Parser("unetdiff data download", DESCRIPTION, USAGE)
    parser.add_argument("dataset", choices=("voc", "sbd"), help="sbd requires voc in the same folder")
    where = "folder for the archives and VOCdevkit/VOC2012"
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", default=argparse.SUPPRESS, help=where)
    args = parser.parse_strictly(argv)

    from unetdiff.data.download import download_voc
    from unetdiff.data.masks.sbd import download_sbd
    from unetdiff.data.masks.voc_lists import read_ids

    root = shlex.quote(str(args.root))
    train = "unetdiff train segmentation"
    if args.dataset == "voc":
        print(f"VOC 2012 is in {download_voc(args.root)}")
        print(f"Next: {train} voc_resnet50_reference --data.root {root}")
        print(f"For 10,582 training images instead of 1,464: unetdiff data download sbd --root {root}")
    else:
        path = download_sbd(args.root)
        print(f"{path}: {len(read_ids(path))} training images, none of them in val")
        print(f"Next: {train} voc_resnet50 --data.root {root}")
        leftover = [str(args.root / name) for name in ("benchmark.tgz", "sbd") if (args.root / name).exists()]
        if leftover:
            print(f"No longer needed: {', '.join(leftover)}")
    return 0
