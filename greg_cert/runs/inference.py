"""Running a model over image sets."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Generator, Iterable, Sequence

import torch
from torch import Tensor, nn

from greg_cert.data import Images, ImageSet, prefetch
from greg_cert.errors import UsageError

_PIXELS = 2**21  # of a batch: 512 images of 64×64


def batch_size(image_shape: Sequence[int]) -> int:
    """How many images (C, H, W) are run at once, as many as memory allows."""
    return max(1, min(512, _PIXELS // (image_shape[1] * image_shape[2])))


def set_batches(images: Images) -> Generator[Tensor, None, None]:
    """Raw images (B, C, H, W) of a whole set in order, float32 in [0, 1].

    Those on disk are decoded while the caller works; close the iterator where it may be left early.
    """
    indices = torch.arange(len(images)).split(batch_size(images.image_shape))
    if isinstance(images, ImageSet):
        yield from (images.pixels(i) for i in indices)
    else:
        with contextlib.closing(prefetch(indices, images.pixels)) as ready:
            yield from (pixels for _, pixels in ready)


def device_of(model: object) -> torch.device:
    """Where the model's tensors are; the CPU where it has none, or is no module, as others say."""
    if not isinstance(model, nn.Module):
        return torch.device("cpu")
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def evaluation_copy(
    model: nn.Module, dtype: torch.dtype, device: torch.device | None = None
) -> nn.Module:
    """A frozen copy of `model` in evaluation mode, in `dtype`; `model` itself is not touched.

    Raises:
        UsageError: where the model keeps something that cannot be copied.
    """
    # Old-style weight norm and pruning keep computed weights, which deepcopy refuses.
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        twin = copy.deepcopy(model, computed)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"cannot copy the model ({type(model).__name__}): {error}") from error
    return twin.to(device=device, dtype=dtype).eval().requires_grad_(False)


@torch.no_grad()
def logits_of(
    model: nn.Module,
    images: Images,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> Tensor:
    """Logits (N, K) of a whole set, by a copy of the model in `dtype`, on the CPU.

    float64 by default, so that scores, thresholds and certificates are of one function.
    """
    device = device or device_of(model)
    twin = evaluation_copy(model, dtype, device)
    with contextlib.closing(set_batches(images)) as ready:
        parts = ((twin(pixels.to(device, dtype)).cpu(),) for pixels in ready)
        (logits,) = gathered(parts, len(images))
    return logits


def gathered(parts: Iterable[tuple[Tensor, ...]], count: int) -> list[Tensor]:
    """Each of several tensors of `count` rows, of which every part brings the next ones.

    What `torch.cat` would give, but no part outlives its turn: thousands of small tensors, each
    allocated above the activations of its batch, keep the heap from being used again, and memory
    grows by those of every batch.
    """
    whole: list[Tensor] = []
    begin = 0
    for part in parts:
        if not whole:
            whole = [rows.new_empty((count, *rows.shape[1:])) for rows in part]
        end = begin + len(part[0])
        for kept, rows in zip(whole, part, strict=True):
            kept[begin:end] = rows
            del rows
        begin = end
        del part
    return whole
