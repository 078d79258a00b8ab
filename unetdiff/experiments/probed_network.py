"""The networks of `unetdiff experiment probe` with their images: of a run, with random weights, or a bare encoder."""

from __future__ import annotations

import argparse

import torch

from unetdiff.experiments.features import Features, NoiseLevel, PretrainedEncoderFeatures, open_features
from unetdiff.experiments.run_inputs import labeled_images
from unetdiff.reports.runs import Run
from unetdiff.segmentation.segmenter import Segmenter


class ProbedNetwork:
    """A network, the images it is probed on, and its segmentation head if it has one.

    Args:
        features: the frozen network.
        run: the run whose input size it has.
        first: the run whose images are used.
        segmenter: of the network, if it has a trained segmentation head.
    """

    def __init__(self, features: Features, run: Run, first: Run, segmenter: Segmenter | None = None) -> None:
        self.features, self.segmenter = features, segmenter
        self.train, self.val = labeled_images(run, first, "train"), labeled_images(run, first, "val")
        self.size = run.config["data"].get("size") or run.config["data"].get("longest_side")
        self.ignore_index = int((run.config.get("segmentation") or {}).get("ignore_index", 255))


def trained_network(
    run: Run, first: Run, levels: list[NoiseLevel], args: argparse.Namespace, device: torch.device
) -> ProbedNetwork:
    """The best weights of a run."""
    features = open_features(run, labeled_images(run, first, "val"), levels, args.seed, device)
    return ProbedNetwork(features, run, first, features.segmenter)


def random_network(run: Run, levels: list[NoiseLevel], args: argparse.Namespace, device: torch.device) -> ProbedNetwork:
    """Random weights of a run's config, on clean images."""
    features = open_features(run, labeled_images(run, run, "val"), levels, args.seed, device)
    return ProbedNetwork(features.with_random_weights("random weights", args.seed, [None]), run, run)


def encoder_network(first: Run, args: argparse.Namespace, device: torch.device) -> ProbedNetwork:
    """The pretrained encoder of `--encoder`, on clean images."""
    features = PretrainedEncoderFeatures(args.encoder, args.encoder_weights, args.encoder_min_size, device)
    return ProbedNetwork(features, first, first)
