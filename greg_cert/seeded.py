"""Random draws that follow from a key alone, never from global state or from what else is drawn."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

CLEVER, SELECTION, ESTIMATION = range(3)
"""Purposes of `sample_stream`: streams of different purposes are independent of each other."""


def generator_for(device: torch.device, *key: int) -> torch.Generator:
    """A generator on `device` that depends on the whole key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8]) >> 1)


def sample_stream(seed: int, purpose: int, index: int, block: int) -> np.random.Generator:
    """Generator of one block of one sample's draws; different keys give independent streams.

    A sample's draws are then the same in whatever batch or order it is treated, and since the
    generator runs on the CPU, on every device.
    """
    key = np.random.SeedSequence(seed, spawn_key=(purpose, index, block))
    return np.random.Generator(np.random.Philox(key))
