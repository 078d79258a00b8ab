"""Tasks built from a config: heads sized by the data, with the configured options."""

from __future__ import annotations

from collections.abc import Callable

from unetdiff.config.schema import RunConfig
from unetdiff.data.build import build_dataset
from unetdiff.training.tasks.build import build_task


def test_a_head_is_sized_by_the_data_and_keeps_its_convolution(tiny: Callable[..., RunConfig]) -> None:
    config = tiny("segmentation")
    config.model.imported.segmentation_kernel_size = 3
    data = build_dataset(config.data, "train", True)
    conv = build_task(config, data, data).unet.heads["segmentation"].conv
    assert (conv.out_channels, conv.kernel_size) == (len(data.classes), (3, 3)) and len(data.classes) != 21
