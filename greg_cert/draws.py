"""Random draws that depend on a key alone, never on global state or on what else is drawn."""

from __future__ import annotations

import hashlib

import torch


def generator_for(device: torch.device, *key: int) -> torch.Generator:
    """A generator on `device` that depends on the whole key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8]) >> 1)
