"""Model cards, and uploads to a Hub that is not there: a stand-in notes the calls."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard, metadata_load

from unetdiff import GenerationPipeline, SegmentationPipeline, UNet
from unetdiff.cli.main import main
from unetdiff.config.schema import RunConfig
from unetdiff.errors import UserError
from unetdiff.files.model_card import Card, CardMetric
from unetdiff.training.trainer import train

ENCODER = {"name": "classic", "channels": [4, 8]}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A Hub of folders: what `HfApi` uploads, `snapshot_download` finds."""
    state = SimpleNamespace(root=tmp_path / "hub", calls=[], error=None)

    class Api:
        def __init__(self, **options: Any) -> None:
            pass

        def create_repo(self, name: str, **options: Any) -> str:
            if state.error is not None:
                raise state.error
            state.calls.append(("create_repo", name, options))
            return f"address/{name}"

        def create_branch(self, name: str, **options: Any) -> None:
            state.calls.append(("create_branch", name, options))

        def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> None:
            state.calls.append(("upload_folder", repo_id, options))
            shutil.copytree(folder_path, state.root / repo_id)

    def snapshot_download(name: str, **options: Any) -> str:
        return str(state.root / name)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


def test_networks_and_pipelines_come_back(hub: SimpleNamespace) -> None:
    unet = UNet(encoder=ENCODER, heads={"segmentation": {"num_classes": 2}}).eval()
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    assert unet.push_to_hub("me/unet", private=True) == "address/me/unet"
    assert hub.calls[0] == ("create_repo", "me/unet", {"private": True, "exist_ok": True})
    SegmentationPipeline(unet, ["a", "b"]).push_to_hub("me/segmenter", revision="v1", commit_message="first")
    assert ("create_branch", "me/segmenter", {"branch": "v1", "exist_ok": True}) in hub.calls
    assert hub.calls[-1] == ("upload_folder", "me/segmenter", {"revision": "v1", "commit_message": "first"})
    segmenter = SegmentationPipeline.from_pretrained("me/segmenter", revision="v1")
    for loaded in (UNet.from_pretrained("me/unet"), UNet.from_pretrained("me/segmenter"), segmenter.unet):
        assert torch.equal(loaded.segment(pixels), unet.segment(pixels))
    for name in ("me/unet", "me/segmenter"):
        data = metadata_load(hub.root / name / "README.md")
        assert (data["library_name"], data["pipeline_tag"]) == ("unetdiff", "image-segmentation")
        assert f'from_pretrained("{name}")' in (hub.root / name / "README.md").read_text()


def test_what_the_hub_refuses(hub: SimpleNamespace) -> None:
    unet = UNet(encoder=ENCODER, heads={"segmentation": {"num_classes": 2}})
    with pytest.raises(UserError, match="name=unet: must be OWNER/NAME"):
        unet.push_to_hub("unet")
    hub.error = OSError("401 Client Error: no token")
    with pytest.raises(UserError, match=r"name=me/unet: must be a model that can be written .*401.*hf auth login"):
        unet.push_to_hub("me/unet")


def test_a_run_is_pushed_with_its_card(
    tiny: Callable[..., RunConfig],
    hub: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny("joint", training__steps=2, training__validate_every=1, training__log_with=[])
    run = train(config, command="unetdiff train joint mine.yaml")
    for name in ("best", "latest"):
        card = ModelCard.load(run / name / "README.md")
        [one, *_] = card.data.eval_results
        assert one.dataset_split == "validation" and one.dataset_args == {"num_images": config.data.scenes.val_images}
        assert one.metric_type == "mean_iou" and one.dataset_name == "scenes"
        assert "unetdiff train joint config.yaml" in card.text and "](samples.png)" in card.text
        assert (run / name / "samples.png").is_file() and (run / name / "segmentation.png").is_file()
    capsys.readouterr()
    assert main(["push", str(run), "me/two-heads", "--dry_run"]) == 0
    assert not hub.calls and "me--two-heads: written, nothing was uploaded" in capsys.readouterr().out
    assert main(["push", str(run), "me/two-heads", "--dry_run"]) == 2  # it exists
    assert main(["push", str(run), "me/two-heads", "--private", "--revision", "v2"]) == 0
    assert "address/me/two-heads" in capsys.readouterr().out
    files = {path.relative_to(hub.root / "me/two-heads"): path for path in (hub.root / "me/two-heads").rglob("*.*")}
    dry = {path.relative_to("me--two-heads"): path for path in Path("me--two-heads").rglob("*.*")}
    assert {name: path.read_bytes() for name, path in files.items()} == {n: p.read_bytes() for n, p in dry.items()}
    assert GenerationPipeline.from_pretrained("me/two-heads").unet.config == UNet.from_pretrained(run / "best").config
    config.training.overwrite = True  # the card is a file that a run writes
    train(config)


def test_cards_of_each_kind() -> None:
    for heads, condition, tag in (
        (["segmentation", "diffusion"], "class", "image-segmentation"),
        (["diffusion"], "text", "text-to-image"),
        (["diffusion"], "class", "unconditional-image-generation"),
    ):
        loaders = ["GenerationPipeline"]
        metrics = [CardMetric("diffusion/loss", 0.25, "validation", None)]
        card = Card("me/x", heads, loaders, condition=condition, dataset="flowers", dataset_id="me/f", metrics=metrics)
        parsed = ModelCard(card.text())
        assert parsed.data.pipeline_tag == tag and parsed.data.datasets == ["me/f"]
        assert parsed.data.eval_results[0].metric_value == 0.25 and "| 0.25 | validation | unknown |" in parsed.text
        assert "license" not in parsed.data.to_dict() and ("prompt" in parsed.text) == (condition == "text")
