"""A network on disk and in other libraries: our own directories, diffusers' networks, segmentation_models_pytorch's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from unetdiff.errors import UserError
from unetdiff.export.convert import diffusers as interop
from unetdiff.export.convert import smp as interop_smp
from unetdiff.models import loading


class SerializationMixin(ModelMixin):  # type: ignore[misc]
    """The part of `UNet` that loads and saves."""

    optimized_for_inference: bool

    def refuse_if_optimized(self, what: str) -> None:
        """UserError where the weights are no longer those that the config describes."""
        if self.optimized_for_inference:
            raise UserError(f"{what}: this UNet was optimized for inference (BatchNorm folded); load it again for that")

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """Write config.json and diffusion_pytorch_model.safetensors; diffusers' other options are passed on.

        Raises:
            UserError: after `optimize_for_inference`.
        """
        self.refuse_if_optimized("save_pretrained")
        super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, *, subfolder: str | None = None, **kwargs: Any
    ) -> Self:
        """Load config.json and diffusion_pytorch_model.safetensors from a directory, strictly, in eval mode.

        `dtype` (or `torch_dtype`) and `variant` are honoured; diffusers' other loading options are accepted and not
        needed.

        Raises:
            UserError: for a missing or truncated file, a pickle, or a tensor that is missing, unexpected or of another
                shape, by name.
        """
        directory = Path(pretrained_model_name_or_path) / (subfolder or "")
        return loading.load(cls, directory, kwargs.get("dtype") or kwargs.get("torch_dtype"), kwargs.get("variant"))

    @classmethod
    def from_diffusers(
        cls,
        source: str | Path | ModelMixin,
        *,
        subfolder: str | None = None,
        variant: str | None = None,
        torch_dtype: torch.dtype | None = None,
    ) -> Self:
        """A `UNet2DModel` or `UNet2DConditionModel` of diffusers as a residual network of ours with a diffusion head.

        The same outputs from the same weights, which are copied, under other names; in eval mode. A segmentation head
        that `to_diffusers` has put beside them comes back.

        Args:
            source: a model, a model directory, or a pipeline directory with `unet/`.
            subfolder: of the directory.
            variant: of the file, e.g. "fp16" for diffusion_pytorch_model.fp16.safetensors.
            torch_dtype: None: the model's own, and float32 for a directory.

        Raises:
            UserError: for a config that the residual family cannot be, by key and value; for a missing or truncated
                file, a pickle, shards, or a tensor that is missing, unexpected or of another shape, by name.
        """
        return interop.load(cls, source, subfolder, variant, torch_dtype)

    def to_diffusers(self, directory: str | Path) -> None:
        """Write config.json and diffusion_pytorch_model.safetensors, which diffusers' `from_pretrained` loads.

        Without cross_attention_dim they are a `UNet2DModel`, which takes sizes that divide by 2 ** (levels - 1) only,
        with it a `UNet2DConditionModel`. A segmentation head goes into a file of its own, which diffusers passes over
        and `from_diffusers` reads. Other files in the directory stay.

        Raises:
            UserError: where diffusers has no such network, naming the key, its value and what to do.
            OSError: e.g. a full disk; no file is then half written.
        """
        self.refuse_if_optimized("to_diffusers")
        interop.save(self, Path(directory))

    @classmethod
    def from_smp(
        cls,
        source: str | Path | nn.Module | Mapping[str, Tensor],
        *,
        upsample: Literal["nearest", "bilinear"] | None = None,
        statistics: Literal["imagenet", "none"] = "imagenet",
        background: bool = False,
    ) -> Self:
        """A trained `smp.Unet` of segmentation_models_pytorch, with the same logits, in eval mode.

        Encoders resnet18, resnet34, resnet50, resnet101 and mobilenet_v2, with any input channels, decoder widths and
        classes. Images are given in [-1, 1] as everywhere here; the trunk restates them to what smp's
        `get_preprocessing_fn` makes (channels after the third stay as they are given).

        Args:
            source: a model, its state dict, a directory of its `save_pretrained`, or a safetensors file of its state
                dict. A state dict does not say what has no tensors: an activation after the logits is left out.
            upsample: smp's decoder_interpolation; None: as the source says, "nearest" where it does not.
            statistics: "none" for a model that was trained on pixels in [0, 1] without ImageNet's mean and deviation.
            background: for one class alone (smp's binary masks): a background with the logit 0 before it, so that
                softmax gives what the sigmoid gave, and argmax the class where its logit was above 0.

        Raises:
            UserError: a pickle, another network, or an option of smp that has no equal here, by name.
        """
        return interop_smp.load(cls, source, upsample, statistics, background)
