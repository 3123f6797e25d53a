"""The linear region of a network around its inputs, held fast for another forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from greg_cert.errors import UsageError


class LinearRegion:
    """Which piece of each piecewise-linear operation the inputs of one forward pass lie on.

    `record` watches a pass; `hold` makes later ones use the same pieces and the same dropout masks,
    on whatever side of a kink their inputs fall. So a network of such operations becomes the affine
    map that it is at the recorded inputs, and a finite difference of it meets no jumps.

    ReLU, ReLU6, LeakyReLU, two-dimensional max pooling and dropout are known, as modules and as
    functions of `torch.nn.functional`, and torch's maximum and minimum, so MaxMin; all other
    operations run as they are.
    """

    def __init__(self) -> None:
        self._pieces: list[tuple[str, Tensor]] = []

    @contextlib.contextmanager
    def record(self) -> Iterator[None]:
        """Watch the forward pass inside."""
        self._pieces.clear()
        with _Mode(self._record):
            yield

    @contextlib.contextmanager
    def hold(self, chosen: Tensor | None = None) -> Iterator[None]:
        """Within the block, the recorded pieces; of the samples `chosen` (M,) where given.

        Raises:
            UsageError: if the pass inside is not the recorded sequence of operations.
        """
        left = iter(self._pieces)

        def hold(name: str, arguments: dict[str, Any]) -> Tensor:
            recorded, piece = next(left, ("nothing", torch.empty(0)))
            if recorded != name:
                raise UsageError(f"expected {recorded} as in the recorded pass, but got {name}")
            if chosen is not None:
                piece = piece[chosen]
            out: Tensor = _OPERATIONS[name].hold(arguments, piece)
            return out

        with _Mode(hold):
            yield
        if next(left, None) is not None:
            raise UsageError("expected all operations of the recorded pass, but got fewer")

    def _record(self, name: str, arguments: dict[str, Any]) -> Tensor:
        out, piece = _OPERATIONS[name].record(arguments)
        self._pieces.append((name, piece.detach()))
        return out


class _Mode(TorchFunctionMode):
    """Gives every known operation to `handle`, with its arguments by name."""

    def __init__(self, handle: Callable[[str, dict[str, Any]], Tensor]) -> None:
        super().__init__()
        self._handle = handle

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in _OPERATIONS:
            return func(*args, **kwargs)
        arguments = dict(zip(_OPERATIONS[name].parameters, args, strict=False)) | kwargs
        if name in _DROPOUTS and not arguments.get("training", True):
            return func(*args, **kwargs)
        return self._handle(name, arguments)


_Arguments = dict[str, Any]


class _Operation(NamedTuple):
    """What is known of a piecewise-linear operation."""

    parameters: tuple[str, ...]
    record: Callable[[_Arguments], tuple[Tensor, Tensor]]  # to the output and the piece
    hold: Callable[[_Arguments, Tensor], Tensor]  # to the output on that piece


def _without(arguments: _Arguments, *names: str) -> _Arguments:
    return {k: v for k, v in arguments.items() if k not in names}


def _record_relu(arguments: _Arguments) -> tuple[Tensor, Tensor]:
    out = torch.relu(arguments["input"])
    return out, out


def _hold_relu(arguments: _Arguments, piece: Tensor) -> Tensor:
    # The derivative of ReLU at the recorded point, applied to the value itself.
    out: Tensor = torch.ops.aten.threshold_backward(arguments["input"], piece, 0)
    return out


def _record_leaky(arguments: _Arguments) -> tuple[Tensor, Tensor]:
    return F.leaky_relu(**_without(arguments, "inplace")), arguments["input"]


def _hold_leaky(arguments: _Arguments, piece: Tensor) -> Tensor:
    slope = arguments.get("negative_slope", 0.01)
    out: Tensor = torch.ops.aten.leaky_relu_backward(arguments["input"], piece, slope, False)
    return out


def _record_hardtanh(arguments: _Arguments) -> tuple[Tensor, Tensor]:
    return F.hardtanh(**_without(arguments, "inplace")), arguments["input"]


def _hold_hardtanh(arguments: _Arguments, piece: Tensor) -> Tensor:
    low, high = arguments.get("min_val", -1.0), arguments.get("max_val", 1.0)
    return torch.where((piece > low) & (piece < high), arguments["input"], piece.clamp(low, high))


def _relu6(arguments: _Arguments) -> _Arguments:
    return {"input": arguments["input"], "min_val": 0.0, "max_val": 6.0}


def _record_max_pool(arguments: _Arguments) -> tuple[Tensor, Tensor]:
    out, places = F.max_pool2d_with_indices(**_without(arguments, "return_indices"))
    return out, places


def _record_adaptive_max_pool(arguments: _Arguments) -> tuple[Tensor, Tensor]:
    out, places = F.adaptive_max_pool2d(**arguments | {"return_indices": True})
    return out, places


def _hold_max_pool(arguments: _Arguments, piece: Tensor) -> Tensor:
    values: Tensor = arguments["input"]
    return values.flatten(-2).gather(-1, piece.flatten(-2)).view_as(piece)


def _dropout(function: Callable[..., Tensor]) -> _Operation:
    def record(arguments: _Arguments) -> tuple[Tensor, Tensor]:
        values = arguments["input"]
        mask = function(torch.ones_like(values), **_without(arguments, "input", "inplace"))
        return values * mask, mask

    parameters = ("input", "p", "training", "inplace")
    return _Operation(parameters, record, lambda arguments, mask: arguments["input"] * mask)


def _extremum(function: Callable[..., Tensor], is_first: Callable[..., Tensor]) -> _Operation:
    """The larger or the smaller of two tensors; `is_first` says where it is the first."""

    def record(arguments: _Arguments) -> tuple[Tensor, Tensor]:
        pair = arguments["input"], arguments["other"]
        return function(*pair), is_first(*pair)

    def hold(arguments: _Arguments, first: Tensor) -> Tensor:
        return torch.where(first, arguments["input"], arguments["other"])

    return _Operation(("input", "other"), record, hold)


_POOL = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d")
_OPERATIONS = {
    "relu": _Operation(("input", "inplace"), _record_relu, _hold_relu),
    "leaky_relu": _Operation(("input", "negative_slope", "inplace"), _record_leaky, _hold_leaky),
    "hardtanh": _Operation(
        ("input", "min_val", "max_val", "inplace"), _record_hardtanh, _hold_hardtanh
    ),
    "relu6": _Operation(
        ("input", "inplace"),
        lambda arguments: _record_hardtanh(_relu6(arguments)),
        lambda arguments, piece: _hold_hardtanh(_relu6(arguments), piece),
    ),
    "max_pool2d": _Operation(_POOL, _record_max_pool, _hold_max_pool),
    "adaptive_max_pool2d": _Operation(
        ("input", "output_size", "return_indices"), _record_adaptive_max_pool, _hold_max_pool
    ),
    **{name: _dropout(getattr(F, name)) for name in _DROPOUTS},
    "maximum": _extremum(torch.maximum, torch.ge),
    "minimum": _extremum(torch.minimum, torch.lt),  # at ties the one that the maximum is not
}
