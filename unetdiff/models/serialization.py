"""Saving and loading, and conversion from and to diffusers and segmentation_models_pytorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, Unpack

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from unetdiff.errors import UserError
from unetdiff.files.hub import HubOptions, resolved
from unetdiff.files.push import PushMixin
from unetdiff.models import loading
from unetdiff.models.adapters import AdapterMixin
from unetdiff.models.weights_files import hub_patterns

NO_EFFECT = ("low_cpu_mem_usage", "use_safetensors", "disable_mmap")
"""Options of diffusers' `from_pretrained` that do not change what is loaded."""


class SerializationMixin(PushMixin, AdapterMixin, ModelMixin):  # type: ignore[misc]
    """The loading and saving methods of `UNet`."""

    optimized_for_inference: bool

    def refuse_if_optimized(self, what: str) -> None:
        """UserError after `accelerate_inference_`: the config no longer describes the weights."""
        if self.optimized_for_inference:
            raise UserError(f"{what}: this UNet was optimized for inference (BatchNorm folded). Load it again.")

    def card_facts(self) -> dict[str, Any]:
        """Arguments of the model card."""
        encoder = self.config["encoder"]["name"]
        return {"heads": list(self.heads), "about": f"A U-Net ({encoder}) with a {' and a '.join(self.heads)} head"}

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """Write config.json and diffusion_pytorch_model.safetensors; diffusers' other options are passed on.

        Raises:
            UserError: after `accelerate_inference_`, or with an adapter.
        """
        self.refuse_if_optimized("save_pretrained")
        self.require_no_adapter("save_pretrained")
        super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        subfolder: str | None = None,
        variant: str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> Self:
        """Load config.json and diffusion_pytorch_model.safetensors, also in shards, strictly, in eval mode.

        A directory of diffusers' `UNet2DModel` or `UNet2DConditionModel` is loaded as by `from_diffusers`.

        Args:
            pretrained_model_name_or_path: a directory, or owner/model on the Hub: of a network, or of a pipeline with
                its network in unet/.
            subfolder: of the directory or of the model on the Hub.
            variant: of the files, e.g. "fp16" for diffusion_pytorch_model.fp16.safetensors.
            dtype: of the weights; None: float32.
            options: torch_dtype (as dtype), those of the Hub (`files.hub.HubOptions`: revision, cache_dir, token,
                local_files_only, force_download), and those of diffusers that change nothing here.

        Raises:
            UserError: a missing or truncated file, a pickle, a tensor that is missing, unexpected or of another shape,
                or an option that is not supported, by name.
        """
        dtype = options.pop("torch_dtype", None) or dtype
        hub = {name: options.pop(name) for name in HubOptions.__annotations__ if name in options}
        for name, value in options.items():
            if name not in NO_EFFECT and value not in (None, False):
                raise UserError(f"from_pretrained: {name}={value}: must be None, as it is not supported.")
        if options.get("use_safetensors") is False:
            raise UserError(
                "from_pretrained: use_safetensors=False: must be None or True, as pickles are never loaded."
            )
        folders = (subfolder,) if subfolder else ("", "unet")
        directory = resolved(pretrained_model_name_or_path, hub_patterns(variant, folders), **hub)  # type: ignore[arg-type]
        found = [directory / folder for folder in folders if (directory / folder / loading.CONFIG).is_file()]
        directory = found[0] if found else directory / folders[0]
        if loading.is_stock(directory):
            return cls.from_diffusers(directory, variant=variant, torch_dtype=dtype)
        return loading.load(cls, directory, dtype, variant)

    @classmethod
    def read_config(cls, directory: str | Path) -> dict[str, Any]:
        """The config of a saved network, ours or diffusers', as plain dicts; its weights are not read.

        Raises:
            UserError: a missing or damaged config.json, or one of another model.
        """
        if loading.is_stock(Path(directory)):
            from unetdiff.export.convert import diffusers

            return diffusers.read_config(cls, Path(directory))
        return loading.read_config(Path(directory))

    @classmethod
    def from_config(  # type: ignore[override]
        cls, config: Mapping[str, Any] | str | Path, return_unused_kwargs: bool = False, **changes: Any
    ) -> Any:
        """A network with random weights, also of its encoder, for a config or the directory of one.

        Args:
            config: `UNet.config`, or a directory with config.json (a name on the Hub is not resolved).
            return_unused_kwargs: return (network, keys that diffusers' `EMAModel` added to the config) as
                `EMAModel.from_pretrained` wants it.
            changes: arguments of the constructor in the place of the config's.

        Raises:
            UserError: a config that describes no `UNet`.
        """
        values = dict(config) if isinstance(config, Mapping) else loading.read_json(Path(config) / loading.CONFIG)
        average = {key: values.pop(key) for key in loading.EMA_KEYS if key in values}
        values = loading.plain(values) | changes
        model = loading.build(cls, values)
        return (model, average) if return_unused_kwargs else model

    @classmethod
    def from_diffusers(
        cls,
        source: str | Path | ModelMixin,
        *,
        subfolder: str | None = None,
        variant: str | None = None,
        torch_dtype: torch.dtype | None = None,
        **hub: Unpack[HubOptions],
    ) -> Self:
        """A diffusers `UNet2DModel` or `UNet2DConditionModel` as a residual UNet with a diffusion head, in eval mode.

        The weights are copied under new names; the outputs are the same. A segmentation head written by `to_diffusers`
        is loaded too.

        Args:
            source: a model, or a model directory, a pipeline directory with `unet/`, or either on the Hub.
            subfolder: of the directory.
            variant: of the file, e.g. "fp16" for diffusion_pytorch_model.fp16.safetensors.
            torch_dtype: None: the model's own; float32 for a directory.
            hub: revision, cache_dir, token, local_files_only and force_download.

        Raises:
            UserError: a config that has no residual UNet, by key and value; a missing or truncated file, a pickle,
                or a tensor that is missing, unexpected or of another shape, by name.
        """
        from unetdiff.export.convert import diffusers

        return diffusers.load(cls, source, subfolder, variant, torch_dtype, **hub)

    def to_diffusers(self, directory: str | Path) -> None:
        """Write config.json and diffusion_pytorch_model.safetensors, which diffusers' `from_pretrained` loads.

        Without cross_attention_dim they are a `UNet2DModel`, which takes sizes that divide by 2 ** (levels - 1) only,
        with it a `UNet2DConditionModel`. A segmentation head is written to a separate file, which diffusers ignores
        and `from_diffusers` reads. Other files in the directory stay.

        Raises:
            UserError: diffusers has no such network; names the key, its value and what to do.
            OSError: e.g. a full disk; no file is then half written.
        """
        self.refuse_if_optimized("to_diffusers")
        self.require_no_adapter("to_diffusers")
        from unetdiff.export.convert import diffusers

        diffusers.save(self, Path(directory))

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
        classes. Pixels are in [-1, 1]; the encoder normalizes them as smp's `get_preprocessing_fn` does (channels after
        the third are not normalized).

        Args:
            source: a model, its state dict, a directory of its `save_pretrained`, or a safetensors file of its state
                dict. A state dict lacks options without tensors: an activation after the logits is dropped.
            upsample: smp's decoder_interpolation; None: the source's, or "nearest" if unknown.
            statistics: "none" for a model that was trained on pixels in [0, 1] without ImageNet's mean and deviation.
            background: for one class alone (smp's binary masks): a background with the logit 0 before it, so that
                softmax gives what the sigmoid gave, and argmax the class where its logit was above 0.

        Raises:
            UserError: a pickle, another network, or an unsupported option of smp, by name.
        """
        from unetdiff.export.convert import smp

        return smp.load(cls, source, upsample, statistics, background)
