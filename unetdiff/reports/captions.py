"""The three changes as captions under the diagram, with the dimensions of the network that was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unetdiff.reports.network_spec import NetworkSpec
from unetdiff.reports.runs import Run
from unetdiff.reports.table import compact

TARGETS = {
    "epsilon": "noise ε",
    "v_prediction": "velocity v",
    "sample": "clean image x₀",
}
"""What the diffusion head predicts, by prediction type."""
CONTEXTS = {
    "none": "Segmentation is unconditional and uses a single zero token.",
    "empty": "Segmentation attends to the tokens of the empty prompt.",
    "classes": "Segmentation attends to one token per class, of the text encoder.",
    "caption": "Segmentation attends to the tokens of each image's caption.",
}
"""What a segmentation head attends to, by `segmentation.context`."""


@dataclass(frozen=True)
class Change:
    """One of the three changes, as a card under the diagram."""

    number: int
    title: str
    text: str
    present: bool
    """False if the network lacks it."""


def changes(spec: NetworkSpec, run: Run) -> list[Change]:
    """The three changes from the U-Net of 2015 to Stable Diffusion's denoiser, in this network."""
    return [_timestep(spec, run), _attention(spec, run), _output(spec, run)]


def _timestep(spec: NetworkSpec, run: Run) -> Change:
    title, why = "Timestep embedding", "A denoiser is conditioned on the noise level. "
    if not spec.timestep:
        return Change(1, title, why + "This network has no timestep embedding; it only segments clean images.", False)
    use = "scales and shifts the features of" if spec.scale_shift else "is added to the features of"
    text = (
        f"{why}A sinusoidal embedding of the timestep passes through an MLP and {use} every block. "
        f"{_segmentation_timestep(run)}"
    )
    return Change(1, title, text.rstrip(), True)


def _segmentation_timestep(run: Run) -> str:
    """What a segmentation head of the run is passed as its timestep."""
    config = run.config.get("segmentation") or {}
    timestep = config.get("timestep", 0)
    if "segmentation" not in run.heads:
        return ""
    if not timestep:
        return "The segmentation of a clean image uses no timestep."
    return f"Segmentation uses timestep {timestep}, of {'noised' if config.get('noised') else 'clean'} images."


def _attention(spec: NetworkSpec, run: Run) -> Change:
    title, why = "Cross-attention", "A denoiser is conditioned on what the image shows. "
    if spec.cross_attention_dim is None:
        return Change(2, title, why + "This network has no cross-attention.", False)
    levels = [level for level in spec.levels if level.attention]
    sizes = [f"{level.size}×{level.size}" if level.size else f"1/{level.stride} resolution" for level in levels]
    at = _listed(sizes) if sizes else "the mid block"
    diffusion = run.config.get("diffusion") or {}
    if "diffusion" in run.heads and diffusion.get("condition", "class") == "class":
        count = diffusion.get("class_tokens", 1)
        tokens = "one class token" if count == 1 else f"{count} class tokens"
    else:
        tokens = "tokens"
    text = f"{why}At {at}, every pixel attends to {tokens} of dimension {spec.cross_attention_dim}. "
    if "segmentation" in run.heads:
        text += CONTEXTS[(run.config.get("segmentation") or {}).get("context", "none")]
    return Change(2, title, text.rstrip(), True)


def _output(spec: NetworkSpec, run: Run) -> Change:
    title = "Output convolution"
    segmentation = f"The segmentation head is a {spec.segmentation_head} to {spec.num_classes} classes"
    if spec.out_channels is None:
        return Change(3, title, f"{segmentation}; a denoiser has as many output channels as the noise.", False)
    count = run.head_parameters("diffusion")
    parameters = f" ({compact(count)} parameters)" if count else ""
    text = "" if spec.num_classes is None else f"{segmentation}. "
    text += (
        f"The diffusion head is normalization, SiLU and a 3×3 convolution to {spec.out_channels} channels, "
        f"as many as the noise has{parameters}."
    )
    if spec.levels[0].encoder_layers == 0:
        text += " The encoder has no full-resolution feature map, so the head takes a skip connection from the input."
    return Change(3, title, text, True)


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
