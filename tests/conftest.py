"""Settings of the whole suite."""

from __future__ import annotations

import torch

# Networks here are small: two threads that wait for each other on a busy machine cost far more.
torch.set_num_threads(1)
