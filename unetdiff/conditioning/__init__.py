"""Conditions as context tokens for the denoiser's cross-attention, each with a null token."""

from __future__ import annotations

from unetdiff.conditioning.base import Conditioner
from unetdiff.conditioning.classes import ClassConditioner

__all__ = ["ClassConditioner", "Conditioner"]
