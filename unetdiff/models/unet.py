"""One U-Net, two heads: encoder -> mid block -> decoder -> heads.

The encoder pushes skips, the decoder pops them, and the decoder's last, full-resolution map feeds every head. The
backbone is the same whichever head reads it.

Three changes lead from the U-Net of 2015 to Stable Diffusion's denoiser: 1. a timestep embedding in every block
(`embeddings`), 2. cross-attention to a condition (`attention`), 3. an output with the noise's channels (`heads`).
Comments of this package number them "change 1 of 3" to "change 3 of 3"; docs/three_changes.md explains them one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal, Unpack

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.utils import apply_lora_scale
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.errors import UserError
from unetdiff.models import loading
from unetdiff.models.add_head import with_head
from unetdiff.models.attention import AttentionRecorder, CrossAttentionCache, null_context
from unetdiff.models.attention_plan import AttentionPlan
from unetdiff.models.config import RESIDUAL, ImportedConfig, ModelConfig
from unetdiff.models.decoders import build_mid_block_and_decoder, build_own_decoder
from unetdiff.models.embeddings import TimestepEmbedding, timestep_sinusoids
from unetdiff.models.encoders import Skips, build_encoder
from unetdiff.models.forward_state import ForwardState, scale_gradient
from unetdiff.models.freezing import FreezingMixin
from unetdiff.models.heads import build_heads
from unetdiff.models.param_counts import param_counts_by_part
from unetdiff.models.patches import patchify, round_up
from unetdiff.models.pixel_range import require_pixels
from unetdiff.models.resolve import parse, resolve
from unetdiff.models.serialization import SerializationMixin
from unetdiff.models.stock_config import StockConfig
from unetdiff.models.stock_inputs import StockInputs, add_residuals, attention_bias, require_supported, text_and_sizes

Head = Literal["segmentation", "diffusion"]
NUM_SINUSOIDS = 64
"""Sinusoids of the time embedding of pretrained encoders; the others have as many as their first level has channels."""


class UNet(FreezingMixin, SerializationMixin, ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers looks for ModelMixin in this module
    """A U-Net with a segmentation head, a diffusion head, or both, on a classic, residual or pretrained encoder.

    The keyword arguments are the sections of `unetdiff.models.config.ModelConfig`, as dicts or as its dataclasses:

        UNet(encoder={"name": "resnet50"}, heads={"segmentation": {"num_classes": 21}})
        UNet(encoder={"channels": [32, 64]}, heads={"diffusion": {"out_channels": 3}})

    Pixels are floats in [-1, 1], (B, in_channels, H, W), of any size; pretrained encoders normalize them with
    ImageNet's statistics. Images smaller than `min_side` are padded. Outputs have the input's height and width
    (`padding="valid"` excepted).

    Raises:
        UserError: an unknown key, a value out of range, or keys that contradict each other.
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
        imported: Any = None,
    ) -> None:
        super().__init__()
        config = parse(in_channels, patch_size, sample_size, encoder, residual, decoder, conditioning, heads, imported)
        config = resolve(config)
        self.register_to_config(**asdict(config))
        self._build(config)
        self.optimized_for_inference = False

    def _build(self, config: ModelConfig) -> None:
        conditioning, imported = config.conditioning, config.imported
        self.num_sinusoids = config.encoder.channels[0] if config.encoder.channels else NUM_SINUSOIDS
        time_dim = 4 * self.num_sinusoids if conditioning.timestep else None
        if time_dim:
            self.time_embedding = TimestepEmbedding(self.num_sinusoids, time_dim, imported.time_cond_proj_dim)
            if imported.projection_class_embeddings_input_dim is not None:
                self.add_embedding = TimestepEmbedding(imported.projection_class_embeddings_input_dim, time_dim)
            if imported.num_class_embeds:
                self.class_embedding: nn.Module = nn.Embedding(imported.num_class_embeds, time_dim)
            elif imported.class_embed_type == "timestep":
                self.class_embedding = TimestepEmbedding(self.num_sinusoids, time_dim)
            elif imported.class_embed_type == "identity":
                self.class_embedding = nn.Identity()
            if conditioning.pooled_context and conditioning.cross_attention_dim:
                self.context_embedding = nn.Linear(conditioning.cross_attention_dim, time_dim)
                nn.init.zeros_(self.context_embedding.bias)  # the null condition, a zero token, adds nothing
        attention = AttentionPlan.of(config)
        self.encoder = build_encoder(config, time_dim, attention)
        self.mid_block, self.decoder = build_mid_block_and_decoder(config, self.encoder, time_dim, attention)
        strided = bool(self.encoder.skips) and self.encoder.skips[0][0] > 0
        own_decoder = build_own_decoder(config, self.encoder, time_dim, attention)
        self.heads = build_heads(config, self.decoder, time_dim, strided, own_decoder)

    def register_to_config(self, **config: Any) -> None:
        super().register_to_config(**config)
        self._internal_dict: StockConfig = StockConfig(vars(self)["_internal_dict"])

    def __getattr__(self, name: str) -> Any:
        # diffusers would return the config's section `encoder` for `self.encoder` instead of the module
        return nn.Module.__getattr__(self, name)

    # ------------------------------------------------------------------ forward

    @apply_lora_scale("cross_attention_kwargs")  # type: ignore[untyped-decorator]
    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int | None = None,
        encoder_hidden_states: Tensor | CrossAttentionCache | None = None,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
        head: Head | None = None,
        **inputs: Unpack[StockInputs],
    ) -> UNet2DOutput | tuple[Tensor]:
        """diffusers' interface: noisy sample and timestep -> the prediction of a head.

        Args:
            sample: (B, in_channels, H, W) pixels in [-1, 1], noisy or clean.
            timestep: one number or (B,); None means a clean image, which is timestep 0.
            encoder_hidden_states: (B, tokens, cross_attention_dim), or a `CrossAttentionCache` of them for the many
                passes of sampling; None is one zero token (one per class with heads.segmentation.attention_maps).
            class_labels: (B,) indices of the embedding added to the time embedding (`imported.num_class_embeds`), or
                as `imported.class_embed_type` says.
            return_dict: return `UNet2DOutput(sample=...)`, else a tuple.
            head: "diffusion" or "segmentation"; None: the only head, or "diffusion" if the model has both.
            inputs: what else diffusers' pipelines pass (`stock_inputs.StockInputs`): masks of tokens, a ControlNet's
                residuals, LoRA's scale.

        Returns:
            (B, out_channels, H, W) noise (or x0, or v), or (B, num_classes, H, W) logits.

        Raises:
            UserError: a head or a condition that the model does not have, or an unsupported input.
        """
        head = head or ("diffusion" if "diffusion" in self.heads else "segmentation")
        self._require(head)
        height, width = sample.shape[-2:]
        sample = self._large_enough(sample)
        reader: Any = self.heads[head]
        if encoder_hidden_states is None and head == "segmentation" and reader.tokens:
            dim = self.config["conditioning"]["cross_attention_dim"]
            encoder_hidden_states = sample.new_zeros(sample.shape[0], self.num_classes or 1, dim)
        state = self._recording(self.embed(sample, timestep, encoder_hidden_states, class_labels, **inputs), head)
        if head == "segmentation" and reader.task_embedding is not None:
            assert state.temb is not None
            state.temb = state.temb + reader.task_embedding.to(state.temb.dtype)
        h = self.backbone(sample, state, head)
        out = self._predict(head, h, sample, state)[..., :height, :width]
        return UNet2DOutput(sample=out) if return_dict else (out,)

    def _large_enough(self, sample: Tensor) -> Tensor:
        """(B, C, H, W) with its border replicated to at least `min_side`."""
        missing = [max(0, self.min_side - side) for side in sample.shape[-2:]]
        return F.pad(sample, (0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else sample

    def embed(
        self,
        sample: Tensor,
        timestep: Tensor | float | int | None = None,
        encoder_hidden_states: Tensor | CrossAttentionCache | None = None,
        class_labels: Tensor | None = None,
        **inputs: Unpack[StockInputs],
    ) -> ForwardState:
        """Changes 1 and 2 of 3: the time embedding (B or 1, time_dim) and the context (B, tokens, dim).

        Arguments as of `forward`.

        Raises:
            UserError: a condition that the model does not have, or an unsupported input.
        """
        require_supported(inputs, self.config["imported"])
        dim, context = self.config["conditioning"]["cross_attention_dim"], encoder_hidden_states
        if dim is None and context is not None:
            raise UserError("encoder_hidden_states: must be None without conditioning.cross_attention_dim.")
        if dim is not None and context is None:
            context = null_context(sample.shape[0], dim, like=sample)
        temb = self._embed_timestep(timestep, class_labels, sample, inputs)
        if temb is not None and context is not None and self.config["conditioning"]["pooled_context"]:
            tokens = context.tokens if isinstance(context, CrossAttentionCache) else context
            temb = temb + self.context_embedding(tokens.mean(dim=1))  # Saharia et al. 2022, section 2.5
        mask = attention_bias(inputs, context, like=sample)
        return ForwardState(temb, context, mask, self.gradient_checkpointing and self.training, inputs=inputs)

    def _embed_timestep(
        self,
        timestep: Tensor | float | int | None,
        class_labels: Tensor | None,
        sample: Tensor,
        inputs: StockInputs,
    ) -> Tensor | None:
        imported = self.config["imported"]
        if not self.config["conditioning"]["timestep"]:
            if timestep is not None:
                raise UserError("timestep: must be None without conditioning.timestep.")
            return None
        steps = torch.as_tensor(0 if timestep is None else timestep, device=sample.device).reshape(-1)
        guidance = inputs.get("timestep_cond")
        temb: Tensor = self.time_embedding(  # (B or 1, time_dim)
            self._sinusoids(steps).to(sample.dtype), None if guidance is None else guidance.to(sample.dtype)
        )
        if imported["addition_embed_type"]:
            temb = temb + self.add_embedding(text_and_sizes(inputs, imported).to(temb.dtype))
        if class_labels is None:
            return temb
        if not imported["num_class_embeds"] and imported["class_embed_type"] is None:
            raise UserError("class_labels: must be None without imported.num_class_embeds.")
        if imported["class_embed_type"] == "timestep":
            class_labels = self._sinusoids(class_labels).to(sample.dtype)
        return temb + self.class_embedding(class_labels).to(temb.dtype)

    def _sinusoids(self, numbers: Tensor) -> Tensor:
        """(B,) -> (B, num_sinusoids)."""
        imported = self.config["imported"]
        return timestep_sinusoids(numbers, self.num_sinusoids, imported["flip_sin_to_cos"], imported["freq_shift"])

    def backbone(self, sample: Tensor, state: ForwardState, head: Head = "diffusion") -> Tensor:
        """Encoder, mid block, decoder: (B, in_channels, H, W) -> (B, C, H / patch_size, W / patch_size).

        `head`: whose decoder computes the finest levels, where each head has one (`own_decoder_levels`).
        """
        h, skips, size = self._shared(sample, state)
        return self._finest(h, skips, size, state, head)

    def _shared(self, sample: Tensor, state: ForwardState) -> tuple[Tensor, Skips, tuple[int, int]]:
        """The part that both heads share: its last map, the skips that are left, and the finest map's size."""
        x = patchify(sample, self.config["patch_size"])
        skips, h = self.encoder(x, state)
        skips, h = add_residuals(state.inputs, skips, self.mid_block(h, state))
        size = x.shape[-2], x.shape[-1]
        return self.decoder(h, skips, size, state, slice(-self.own_decoder_levels or None)), skips, size

    def _finest(self, h: Tensor, skips: Skips, size: tuple[int, int], state: ForwardState, head: Head) -> Tensor:
        """A head's own decoder levels, on the map and the skips that `_shared` left."""
        if not self.own_decoder_levels:
            return h
        if head == "segmentation":
            reader: Any = self.heads[head]
            return reader.own_decoder(h, skips, size, state)  # type: ignore[no-any-return]
        return self.decoder(h, skips, size, state, slice(-self.own_decoder_levels, None))

    def _recording(self, state: ForwardState, head: Head) -> ForwardState:
        """The state that records the maps and the attention that a head reads."""
        reader: Any = self.heads[head]
        if head == "segmentation" and reader.map_names:
            state.maps, state.names = {}, reader.map_names
        if head == "segmentation" and reader.tokens:
            context = state.context.tokens if isinstance(state.context, CrossAttentionCache) else state.context
            if context is None or context.shape[1] != self.num_classes:
                count = None if context is None else context.shape[1]
                constraint = f"one token per class, {self.num_classes}, for heads.segmentation.attention_maps"
                raise UserError(f"encoder_hidden_states: must be {constraint} (got {count}).")
            state.context = AttentionRecorder(context)
        return state

    def _predict(self, head: Head, h: Tensor, sample: Tensor, state: ForwardState) -> Tensor:
        """The output of a head for the backbone's map, at the height and width of `sample`."""
        if head == "diffusion":
            out = self.heads[head](h, sample, state.temb)
        else:
            recorder = state.context if isinstance(state.context, AttentionRecorder) else None
            out = self.heads[head](h, state.maps, recorder)
        patch, (height, width) = self.config["patch_size"], sample.shape[-2:]
        if patch > 1:
            out = F.pixel_shuffle(out, patch)
        if self.decoder.out_level:  # the decoder stops early
            padded = round_up(height, patch), round_up(width, patch)
            out = F.interpolate(out, size=padded, mode="bilinear", align_corners=False)
        return out if patch == 1 else out[..., :height, :width]

    def both(
        self,
        pixels: Tensor,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
        clean_timestep: Tensor | None = None,
        backbone_gradient: float = 1.0,
        segmented: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor]:
        """Both heads in one pass of the backbone: segmentation of clean images, diffusion of noisy ones.

        The same numbers as `segment(pixels)` and `forward(sample, timestep, encoder_hidden_states)`, faster: with a
        diffusion head no norm mixes the images of a batch. Noisy images can be segmented on the maps that denoise them.

        Args:
            pixels: (A, in_channels, H, W) clean images.
            sample: (B, in_channels, H, W) noisy images of the same size.
            timestep: (B,) of the noisy images.
            encoder_hidden_states: (B, tokens, cross_attention_dim) of the noisy images; None is one zero token.
            clean_timestep: (A,) of the clean images; None: 0.
            backbone_gradient: factor of the segmentation head's gradient where it enters the shared part.
            segmented: S rows of the noisy images that are segmented as well, with their own timestep and condition.

        Returns:
            Logits (A + S, num_classes, H, W) and noise (or x0, or v) (B, out_channels, H, W).

        Raises:
            UserError: a head is missing, or `segmented` with a segmentation head whose pass differs.
        """
        self._require("segmentation")
        self._require("diffusion")
        reader: Any = self.heads["segmentation"]
        if self.config["heads"]["segmentation"]["attention_maps"]:
            raise UserError("both: must be two passes with heads.segmentation.attention_maps.")
        if segmented and (self.own_decoder_levels or reader.task_embedding is not None):
            raise UserError("segmented: must be () with a decoder or a task embedding of the segmentation head's own.")
        clean, context = pixels.shape[0], encoder_hidden_states
        if context is not None:  # the clean images' null condition: to_k and to_v have no bias, so zeros add nothing
            context = torch.cat([context.new_zeros(clean, *context.shape[1:]), context])
        height, width = sample.shape[-2:]
        pixels, sample = self._large_enough(pixels), self._large_enough(sample)
        images = torch.cat([pixels, sample])  # (A + B, C, H, W)
        state = self.embed(
            images,
            torch.cat([timestep.new_zeros(clean) if clean_timestep is None else clean_timestep, timestep]),
            context,
        )
        temb, added = state.temb, reader.task_embedding
        if temb is not None and added is not None:  # to the clean images
            state.temb = torch.cat([temb[:clean] + added.to(temb.dtype), temb[clean:]])
        h, skips, size = self._shared(images, self._recording(state, "segmentation"))
        # split: its backward is one concatenation, that of two slices pads each gradient with zeros and adds them up
        sizes = [clean, sample.shape[0]]
        (h_clean, h_noisy), *pairs = [one.split(sizes) for one in (h, *skips)]
        of_clean, of_noisy = state.split(clean)
        if segmented:
            h_clean = torch.cat([h_clean, h_noisy[list(segmented)]])
            maps = {name: one.split(sizes) for name, one in (state.maps or {}).items()}
            of_clean.maps = {name: torch.cat([one, other[list(segmented)]]) for name, (one, other) in maps.items()}
        scaled = partial(scale_gradient, factor=backbone_gradient)
        if temb is not None and self.own_decoder_levels:
            of_clean.temb = scaled(temb[:clean]) + (0 if added is None else added.to(temb.dtype))
        of_clean.maps = None if of_clean.maps is None else {name: scaled(one) for name, one in of_clean.maps.items()}
        h_clean = self._finest(scaled(h_clean), [scaled(skip) for skip, _ in pairs], size, of_clean, "segmentation")
        h_noisy = self._finest(h_noisy, [skip for _, skip in pairs], size, of_noisy, "diffusion")
        logits = self._predict("segmentation", h_clean, pixels, of_clean)
        noise = self._predict("diffusion", h_noisy, sample, of_noisy)
        return logits[..., :height, :width], noise[..., :height, :width]

    def segment(
        self,
        pixels: Tensor,
        timestep: Tensor | float | int | None = None,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
        **inputs: Unpack[StockInputs],
    ) -> Tensor:
        """Logits (B, num_classes, H, W) of pixels in [-1, 1]; arguments as of `forward`. UserError for 0 to 255."""
        require_pixels(pixels)
        return self(pixels, timestep, encoder_hidden_states, class_labels, False, "segmentation", **inputs)[0]

    def features(
        self,
        pixels: Tensor,
        timestep: Tensor | float | int | None = None,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
        **inputs: Unpack[StockInputs],
    ) -> dict[str, Tensor]:
        """Feature maps {name: (B, C, h, w)} in the order of the forward pass, for probes; arguments as of `forward`.

        "encoder.K" and "decoder.K" are the last maps of level K (0: full resolution) of classic and pretrained
        networks; of residual ones "encoder.K.L" and "decoder.K.L" are the maps after residual block L and its attention
        (not those of conv_in, down- and upsamplers). "mid_block" is the mid block's map (the deepest map, if it is
        empty), and "last" the map that the heads read.
        """
        state = self.embed(pixels, timestep, encoder_hidden_states, class_labels, **inputs)
        state.maps = {}
        state.record("last", self.backbone(pixels, state))
        return state.maps

    def _require(self, head: Head) -> None:
        if head not in self.heads:
            raise UserError(f"head={head}: must be one of this UNet's heads ({', '.join(self.heads)}). See add_head.")

    # ------------------------------------------------------------------ properties

    @property
    def min_side(self) -> int:
        """The smallest height and width that the backbone computes; smaller images are padded to it."""
        encoder, imported = self.config["encoder"], self.config["imported"]
        residual, levels = encoder["name"] == RESIDUAL, range(self.encoder.out_level)
        if encoder["padding"] == "valid":
            return 1
        least = 2**self.encoder.out_level
        halved = any(ImportedConfig(**imported).resamples_by_resnet("down", level) for level in levels)
        if residual and not halved and imported["downsample_padding"]:
            least = 1  # a map of one pixel stays one pixel
        # a GroupNorm with one channel per group needs two pixels
        groups, channels = self.config["residual"]["norm_num_groups"], encoder["channels"] or []
        attending = self.config["conditioning"]["attention_levels"]
        for level, width in enumerate(channels):
            if groups % width == 0 and (residual or level in attending):
                least = max(least, 2**level + 1)
        return int(self.config["patch_size"] * least)

    @property
    def own_decoder_levels(self) -> int:
        """The decoder's finest levels of which each head has its own."""
        head = self.config["heads"]["segmentation"]
        return int(head["own_decoder_levels"]) if head else 0

    def unshared_parameters(self) -> list[nn.Parameter]:
        """The parameters of the decoder's levels that only the diffusion head reads."""
        modules = self.decoder.finest_modules(self.own_decoder_levels)
        return [parameter for module in modules for parameter in module.parameters()]

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
        """Parameters of the encoder, mid block, decoder, conditioning, and of each head."""
        return param_counts_by_part(self, list(self.heads), self.unshared_parameters())

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of parameters; diffusers' signature, whose `exclude_embeddings` is ignored."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    # ------------------------------------------------------------------ training

    def add_head(self, name: Head, **options: Any) -> UNet:
        """Add a head in place; every existing weight keeps its value, bit for bit.

        A diffusion head adds the time embedding (and cross-attention with `cross_attention_dim`, for classic and
        pretrained encoders), initialized as the identity: the logits of a segmentation head stay the same. BatchNorm
        becomes frozen, because a training batch mixes noise levels.

        Modules and parameters are new objects. Create optimizer and EMA, register hooks, wrap for DDP and call
        `accelerate_training_` afterwards; those of the old modules are lost.

        Args:
            name: "segmentation" or "diffusion".
            **options: "segmentation": num_classes (int, default 21),
                pyramid and attention_maps (as of `SegmentationHeadConfig`). "diffusion": out_channels (int, default 3),
                cross_attention_dim (int, width of encoder_hidden_states' tokens) and num_class_embeds (int, classes of
                an embedding added to the time embedding).

        Raises:
            UserError: the model has this head, or the options would change existing weights.
        """
        self.refuse_if_optimized("add_head")
        if name in self.heads:
            raise UserError(f"add_head: this UNet has a {name} head already.")
        extended = with_head(UNet, self, name, options)
        # not ModelMixin.to, which warns about every dtype
        nn.Module.to(extended, device=self.device, dtype=self.dtype).train(self.training)
        self._modules = extended._modules
        self.num_sinusoids = extended.num_sinusoids
        self.register_to_config(**loading.plain(extended.config))
        self.freeze_encoder(self._encoder_frozen, self._frozen_levels)
        return self
