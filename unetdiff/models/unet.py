"""One U-Net, two heads: encoder -> middle -> decoder -> heads.

The encoder pushes skips, the decoder pops them, and the last decoder map (full resolution) feeds every head. Nothing in
the backbone knows which head will be asked.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.errors import UserError
from unetdiff.kernels.allocator import give_back_freed_memory
from unetdiff.kernels.fold_batch_norm import fold_batch_norm
from unetdiff.kernels.packing import can_pack, pack
from unetdiff.models import loading
from unetdiff.models.add_head import with_head
from unetdiff.models.attention import CrossAttentionCache, null_context
from unetdiff.models.conditioning import AttentionPlan, ForwardState
from unetdiff.models.config import ModelConfig
from unetdiff.models.decoders import PyramidDecoder, PyramidMiddle, ResidualDecoder, ResidualMiddle
from unetdiff.models.embeddings import TimestepEmbedding, timestep_sinusoids
from unetdiff.models.encoders import build_encoder
from unetdiff.models.heads import DiffusionHead, SegmentationHead
from unetdiff.models.param_counts import param_counts_by_part
from unetdiff.models.resolve import parse, resolve
from unetdiff.models.serialization import SerializationMixin

Head = Literal["segmentation", "diffusion"]
TRUNK_TIME_WIDTH = 64  # sinusoids of the time embedding where no first level says it (trunks)


class UNet(SerializationMixin, ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers looks for ModelMixin in this module
    """A U-Net with a segmentation head, a diffusion head, or both, on one of three encoder families.

    The keyword arguments are the sections of `unetdiff.models.config.ModelConfig`, as dicts or as its dataclasses:

        UNet(encoder={"name": "resnet50"}, heads={"segmentation": {"num_classes": 21}})
        UNet(encoder={"channels": [32, 64]}, heads={"diffusion": {"out_channels": 3}})

    Pixels are floats in [-1, 1], (B, in_channels, H, W), with H and W of 32 or more for trunks; trunks restate them to
    ImageNet's statistics themselves. Outputs have the input's height and width (`padding="valid"` excepted).

    Raises:
        UserError: for an unknown key, a value out of range or a combination that cannot be.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        patch_size: int = 1,
        sample_size: int | list[int] | None = None,
        encoder: Any = None,
        residual: Any = None,
        decoder: Any = None,
        conditioning: Any = None,
        heads: Any = None,
    ) -> None:
        super().__init__()
        given = parse(in_channels, patch_size, sample_size, encoder, residual, decoder, conditioning, heads)
        config = resolve(given)
        self.register_to_config(**asdict(config))
        self._build(config)
        self.gradient_checkpointing = False
        self._frozen = (False, 0)  # the whole trunk, or its finest levels
        self.optimized_for_inference = False

    def _build(self, config: ModelConfig) -> None:
        is_residual = config.encoder.name == "residual"
        channels = config.encoder.channels or []
        told = config.conditioning
        first = channels[0] if channels else TRUNK_TIME_WIDTH
        time_dim = 4 * first if told.timestep else None
        self.sinusoids = first
        if time_dim:
            self.time_embedding = TimestepEmbedding(first, time_dim)
            if told.num_class_embeds:
                self.class_embedding: nn.Module = nn.Embedding(told.num_class_embeds, time_dim)
            elif told.class_embed_type:
                timestep = told.class_embed_type == "timestep"
                self.class_embedding = TimestepEmbedding(first, time_dim) if timestep else nn.Identity()
            if told.pooled_context and told.cross_attention_dim:
                self.context_embedding = nn.Linear(told.cross_attention_dim, time_dim)
                nn.init.zeros_(self.context_embedding.bias)  # a zero token says nothing
        attention = AttentionPlan.of(config)
        norm, padding = config.encoder.norm or "group", config.encoder.padding
        squares = config.patch_size**2  # pixels that become channels
        self.encoder = build_encoder(
            config.in_channels * squares, config.encoder, channels, norm, config.residual, time_dim, attention
        )
        level = self.encoder.out_level
        if is_residual:
            self.middle: nn.Module = ResidualMiddle(channels[-1], level, config.residual, time_dim, attention)
            self.decoder: nn.Module = ResidualDecoder(
                channels, self.encoder.skips, config.residual, time_dim, attention
            )
        else:
            bottom = (channels[-2], channels[-1]) if config.encoder.name == "classic" else None
            self.middle = PyramidMiddle(bottom, level, norm, padding, time_dim, attention)
            self.decoder = PyramidDecoder(
                bottom[1] if bottom else self.encoder.out_channels,
                level,
                self.encoder.skips,
                config.decoder.channels or [],
                config.decoder.norm or "group",
                config.decoder.upsample or "nearest",
                config.decoder.align_corners,
                padding,
                time_dim,
                attention,
            )
        width: int = self.decoder.out_channels  # type: ignore[assignment]
        self._enlarges = bool(self.decoder.out_level)  # the decoder stops early
        groups = config.residual.norm_num_groups if is_residual else max(1, min(32, width // 4))
        self.heads = nn.ModuleDict()
        if config.heads.segmentation is not None:
            head = config.heads.segmentation
            classes = head.num_classes * squares
            self.heads["segmentation"] = SegmentationHead(
                width, classes, groups if is_residual else None, head.kernel_size
            )
        if config.heads.diffusion is not None:
            strided = bool(self.encoder.skips) and self.encoder.skips[0][0] > 0
            self.heads["diffusion"] = DiffusionHead(
                width,
                config.heads.diffusion.out_channels * squares,
                groups,
                config.residual.norm_eps,
                time_dim,
                config.in_channels if strided else None,
            )

    def __getattr__(self, name: str) -> Any:
        # diffusers would answer `self.encoder` with the config's section of that name; the module is meant
        return nn.Module.__getattr__(self, name)

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int | None = None,
        encoder_hidden_states: Tensor | CrossAttentionCache | None = None,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
        head: Head = "diffusion",
    ) -> UNet2DOutput | tuple[Tensor]:
        """The diffusers contract: noisy sample and timestep in, the head's prediction out.

        Args:
            sample: (B, in_channels, H, W) pixels in [-1, 1], noisy or clean.
            timestep: one number or (B,); None means a clean image, which is timestep 0.
            encoder_hidden_states: (B, tokens, cross_attention_dim), or `unetdiff.models.attention.Told` of them for the
                many passes of sampling; None is one zero token.
            class_labels: (B,) indices of the embedding added to the time embedding (`num_class_embeds`), or what
                `class_embed_type` says.
            return_dict: return `UNet2DOutput(sample=...)`, else a tuple.
            head: "diffusion" or "segmentation".

        Returns:
            (B, out_channels, H, W) noise (or x0, or v), or (B, num_classes, H, W) logits.

        Raises:
            UserError: when the model has no such head, or is given a condition it was not made for.
        """
        self._require(head)
        condition = self._condition(sample, timestep, encoder_hidden_states, class_labels)
        out = self._answer(head, self.backbone(sample, condition), sample, condition.temb)
        return UNet2DOutput(sample=out) if return_dict else (out,)

    def both(
        self,
        pixels: Tensor,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Both heads in one pass of the backbone: clean images for the one, noisy ones for the other.

        The same numbers as `segment(pixels)` and `forward(sample, timestep, encoder_hidden_states)`, for less time than
        two passes: with a diffusion head no norm mixes the images of a batch.

        Args:
            pixels: (A, in_channels, H, W) clean images.
            sample: (B, in_channels, H, W) noisy images of the same size.
            timestep: (B,) of the noisy ones.
            encoder_hidden_states: (B, tokens, cross_attention_dim) of the noisy ones; None is one zero token.

        Returns:
            Logits (A, num_classes, H, W) and noise (or x0, or v) (B, out_channels, H, W).

        Raises:
            UserError: when one of the heads is missing.
        """
        self._require("segmentation")
        self._require("diffusion")
        clean = pixels.shape[0]
        context = encoder_hidden_states
        if context is not None:  # tokens of zeros say nothing, as many as there are
            context = torch.cat([context.new_zeros(clean, *context.shape[1:]), context])
        images = torch.cat([pixels, sample])  # (A + B, C, H, W)
        condition = self._condition(images, torch.cat([timestep.new_zeros(clean), timestep]), context, None)
        h = self.backbone(images, condition)
        temb = None if condition.temb is None else condition.temb[clean:]
        return self._answer("segmentation", h[:clean], pixels, None), self._answer("diffusion", h[clean:], sample, temb)

    def _require(self, head: Head) -> None:
        if head not in self.heads:
            raise UserError(f"this UNet has no {head} head (it has: {', '.join(self.heads) or 'none'}); see add_head")

    def _answer(self, head: Head, h: Tensor, sample: Tensor, temb: Tensor | None) -> Tensor:
        """What a head makes of the backbone's map (B, C, H / patch, W / patch), at the size of `sample`."""
        out = self.heads[head](h, sample, temb) if head == "diffusion" else self.heads[head](h)
        patch, size = self.config["patch_size"], (sample.shape[-2], sample.shape[-1])
        if patch > 1:
            return F.pixel_shuffle(out, patch)[..., : size[0], : size[1]]
        if self._enlarges:
            return F.interpolate(out, size=size, mode="bilinear", align_corners=False)
        return out

    def segment(
        self,
        pixels: Tensor,
        timestep: Tensor | float | int | None = None,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, num_classes, H, W) of pixels in [-1, 1]; see `forward` for the arguments."""
        return self(pixels, timestep, encoder_hidden_states, class_labels, return_dict=False, head="segmentation")[0]

    def features(
        self,
        pixels: Tensor,
        timestep: Tensor | float | int | None = None,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Every level's maps {name: (B, C, h, w)} by name, in the order they are computed, for probes."""
        condition = self._condition(pixels, timestep, encoder_hidden_states, class_labels)
        condition.maps = {}
        condition.keep("last", self.backbone(pixels, condition))
        return condition.maps

    def backbone(self, sample: Tensor, condition: ForwardState) -> Tensor:
        """Encoder, middle, decoder: (B, in_channels, H, W) -> (B, C, H / patch, W / patch), what every head reads."""
        patch = self.config["patch_size"]
        if patch > 1:
            height, width = sample.shape[-2:]
            rows, columns = (height + patch - 1) // patch, (width + patch - 1) // patch
            right, bottom = columns * patch - width, rows * patch - height
            sample = F.pad(sample, (0, right, 0, bottom), mode="replicate")
            sample = F.pixel_unshuffle(sample, patch)  # (B, in_channels patch^2, H / patch, W / patch)
        skips, h = self.encoder(sample, condition)
        h = self.middle(h, condition)
        return self.decoder(h, skips, (sample.shape[-2], sample.shape[-1]), condition)

    def _condition(
        self,
        sample: Tensor,
        timestep: Tensor | float | int | None,
        encoder_hidden_states: Tensor | CrossAttentionCache | None,
        class_labels: Tensor | None,
    ) -> ForwardState:
        told = self._told
        temb = None
        if told["timestep"]:
            step = torch.as_tensor(0 if timestep is None else timestep, device=sample.device).reshape(-1)
            temb = self.time_embedding(self._waves(step).to(sample.dtype))  # (B or 1, time_dim)
            if class_labels is not None:
                kind = told["class_embed_type"]
                if not told["num_class_embeds"] and kind is None:
                    raise UserError("class_labels given, but this UNet has no conditioning.num_class_embeds")
                labels = self._waves(class_labels).to(sample.dtype) if kind == "timestep" else class_labels
                temb = temb + self.class_embedding(labels).to(temb.dtype)
        elif timestep is not None:
            raise UserError("timestep given, but this UNet has no time embedding (conditioning.timestep is false)")
        dim = told["cross_attention_dim"]
        context: Tensor | CrossAttentionCache | None = encoder_hidden_states
        if dim is None and context is not None:
            raise UserError("encoder_hidden_states given, but this UNet has no conditioning.cross_attention_dim")
        if dim is not None and context is None:
            context = null_context(sample.shape[0], dim, like=sample)
        if temb is not None and context is not None and told["pooled_context"]:  # Saharia et al. 2022, section 2.3
            tokens = context.tokens if isinstance(context, CrossAttentionCache) else context
            temb = temb + self.context_embedding(tokens.mean(dim=1))
        return ForwardState(temb, context, recompute=self.gradient_checkpointing and self.training)

    def _waves(self, numbers: Tensor) -> Tensor:
        """The sinusoids (B, first level's width) of timesteps (B,)."""
        residual = self.config["residual"]
        return timestep_sinusoids(numbers, self.sinusoids, residual["flip_sin_to_cos"], residual["freq_shift"])

    @property
    def _told(self) -> dict[str, Any]:
        return self.config["conditioning"]

    # ------------------------------------------------------------------ facts

    @property
    def num_classes(self) -> int | None:
        """Classes of the segmentation head, or None."""
        head = self.config["heads"]["segmentation"]
        return head and head["num_classes"]

    @property
    def out_channels(self) -> int | None:
        """Channels of the diffusion head, or None."""
        head = self.config["heads"]["diffusion"]
        return head and head["out_channels"]

    def parameter_counts(self) -> dict[str, int]:
        """Parameters of the encoder, middle, decoder, of what tells them time and condition, and of each head."""
        return param_counts_by_part(self, list(self.heads))

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of parameters (diffusers' signature)."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    # ------------------------------------------------------------------ training

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any = None) -> None:
        """Recompute activations in the backward pass: less memory, about a third more time."""
        self.gradient_checkpointing = True

    def disable_gradient_checkpointing(self) -> None:
        """Keep activations again."""
        self.gradient_checkpointing = False

    def trunk_parameters(self) -> list[nn.Parameter]:
        """The encoder's own parameters (without what was added to a trunk): a group with its own learning rate."""
        return [p for module in self.encoder.trunk_modules() for p in module.parameters()]

    def freeze_encoder(self, frozen: bool = True, levels: int = 0) -> None:
        """Stop training the encoder's trunk, its BatchNorm statistics too; survives `.train()`.

        Args:
            frozen: the whole trunk; False: only what `levels` says.
            levels: this many of its levels, finest first, whose maps are the largest and cost the most to train.
        """
        self._frozen = (frozen, levels)
        for parameter in self.trunk_parameters():
            parameter.requires_grad_(True)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train(self.training)

    def _frozen_modules(self) -> list[nn.Module]:
        frozen, levels = self._frozen
        return self.encoder.trunk_modules() if frozen else self.encoder.level_modules(levels)

    def train(self, mode: bool = True) -> UNet:
        super().train(mode)
        for module in self._frozen_modules():
            for norm in module.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.eval()
        return self

    # ------------------------------------------------------------------ what it is made for

    def optimize_for_inference(self, dtype: torch.dtype | None = None, compile: bool = False) -> UNet:
        """Make this network answer faster, in place; from then on it does nothing else, and cannot be saved.

        In eval mode, without gradients: each BatchNorm is folded into the convolution before it, the weights have the
        given precision and lie channels-last, or on a CPU as its convolutions read them.

        Args:
            dtype: of weights and answers, e.g. torch.bfloat16 where the machine is fast at it; None: as it is.
            compile: by torch.compile with the weights as constants. The first answer at a size takes half a minute or
                more, and a C++ compiler (CPU) or Triton (GPU).
        """
        self.eval().requires_grad_(False)
        dtype = dtype or self.dtype
        if any(isinstance(module, nn.BatchNorm2d) for module in self.modules()):
            head: Head = "segmentation" if "segmentation" in self.heads else "diffusion"
            encoder: Any = self.encoder
            deepest = self.config["patch_size"] * 2**encoder.out_level  # of one pixel
            valid = self.config["encoder"]["padding"] == "valid"
            side = encoder.lost_unpadded + 4 if valid else max(64, deepest)
            example = torch.zeros(1, self.config["in_channels"], side, side, device=self.device)
            nn.Module.to(self, dtype=torch.float32)
            fold_batch_norm(self, lambda: self(example, return_dict=False, head=head)[0])
        nn.Module.to(self, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        give_back_freed_memory()  # of the weights as they were
        if compile:
            self.compile(options={"freezing": True})
        elif self.device.type == "cpu" and can_pack(dtype) and isinstance(self.decoder, PyramidDecoder):
            pack(nn.ModuleList([self.encoder, self.middle, self.decoder]))
        self.optimized_for_inference = True
        return self

    def add_head(self, name: Head, **options: Any) -> UNet:
        """Add a head to this model in place; everything that was there keeps its weights bit for bit.

        A diffusion head brings the time embedding with it (and `cross_attention_dim`, where it is given, in trunks and
        classic): what is new starts as the identity, so the logits of a segmentation head stay the same, and BatchNorm
        becomes frozen (a batch of the diffusion objective mixes noise levels, inference does not).

        Args:
            name: "segmentation" (num_classes) or "diffusion" (out_channels; cross_attention_dim, num_class_embeds).

        Raises:
            UserError: when the head is there already, or the addition would change what is there.
        """
        self.refuse_if_optimized("add_head")
        if name in self.heads:
            raise UserError(f"add_head: this UNet has a {name} head already")
        grown = with_head(UNet, self, name, options)
        nn.Module.to(grown, device=self.device, dtype=self.dtype).train(self.training)
        self._modules = grown._modules
        self.sinusoids = grown.sinusoids
        self.register_to_config(**loading.plain(grown.config))
        self.freeze_encoder(*self._frozen)
        return self
