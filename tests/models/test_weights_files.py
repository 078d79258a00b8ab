"""Where a network's weights lie: in shards, in a variant, on the Hub (its cache here)."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file

from unetdiff.errors import UserError
from unetdiff.files import records
from unetdiff.models.unet import UNet
from unetdiff.models.weights_files import fingerprint

INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture(scope="module")
def stock() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()


@pytest.fixture(scope="module")
def ours(stock: UNet2DModel) -> UNet:
    return UNet.from_diffusers(stock)


@pytest.fixture
def folder(stock: UNet2DModel, tmp_path: Path) -> Path:
    """diffusers' network in shards of 20 KB."""
    stock.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 2
    return tmp_path


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], v) for k, v in second.items())


def test_shards(folder: Path, stock: UNet2DModel, ours: UNet, tmp_path: Path) -> None:
    assert same(UNet.from_diffusers(folder), ours)
    before = fingerprint(folder)
    ours.save_pretrained(tmp_path / "ours", max_shard_size="20KB")
    assert same(UNet.from_pretrained(tmp_path / "ours"), ours)
    copy.deepcopy(stock).half().save_pretrained(tmp_path / "half", max_shard_size="20KB", variant="fp16")
    half = UNet.from_diffusers(tmp_path / "half", variant="fp16", torch_dtype=torch.float16)
    assert half.dtype == torch.float16 and torch.equal(half.encoder.conv_in.weight, stock.conv_in.weight.half())

    file = sorted(folder.glob("*-of-*.safetensors"))[-1]
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    assert fingerprint(folder) != before


def test_one_file_takes_the_place_of_shards(folder: Path, stock: UNet2DModel, ours: UNet) -> None:
    with torch.no_grad():
        changed = UNet.from_diffusers(stock)
        changed.encoder.conv_in.weight.zero_()
    changed.to_diffusers(folder)
    assert same(UNet.from_diffusers(folder), changed)
    assert not UNet2DModel.from_pretrained(folder).conv_in.weight.any()


def test_shards_that_do_not_fit_their_index_are_named(folder: Path) -> None:
    index = records.read_object(folder / INDEX)
    first, *_, last = sorted(set(index["weight_map"].values()))

    def refused(says: str, **changes: Any) -> None:
        records.write_json(folder / INDEX, {**index, **changes})
        with pytest.raises(UserError, match=says):
            UNet.from_diffusers(folder)

    name = next(iter(index["weight_map"]))
    refused("must have the key 'weight_map'", weight_map={})
    refused("leads out of this folder", weight_map={name: "../other.safetensors"})
    refused("must name safetensors files .got other.bin", weight_map={name: "other.bin"})
    one = {k: v for k, v in index["weight_map"].items() if k != name}
    refused(f"holds {name}, unlike {INDEX} says .1 such", weight_map=one)
    refused("lacks invented, unlike", weight_map={**index["weight_map"], "invented": last})
    (folder / first).unlink()
    refused(f"{first}: no such file or directory. Download or save the model again")


def test_a_name_on_the_hub(stock: UNet2DModel, ours: UNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the Hub's cache holds a model that was downloaded: refs and snapshots."""
    cache: Any = {"cache_dir": tmp_path, "local_files_only": True}
    model = tmp_path / "models--someone--denoiser"
    (model / "refs").mkdir(parents=True)
    for name, commit in (("main", "a" * 40), ("old", "b" * 40)):
        (model / "refs" / name).write_text(commit)
        stock.save_pretrained(model / "snapshots" / commit / "unet", max_shard_size="20KB" if name == "old" else "1GB")
    ours.save_pretrained(model / "snapshots" / ("a" * 40) / "ours")
    monkeypatch.chdir(tmp_path)
    assert same(UNet.from_diffusers("someone/denoiser", **cache), ours)
    for revision in ("old", "b" * 40):
        assert same(UNet.from_diffusers("someone/denoiser", revision=revision, **cache), ours)
    assert same(UNet.from_pretrained("someone/denoiser", subfolder="ours", **cache), ours)
    assert same(UNet.from_pretrained("someone/denoiser", subfolder="unet", **cache), ours)
    with pytest.raises(UserError, match="someone/denoiser, revision=new: must be a directory or a model on the Hub"):
        UNet.from_diffusers("someone/denoiser", revision="new", **cache)
    shutil.copytree(model / "snapshots" / ("a" * 40), tmp_path / "someone" / "denoiser")
    with pytest.raises(UserError, match="revision=old: must be None with a directory"):
        UNet.from_diffusers("someone/denoiser", revision="old", **cache)
    assert same(UNet.from_diffusers("someone/denoiser", **cache), ours)  # a directory of this name


def test_options_of_diffusers_are_taken_or_refused(ours: UNet, tmp_path: Path) -> None:
    ours.save_pretrained(tmp_path)
    harmless: dict[str, Any] = {"low_cpu_mem_usage": True, "device_map": None, "offload_state_dict": False}
    assert same(UNet.from_pretrained(tmp_path, use_safetensors=True, **harmless), ours)
    for options, says in (
        ({"device_map": "auto"}, "device_map=auto: must be None, as it is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config=.*: must be None"),
        ({"use_safetensors": False}, "use_safetensors=False: must be None or True, as pickles are never loaded"),
    ):
        with pytest.raises(UserError, match=f"from_pretrained: {says}"):
            UNet.from_pretrained(tmp_path, **options)
