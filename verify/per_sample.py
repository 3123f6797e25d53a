"""Whether a function treats each sample of a batch by itself, and the same way each time.

No theorem covers a function of the whole batch: its radii would move with the companions and the
batch size. Layers that are known to look at the batch are refused by name, others by comparison.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from greg_cert.errors import UnsupportedModelError
from greg_cert.verify.memory import is_out_of_memory

_TOLERANCE = 1e-8  # relative
_NUDGE = 1e-12  # relative: further than rounding, nearer than anything a model means
_KINDS = ("value", "gradient")
_ROWS = 16  # samples that are evaluated alone
_PER_NUDGE = 10.0  # a difference that so small a step makes as well is rounding, or a kink


def refuse_batch_layers(model: nn.Module) -> None:
    """Raise `UnsupportedModelError`, naming a layer of a model that `eval()` left as in training.

    That is BatchNorm of any kind that takes its statistics from the batch, and dropout that draws.
    """
    for name, module in model.named_modules():
        if not str(type(module).forward.__module__).startswith("torch.nn."):
            continue  # what a subclass makes of it is seen by its values alone
        label = f"layer {name or 'model'!r} ({type(module).__name__})"
        if isinstance(module, _BatchNorm):
            if module.running_mean is None and module.running_var is None:
                raise UnsupportedModelError(
                    f"{label}: expected running statistics, but it has none and takes those of the "
                    "batch; proofs are about functions of one sample"
                )
            if module.training:
                raise UnsupportedModelError(
                    f"{label}: expected evaluation mode after eval(), but it is in training mode "
                    "and takes the statistics of the batch"
                )
        draws = isinstance(module, nn.RReLU) or (isinstance(module, _DropoutNd) and module.p > 0)
        if draws and module.training:
            raise UnsupportedModelError(
                f"{label}: expected evaluation mode after eval(), but it is in training mode and "
                "draws at random"
            )


def check_rowwise(value: Callable[[Tensor], Tensor], x: Tensor, what: str) -> None:
    """Raise unless `value` gives each row what it gives that row alone, and gives it again.

    Values and input gradients are compared, to 1e-8 of the largest; up to 16 rows are tried.
    Gradients are left out where `value` has none, and where a kink is as near as rounding.

    Args:
        value: (B, ...) to (B,) or (B, K).
        x: (B, ...) float64 points at which to look; one will do.
        what: how to call the function in a message, such as `the model`.

    Raises:
        UnsupportedModelError: for a function of the batch, or of chance.
    """
    batch = _with_companions(x.detach())
    together, again = _value_and_gradient(value, batch), _value_and_gradient(value, batch)
    backwards = [part.flip(0) for part in _value_and_gradient(value, batch.flip(0))]
    scales = [_TOLERANCE * _largest(part.nan_to_num(0.0, 0.0, 0.0)) for part in together]
    for kind, one, other, allowed in zip(_KINDS, together, again, scales, strict=False):
        if not _same(one, other, allowed):
            raise UnsupportedModelError(
                f"expected the same {kind} of {what} for the same input, but it moves by "
                f"{_distance(one, other):.3g} from one call to the next"
            )
    rows = torch.linspace(0, len(x) - 1, min(len(x), _ROWS), device="cpu")
    for row in rows.long().unique().tolist():
        point = batch[row : row + 1]
        alone = _alone(value, point, what)
        for i, allowed in enumerate(scales):
            for found in (together[i][row : row + 1], backwards[i][row : row + 1]):
                moved = _distance(found, alone[i])
                if _same(found, alone[i], allowed) or moved <= _by_rounding(value, point, what, i):
                    continue
                raise UnsupportedModelError(
                    f"expected {what} to treat each sample by itself, but the {_KINDS[i]} of "
                    f"sample {row} moves by {moved:.3g} when it is alone: a function of the batch "
                    "has no certificates"
                )


def _with_companions(x: Tensor) -> Tensor:
    """The batch with points of other sizes beside it, so that no row is ever alone."""
    ramp = torch.linspace(0.0, 1.0, x[0].numel(), dtype=x.dtype, device=x.device)
    one, ramp = x[:1], ramp.reshape(x[:1].shape)
    return torch.cat([x, 0.5 * (one + ramp), 2 * one + 0.5, ramp - one])


def _by_rounding(value: Callable[[Tensor], Tensor], x: Tensor, what: str, part: int) -> float:
    """How far a step hardly longer than rounding takes the value, or the gradient, of x alone."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device="cpu")
    step = _NUDGE * (1 + x.abs().max()) * noise.to(x)
    one, other = (_alone(value, x + sign * step, what)[part] for sign in (1.0, -1.0))
    here = _alone(value, x, what)[part]
    return _PER_NUDGE * max(_distance(here, one), _distance(here, other))


def _value_and_gradient(value: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Values (B, ...), and the input gradient of their sum where they have one."""
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        found = value(leaf)
        parts = [found.detach()]
        if found.requires_grad:
            (gradient,) = torch.autograd.grad(found.sum(), leaf, allow_unused=True)
            parts.append(torch.zeros_like(x) if gradient is None else gradient)
    return parts


def _alone(value: Callable[[Tensor], Tensor], x: Tensor, what: str) -> list[Tensor]:
    try:
        return _value_and_gradient(value, x)
    except (RuntimeError, ValueError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        raise UnsupportedModelError(
            f"expected {what} to take one sample by itself, but it fails: {error}"
        ) from error


def _same(one: Tensor, other: Tensor, allowed: float) -> bool:
    if one.shape != other.shape:
        return False
    equal = (one == other) | (one.isnan() & other.isnan())
    return bool((equal | ((one - other).abs() <= allowed)).all())


def _distance(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    return _largest((one - other).nan_to_num(nan=float("inf")))


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
