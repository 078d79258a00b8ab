"""The tokens of a segmenter's cross-attention, encoded once when a training starts (`segmentation.context`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.diffusion.conditioning.text_encoder import CachedFeatures, TextEncoder
from unetdiff.errors import config_error
from unetdiff.files.tensors import read_header
from unetdiff.segmentation.context import SegmentationContext
from unetdiff.training import checkpoints
from unetdiff.training.pretrained import component_path

if TYPE_CHECKING:
    from unetdiff.config.schema import RunConfig

TEXT = "segmentation_context.text"
"""The tokens in a checkpoint."""
TEMPLATE = "a photo of a {}"


def build_context(config: RunConfig, train: ImageDataset) -> SegmentationContext | None:
    """The context of a run; None for `segmentation.context=none`.

    Its tokens are constant, and in every checkpoint: a run that is resumed from one needs no text encoder, unless it
    reads captions.

    Raises:
        UserError: the text encoder cannot be loaded, or the network's tokens have another width.
    """
    kind, dim = config.segmentation.context, config.model.conditioning.cross_attention_dim
    if config.task == "diffusion" or kind == "none":
        return None
    checkpoint = checkpoints.newest(Path(config.training.output_dir)) if config.training.resume else None
    if checkpoint is not None and kind != "caption":
        header = read_header(checkpoint / checkpoints.MODEL)
        if TEXT in header and len(header[TEXT].shape) == 2:  # else refused when the checkpoint is loaded
            return SegmentationContext(*header[TEXT].shape, adapter=kind == "classes")
    name = config.diffusion.text.encoder
    encoder = TextEncoder.from_pretrained(component_path(config, name), padded=kind != "classes")
    if encoder.width != dim:
        constraint = f"{encoder.width}, the width of diffusion.text.encoder={name}, with segmentation.context={kind}"
        raise config_error("model.conditioning.cross_attention_dim", dim, constraint)
    text = class_embeddings(encoder, train.classes) if kind == "classes" else encoder([""])[0]
    context = SegmentationContext(len(text), encoder.width, adapter=kind == "classes", captions=kind == "caption")
    context.text.copy_(text)  # type: ignore[operator]
    if context.reads_captions:
        folder = config.diffusion.text.cache_dir
        captions = [train.caption(index) for index in range(len(train))]
        context.features = CachedFeatures(encoder, captions, None if folder is None else Path(folder))
    return context


def class_embeddings(encoder: TextEncoder, classes: Sequence[str]) -> Tensor:
    """One embedding per class name, (classes, width): the hidden state of the last token of "a photo of a NAME".

    For CLIP that is the end-of-text token, whose state is its text feature (Radford et al. 2021, section 2.4).
    """
    states = encoder([TEMPLATE.format(name.replace("_", " ")) for name in classes])  # (C, n, width), zeros at the end
    last = (states.abs().amax(dim=2) > 0).sum(dim=1) - 1
    return states[torch.arange(len(classes)), last]
