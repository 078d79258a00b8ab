"""The public name of `unetdiff.training.schedules`."""

from unetdiff.training.schedules import *  # noqa: F403
