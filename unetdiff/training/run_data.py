"""The datasets of a run and its stream of training batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader

from unetdiff.config.schema import RunConfig
from unetdiff.config.training import TrainingConfig
from unetdiff.config.validation.data import needs_layout, reads_rgb, segmented_fraction
from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset, training_part
from unetdiff.data.check import require_clean
from unetdiff.data.config import DataConfig
from unetdiff.data.custom import CustomDataset, MapDataset, first_channels
from unetdiff.data.image_format import resolve_image_format
from unetdiff.data.labelled import LabelledSampler, segmented_count
from unetdiff.data.regularization import PairedDataset, PairedSampler
from unetdiff.data.repeat_factors import repeat_factors
from unetdiff.data.sampling import StepSampler
from unetdiff.data.stats import class_presence
from unetdiff.errors import UserError, config_error
from unetdiff.segmentation.border_weights import BorderWeighted
from unetdiff.training.latents import LatentCaches
from unetdiff.training.signals import ignore_signals
from unetdiff.training.tasks.base import Batch, Task

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

OPEN_FILES = (40, 16)
"""Open files that a run may need, and those of each data loading process: without them, loading would hang."""


def require_open_files(num_workers: int) -> None:
    """Check, or raise, the number of files that this process may open.

    Raises:
        UserError: the system's hard limit (`ulimit -Hn`) is too low for `training.num_workers`.
    """
    if resource is None or num_workers == 0:
        return
    needed = OPEN_FILES[0] + OPEN_FILES[1] * num_workers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard) or soft >= needed:
        return
    if hard < needed:
        remedy = f"Use 0, or raise the limit with ulimit -n {needed}."
        raise config_error("training.num_workers", num_workers, f"0 where {hard} files may be open", remedy)
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


GivenData = tuple[MapDataset, MapDataset]
"""The training and the validation dataset that were given in Python."""


def given_data(config: RunConfig, train_data: MapDataset | None, val_data: MapDataset | None) -> GivenData | None:
    """Both datasets, with which `data.name` becomes "custom"; None if none is given.

    Raises:
        UserError: one of the two is missing, or the config names another dataset.
    """
    if train_data is None and val_data is None:
        if config.data.name == "custom":
            remedy = "Call unetdiff.training.train(config, train_data=..., val_data=...) in Python."
            raise config_error("data.name", "custom", "another dataset where no train_data is given", remedy)
        return None
    if train_data is None or val_data is None:
        missing = "train_data" if train_data is None else "val_data"
        raise UserError(f"{missing}: must be given together with the other dataset.")
    if config.data.name not in ("custom", DataConfig.name):
        raise config_error("data.name", config.data.name, "left out where train_data and val_data are given")
    config.data.name = "custom"
    return train_data, val_data


def keys_of_items(config: RunConfig, masks: bool) -> tuple[str, ...]:
    """The keys, next to "image", that a run reads from the items of its datasets."""
    condition = config.diffusion.condition if config.task != "segmentation" else "none"
    reads_captions = condition == "text" or (config.task != "diffusion" and config.segmentation.context == "caption")
    return (
        *(("mask",) if masks else ()),
        *(("label",) if condition == "class" and not masks else ()),
        *(("caption",) if reads_captions else ()),
    )


class RunData:
    """Both splits of a run, checked by the main process before they are read.

    Attributes:
        config: with the channels and the range of the images, where the run's own leaves them to the data.
        train: the training split.
        val: the validation split.
        loaded_train, loaded_val: what batches are made of: the same, or with cached latents instead of images.
        segmented: images of a step's batch that a joint run segments.
        repeat_factors: relative sampling frequency of each training image, (len(train),), or None.
    """

    def __init__(self, config: RunConfig, accelerator: Accelerator, given: GivenData | None = None) -> None:
        masks, layout = config.task != "diffusion", needs_layout(config)
        if given is None:
            data: list[DataConfig] = [config.data]
            if accelerator.is_main_process:
                data = [resolve_image_format(config.data, masks, layout, reads_rgb(config))]
                require_clean(data[0], masks=masks or layout)
            accelerator.wait_for_everyone()
            self.config = replace(config, data=broadcast_object_list(data)[0])
            self.train = build_dataset(self.config.data, "train", masks, layout)
            self.val = build_dataset(self.config.data, "val", masks, layout)
        else:
            needs = keys_of_items(config, masks or layout)
            channels = config.data.channels or (None if reads_rgb(config) else first_channels(given[0]))
            config = self.config = replace(config, data=replace(config.data, channels=channels))
            whole = CustomDataset(given[0], "train_data", config.data, needs, True, layout)
            self.train = training_part(whole, config.data, masks, layout)
            self.val = CustomDataset(given[1], "val_data", config.data, needs, False, layout)
        self.loaded_train, self.loaded_val = self.train, self.val
        self.segmented = segmented_count(segmented_fraction(config), config.training.batch_size)
        threshold = config.data.repeat_factor_threshold if masks else None
        self.repeat_factors = repeat_factors(class_presence(self.train), threshold) if threshold else None

    def cache_latents(self, config: RunConfig, task: Task, steps: int, accelerator: Accelerator) -> str | None:
        """Encode both splits once, if the config says so; a line for the log. Collective."""
        cached = LatentCaches(config, task, self.train, self.val, steps, accelerator)
        self.loaded_train, self.loaded_val = cached.train, cached.val
        return cached.note

    def batches(
        self, settings: TrainingConfig, start: int, stop: int, strong_until: int, accelerator: Accelerator
    ) -> Iterator[Batch]:
        """This process's batches of the optimizer steps `start` to `stop`, one per accumulated part.

        With regularization images, a batch has as many of them, each after a training image. Where only some images
        have masks, one of these is at every place that is segmented.
        """
        dataset, others = self.loaded_train, self.loaded_train.regularization
        steps = StepSampler(
            len(self.train),
            settings.batch_size,
            settings.seed,
            start=start,
            stop=stop,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            accumulation_steps=settings.gradient_accumulation_steps,
            strong_until=strong_until,
            factors=self.repeat_factors,
            buckets=self.train.buckets,
        )
        sampler: StepSampler | PairedSampler | LabelledSampler = steps
        if self.train.labelled is not None:
            sampler = LabelledSampler(steps, self.train.labelled, self.segmented)
        segmentation = self.config.segmentation
        if self.config.task != "diffusion" and segmentation.border_weights is not None:
            dataset = BorderWeighted(dataset, segmentation.border_weights, segmentation.ignore_index)
        if others is not None:
            dataset, sampler = PairedDataset(dataset, others), PairedSampler(steps, others)
        loader: DataLoader[Batch] = DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=settings.num_workers,
            worker_init_fn=ignore_signals,
            pin_memory=accelerator.device.type == "cuda",
        )
        return iter(loader)
