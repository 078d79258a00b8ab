"""An optimizer step with a non-finite loss changes nothing, and training continues."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unetdiff.config.training import TrainingConfig
from unetdiff.training.draws import RowDraws
from unetdiff.training.step import optimizer_step
from unetdiff.training.step_layers import StepLayers


class Net(nn.Module):
    """A BatchNorm and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1)

    unet = property(lambda self: SimpleNamespace(device=self.out.weight.device))

    def forward(self, batch: dict[str, Any], draws: RowDraws) -> dict[str, Tensor]:
        losses = self.out(self.norm(batch["image"])).square()
        return {"loss": losses.sum(), "pixels": torch.tensor(losses.numel())}

    def losses(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": sums["loss"] / sums["pixels"]}

    def observer(self) -> None:
        return None

    def step_part(self, draws: RowDraws, layers: StepLayers) -> AbstractContextManager[None]:
        return layers.part(draws.step.seed, range(draws.count))

    def end_step(self, finite: bool) -> None:
        pass


class Scaled:
    """What an Accelerator does in float16, which it does on a GPU only, with torch's own scaler on the CPU."""

    num_processes, process_index, sync_gradients = 1, 0, True

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        self.optimizer = optimizer

    autocast = nullcontext

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def clip_grad_norm_(self, parameters: list[nn.Parameter], most: float) -> Tensor:
        self.scaler.unscale_(self.optimizer)
        return nn.utils.clip_grad_norm_(parameters, most)

    def step(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def zero_grad(self, set_to_none: bool) -> None:
        self.optimizer.zero_grad(set_to_none=set_to_none)


def batches(*peaks: float) -> Iterator[dict[str, Any]]:
    for number, peak in enumerate(peaks):
        image = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(number))
        image[0, :, 0, 0] = peak
        yield {"image": image, "name": [f"{number}a", f"{number}b"]}


def state(model: nn.Module) -> dict[str, Tensor]:
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    del kept["norm.num_batches_tracked"]
    return kept


def test_neither_weights_nor_statistics_take_what_is_not_finite() -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    accelerator, source = Accelerator(), batches(torch.inf, 1.0)
    before = state(model)
    losses, _, names = optimizer_step(model, optimizer, source, 0, TrainingConfig(), accelerator, StepLayers(model))
    assert losses["loss"].isnan() and names == ["0a", "0b"]
    assert all(torch.equal(before[name], value) for name, value in state(model).items())
    losses, _, _ = optimizer_step(model, optimizer, source, 1, TrainingConfig(), accelerator, StepLayers(model))
    assert losses["loss"].isfinite()
    assert not any(torch.equal(before[name], value) for name, value in state(model).items())


def test_float16_goes_on_with_a_smaller_scale() -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaled: Any = Scaled(optimizer)
    source, before = batches(torch.inf, 1.0), state(model)
    losses, _, _ = optimizer_step(model, scaled, source, 0, TrainingConfig(), scaled, StepLayers(model))
    assert losses["loss"].isnan() and scaled.scaler.get_scale() == 512.0
    assert all(torch.equal(before[name], value) for name, value in state(model).items())
    losses, _, _ = optimizer_step(model, scaled, source, 1, TrainingConfig(), scaled, StepLayers(model))
    assert losses["loss"].isfinite() and scaled.scaler.get_scale() == 512.0
    assert not torch.equal(before["out.weight"], model.out.weight)
