"""What a command or a module imports: errors and help appear before torch is loaded."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from unetdiff.cli.main import COMMANDS

HEAVY = (
    "torch",
    "numpy",
    "torchvision",
    "diffusers",
    "accelerate",
    "transformers",
    "datasets",
    "matplotlib",
    "sklearn",
    "gradio",
)
LATER = ("evaluation", "benchmark", "reports", "experiments", "app", "cli")
"""Rooms that training must not import."""
CONFIGS = Path(__file__).parents[1] / "configs"
SCENES = str(CONFIGS / "segmentation" / "scenes.yaml")

# blocks an import as if the package were not installed
BLOCK = """
import sys
for name in {heavy!r}:
    sys.modules[name] = None
from unetdiff.cli.main import main
try:
    status = main({argv!r})
except SystemExit as leave:
    status = leave.code
sys.exit(status)
"""


def run_without_torch(argv: list[str], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    code = BLOCK.format(heavy=HEAVY, argv=argv)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([SCENES, "--training.stpes", "3"], "unknown option --training.stpes. Did you mean --training.steps?"),
        ([SCENES, "--training.steps", "many"], "training.steps=many: must be an integer or null."),
        ([SCENES, "--model.encoder.padding", "valid"], "model.encoder.padding"),
        ([SCENES, "--data.scenes.held_out_pairs", '["pink 3"]'], "data.scenes.held_out_pairs='pink 3': must be one of"),
        ([SCENES, "--data.name", "cifar10"], "data.name=cifar10: must be a dataset with masks"),
        ([SCENES, "--data.name=voc_folder", "--data.root=nowhere"], "data.root=nowhere: must be the existing folder"),
        (["nothing.yaml"], "config file nothing.yaml: does not exist."),
    ],
)
def test_train_rejects_a_config_without_torch(words: list[str], message: str, tmp_path: Path) -> None:
    result = run_without_torch(["train", "segmentation", *words], tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert result.stderr.startswith(f"unetdiff: {message}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_print_config_without_torch(path: Path, tmp_path: Path) -> None:
    words = ["--data.root=.", "--latent.vae=null", "--print_config"]
    if path.stem == "stable_diffusion":  # a diffusers directory's config is read with diffusers
        words += ["--model.pretrained=null", "--diffusion.condition=none"]
    result = run_without_torch(["train", path.parent.name, str(path), *words], tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"task: {path.parent.name}\n")


@pytest.mark.parametrize("argv", [[], *([name] for name in COMMANDS), ["data", "check"], ["data", "stats"]], ids=str)
def test_help_without_torch(argv: list[str], tmp_path: Path) -> None:
    result = run_without_torch([*argv, "--help"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert " ".join(["unetdiff", *argv]) in result.stdout


def test_importing_training_does_not_import_torch(tmp_path: Path) -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r})); import unetdiff.training"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_unet_imports_little_more_than_diffusers_and_train_no_later_room() -> None:
    code = f"""
    import sys
    from diffusers import UNet2DModel
    before = set(sys.modules)
    from unetdiff import UNet
    print(*sorted({{name.split(".")[0] for name in set(sys.modules) - before}}))
    from unetdiff.training import train
    assert callable(train)
    print([name for name in sys.modules if name.startswith(tuple("unetdiff." + room for room in {LATER}))])
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["einops unetdiff", "[]"]
