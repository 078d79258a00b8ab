"""Masks of photographs that no one labeled: the colors in the middle of an image against those around them.

    python examples/masks_from_colors.py flowers masks    # flowers/SPLIT/CLASS/x.jpg: masks/SPLIT/CLASS/x.png
    unetdiff train segmentation --data.name folders --data.root . --data.images flowers --data.masks masks \\
        --data.class_names "[background, daisy, …]"

Two mixtures of Gaussians of the colors, one of the foreground and one of the rest, are fitted in turn with the mask
that they make: GrabCut (Rother et al. 2004) without its graph, started from a disk in the middle. A pixel of the mask
is 0 (background) or 1 + the index of the image's folder. Single masks are wrong; a network that is trained on thousands
of them learns what they have in common.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms
from scipy import ndimage
from sklearn.mixture import GaussianMixture
from tqdm import tqdm

SIZE = 64
"""Height and width at which the colors are clustered."""
ROUNDS = 3
SRGB_TO_LAB = ImageCms.buildTransformFromOpenProfiles(
    ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
)


def foreground(image: Image.Image) -> np.ndarray:
    """Where the object in the middle of an image is, (SIZE, SIZE) bool."""
    small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)
    lab = np.asarray(ImageCms.applyTransform(small, SRGB_TO_LAB)).astype(np.int16)
    lab[..., 1:] = (lab[..., 1:] + 128) % 256 - 128  # a and b are stored modulo 256
    colors = lab.reshape(-1, 3).astype(float)
    rows, columns = np.mgrid[:SIZE, :SIZE] / (SIZE - 1) - 0.5
    radius = np.hypot(rows, columns)
    prior = np.clip(2.2 - 5.0 * radius, -3.0, 1.2)  # log odds of the foreground by place
    mask = radius < 0.27
    for _ in range(ROUNDS):
        inside, outside = (mixture(colors[part.ravel()]).score_samples(colors) for part in (mask, ~mask))
        odds = np.clip(inside - outside, -6.0, 6.0).reshape(SIZE, SIZE)
        update = ndimage.binary_opening(ndimage.gaussian_filter(odds, 1.2) + prior > 0)
        if not 0.03 < update.mean() < 0.95:
            break
        mask = update
    return mask


def mixture(colors: np.ndarray) -> GaussianMixture:
    """Four Gaussians of the colors, (N, 3)."""
    return GaussianMixture(4, reg_covar=4.0, tol=1e-2, max_iter=30, random_state=0).fit(colors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder with one sub-folder per split, and in it one per class")
    parser.add_argument("output", type=Path, help="folder for the masks, with the same sub-folders")
    args = parser.parse_args()
    classes = sorted({folder.name for folder in args.images.glob("*/*/")})
    if not classes:
        parser.error(f"{args.images}: no images in SPLIT/CLASS/")
    for path in tqdm(sorted(args.images.glob("*/*/*.jpg")), desc="masks", unit="image"):
        target = args.output / path.relative_to(args.images).with_suffix(".png")
        if target.exists():
            continue
        with Image.open(path) as image:
            small = Image.fromarray(foreground(image).astype(np.uint8) * 255)
            mask = np.asarray(small.resize(image.size, Image.Resampling.BILINEAR)) > 127
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask.astype(np.uint8) * (1 + classes.index(path.parent.name))).save(target)
    print(f"data.class_names: [background, {', '.join(classes)}]")


if __name__ == "__main__":
    main()
