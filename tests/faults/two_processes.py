"""What tests/faults/test_processes.py has two processes do: `torchrun --nproc_per_node 2 two_processes.py FOLDER`.

Every FOLDER/TASK.NAME.yaml is trained as `python -m unetdiff train` trains it, in the order of their names; then one
BatchNorm normalizes uneven parts of a batch, and a confusion matrix is summed; then the second process fails in a
training.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from unetdiff.cli.main import main
from unetdiff.errors import UserError

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
configs = sorted(folder.glob("*.yaml"))
statuses = [main(["train", config.name.split(".")[0], str(config)]) for config in configs]
(folder / f"statuses-{rank}.txt").write_text(" ".join(map(str, statuses)))

import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

from unetdiff.segmentation.metrics import ConfusionMatrix  # noqa: E402
from unetdiff.training import trainer  # noqa: E402
from unetdiff.training.step_layers import StepLayers  # noqa: E402

torch.manual_seed(0)
x, gradient = torch.randn(2, 6, 5, 4, 3, dtype=torch.float64) + 9  # parts of 2 and 4 images
rows = slice(0, 2) if rank == "0" else slice(2, 6)
norm = nn.BatchNorm2d(5).double()
StepLayers(norm, processes=2)
part = x[rows].clone().requires_grad_()
out = norm(part)
out.backward(gradient[rows])
tensors = {"out": out.detach(), "gradient": part.grad, "d_weight": norm.weight.grad, "d_bias": norm.bias.grad}
save_file(tensors | norm.state_dict(), folder / f"norm-{rank}.safetensors")

accelerator = Accelerator(cpu=True)
matrix = ConfusionMatrix(2)
count = 3 + int(rank)
matrix.update(torch.full((1, count), int(rank)), torch.zeros(1, count, dtype=torch.long))
sums = [matrix.reduce(accelerator).matrix.tolist() for _ in range(2)]  # twice: it must not count twice
(folder / f"matrix-{rank}.txt").write_text(str(sums))

step = trainer.optimizer_step


def failing_step(*args: Any, **options: Any) -> Any:
    if rank == "1":
        raise UserError("x.png: truncated. Replace it.")
    return step(*args, **options)


trainer.optimizer_step = failing_step
status = main(["train", configs[-1].name.split(".")[0], str(configs[-1]), "--output_dir", str(folder / "failed")])
(folder / f"failed-{rank}.txt").write_text(str(status))
sys.exit(status)
