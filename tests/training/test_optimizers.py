"""Any optimizer of torch.optim by name: its arguments, its steps, and its state in a checkpoint."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unetdiff.config.reading import load, parse
from unetdiff.config.schema import RunConfig
from unetdiff.config.training import WITH_BETAS, WITHOUT_WEIGHT_DECAY, Optimizer, OptimizerConfig
from unetdiff.errors import FileError, UserError
from unetdiff.training.optimizer import make_optimizer
from unetdiff.training.optimizer_state import load_optimizer, optimizer_tensors
from unetdiff.training.progress import Progress
from unetdiff.training.trainer import train

NAMES = get_args(Optimizer)
ARGS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "Adam": {"amsgrad": True},
    "RMSprop": {"momentum": 0.9, "centered": True},
}


def test_the_names_and_their_arguments_are_torchs() -> None:
    """Left out: those that need a closure, sparse gradients, or matrices alone."""
    classes = {
        n: c for n, c in vars(torch.optim).items() if inspect.isclass(c) and issubclass(c, torch.optim.Optimizer)
    }
    assert set(NAMES) == set(classes) - {"Optimizer", "LBFGS", "SparseAdam", "Muon"}
    parameters = {name: inspect.signature(classes[name]).parameters for name in NAMES}
    assert set(WITH_BETAS) == {name for name in NAMES if "betas" in parameters[name]}
    assert set(WITHOUT_WEIGHT_DECAY) == {name for name in NAMES if "weight_decay" not in parameters[name]}


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 4, 3, 3), (8, 4), (8,), ()]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def group(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": parameters, "names": [f"p{index}" for index in range(len(parameters))]}]


def steps(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, seeds: range) -> list[Tensor]:
    """The parameters after steps with gradients drawn by seed; the last parameter has its first in the third step."""
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for index, parameter in enumerate(parameters):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient if index < 3 or seed > 1 else None
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_torchs_and_a_resumed_state_continues_bit_for_bit(name: str, tmp_path: Path) -> None:
    config = OptimizerConfig(name=name, lr=0.05, args=ARGS.get(name, {}))  # type: ignore[arg-type]
    whole = weights()
    after = steps(whole, optimizer := make_optimizer(group(whole), config), range(6))
    plain = weights()
    options: dict[str, Any] = {**config.args, **({"betas": (0.9, 0.999)} if name in WITH_BETAS else {})}
    reference = steps(plain, getattr(torch.optim, name)(plain, lr=0.05, foreach=False, **options), range(6))
    torch.testing.assert_close(after, reference, rtol=1e-5, atol=1e-6)

    killed = weights()
    optimizer = make_optimizer(group(killed), config)
    steps(killed, optimizer, range(4))
    tensors = {key: value.clone() for key, value in optimizer_tensors(optimizer).items()}
    save_file(tensors, tmp_path / "optimizer.safetensors")
    resumed = [nn.Parameter(parameter.detach().clone()) for parameter in killed]
    other = make_optimizer(group(resumed), config)
    load_optimizer(other, tmp_path / "optimizer.safetensors", Progress(step=4, optimizer_tensors=len(tensors)))
    assert all(torch.equal(a, b) for a, b in zip(steps(resumed, other, range(4, 6)), after, strict=True))
    if tensors:
        broken = {key: value for key, value in tensors.items() if key != min(tensors)}
        save_file(broken | {"p0|other": torch.zeros(1)}, tmp_path / "optimizer.safetensors")
        with pytest.raises(FileError, match="must (have|be of the same network)"):
            load_optimizer(other, tmp_path / "optimizer.safetensors", Progress(step=4, optimizer_tensors=len(tensors)))


def test_a_run_with_sgd(
    tiny: Callable[..., RunConfig], cut_and_resumed: Callable[[RunConfig], dict[str, Tensor]]
) -> None:
    options: dict[str, Any] = {"training__optimizer__name": "SGD", "training__optimizer__args": {"momentum": 0.9}}
    start = train(tiny("segmentation", "start", training__steps=1))
    options |= {"training__init_from": str(start), "training__freeze_encoder": 0.4}
    cut_and_resumed(tiny("segmentation", training__optimizer__lr=0.01, **options))
    wrong = tiny("segmentation", "wrong", training__optimizer__name="SGD", training__optimizer__args={"momentun": 0.9})
    with pytest.raises(UserError, match=r"args.momentun=0.9: must be an argument of .*SGD.* Did you mean momentum\?"):
        train(wrong)
    assert not Path(wrong.training.output_dir).exists()
    wrong.training.optimizer.args = {"nesterov": True}
    with pytest.raises(UserError, match=r"args=.*must be accepted by torch.optim.SGD .Nesterov momentum requires"):
        train(wrong)


def test_words_and_refusals(tmp_path: Path) -> None:
    words = ["--training.optimizer.name", "SGD", "--training.optimizer.args.momentum", "0.9"]
    words += ["--training.optimizer.args.nesterov", "true", "--training.steps", "5"]
    assert load(None, words, "segmentation").training.optimizer.args == {"momentum": 0.9, "nesterov": True}
    assert parse(None, ["--training.optimizer.args", "{eps: 1e-6}"]).training.optimizer.args == {"eps": 1e-6}
    for overrides, message in (
        ({"name": "SDG"}, r"optimizer.name=SDG: must be one of .* Did you mean SGD\?"),
        ({"name": "SGD", "betas": [0.9, 0.99]}, "optimizer.betas=.*must be left out with training.optimizer.name=SGD"),
        ({"name": "Rprop", "weight_decay": 0.1}, "weight_decay=0.1: must be left out with .*Rprop"),
        ({"args": {"lr": 1}}, "args=.*must be without lr. Set training.optimizer.lr"),
    ):
        with pytest.raises(UserError, match=message):
            flags = {f"training.optimizer.{key}": value for key, value in overrides.items()}
            load(None, {"training.steps": 5, **flags}, "segmentation")
    file = tmp_path / "mine.yaml"  # a flag wins over the file
    file.write_text("task: segmentation\ntraining: {steps: 5, optimizer: {betas: [0.9, 0.99]}}")
    assert load(file, ["--training.optimizer.name", "SGD"]).training.optimizer.betas == [0.9, 0.999]
