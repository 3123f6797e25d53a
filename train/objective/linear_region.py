"""The linear region of a network around its inputs, held fast for another forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

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
            out: Tensor = _HOLD[name](arguments, piece)
            return out

        with _Mode(hold):
            yield
        if next(left, None) is not None:
            raise UsageError("expected all operations of the recorded pass, but got fewer")

    def _record(self, name: str, arguments: dict[str, Any]) -> Tensor:
        out, piece = _RECORD[name](arguments)
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
        if name not in _PARAMETERS:
            return func(*args, **kwargs)
        arguments = dict(zip(_PARAMETERS[name], args, strict=False)) | kwargs
        if name in _DROPOUTS and not arguments.get("training", True):
            return func(*args, **kwargs)
        return self._handle(name, arguments)


_POOL = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d")
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "relu": ("input", "inplace"),
    "leaky_relu": ("input", "negative_slope", "inplace"),
    "hardtanh": ("input", "min_val", "max_val", "inplace"),
    "relu6": ("input", "inplace"),
    "max_pool2d": _POOL,
    "adaptive_max_pool2d": ("input", "output_size", "return_indices"),
    **dict.fromkeys(_DROPOUTS, ("input", "p", "training", "inplace")),
    **dict.fromkeys(("maximum", "minimum"), ("input", "other")),
}


def _without(arguments: dict[str, Any], *names: str) -> dict[str, Any]:
    return {k: v for k, v in arguments.items() if k not in names}


def _record_relu(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    out = torch.relu(arguments["input"])
    return out, out


def _hold_relu(arguments: dict[str, Any], piece: Tensor) -> Tensor:
    # The derivative of ReLU at the recorded point, applied to the value itself.
    out: Tensor = torch.ops.aten.threshold_backward(arguments["input"], piece, 0)
    return out


def _record_leaky(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return F.leaky_relu(**_without(arguments, "inplace")), arguments["input"]


def _hold_leaky(arguments: dict[str, Any], piece: Tensor) -> Tensor:
    slope = arguments.get("negative_slope", 0.01)
    out: Tensor = torch.ops.aten.leaky_relu_backward(arguments["input"], piece, slope, False)
    return out


def _record_hardtanh(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return F.hardtanh(**_without(arguments, "inplace")), arguments["input"]


def _six(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"input": arguments["input"], "min_val": 0.0, "max_val": 6.0}


def _hold_hardtanh(arguments: dict[str, Any], piece: Tensor) -> Tensor:
    low, high = arguments.get("min_val", -1.0), arguments.get("max_val", 1.0)
    return torch.where((piece > low) & (piece < high), arguments["input"], piece.clamp(low, high))


def _record_max_pool(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    out, places = F.max_pool2d_with_indices(**_without(arguments, "return_indices"))
    return out, places


def _record_adaptive_max_pool(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    out, places = F.adaptive_max_pool2d(**arguments | {"return_indices": True})
    return out, places


def _hold_max_pool(arguments: dict[str, Any], piece: Tensor) -> Tensor:
    values: Tensor = arguments["input"]
    return values.flatten(-2).gather(-1, piece.flatten(-2)).view_as(piece)


def _record_dropout(dropout: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    def record(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
        values = arguments["input"]
        mask = dropout(torch.ones_like(values), **_without(arguments, "input", "inplace"))
        return values * mask, mask

    return record


def _hold_dropout(arguments: dict[str, Any], piece: Tensor) -> Tensor:
    out: Tensor = arguments["input"] * piece
    return out


def _record_maximum(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    first, second = arguments["input"], arguments["other"]
    return torch.maximum(first, second), first >= second


def _record_minimum(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    first, second = arguments["input"], arguments["other"]
    return torch.minimum(first, second), first < second  # at ties the one that the maximum is not


def _hold_either(arguments: dict[str, Any], piece: Tensor) -> Tensor:
    return torch.where(piece, arguments["input"], arguments["other"])


_RECORD: dict[str, Callable[[dict[str, Any]], tuple[Tensor, Tensor]]] = {
    "relu": _record_relu,
    "leaky_relu": _record_leaky,
    "hardtanh": _record_hardtanh,
    "relu6": lambda arguments: _record_hardtanh(_six(arguments)),
    "max_pool2d": _record_max_pool,
    "adaptive_max_pool2d": _record_adaptive_max_pool,
    **{name: _record_dropout(getattr(F, name)) for name in _DROPOUTS},
    "maximum": _record_maximum,
    "minimum": _record_minimum,
}
_HOLD: dict[str, Callable[[dict[str, Any], Tensor], Tensor]] = {
    "relu": _hold_relu,
    "leaky_relu": _hold_leaky,
    "hardtanh": _hold_hardtanh,
    "relu6": lambda arguments, piece: _hold_hardtanh(_six(arguments), piece),
    "max_pool2d": _hold_max_pool,
    "adaptive_max_pool2d": _hold_max_pool,
    **dict.fromkeys(_DROPOUTS, _hold_dropout),
    **dict.fromkeys(("maximum", "minimum"), _hold_either),
}
