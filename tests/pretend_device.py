"""A device that is not there: tensors that say they are elsewhere, and refuse to be mixed.

Values are computed on the CPU, so that whatever runs on `DEVICE` must come out to the bit as it
does there. What a real accelerator refuses is refused here: an operation on tensors of two devices
(but for CPU scalars and indices), a generator of another device, `numpy` of what is elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# The one kind besides the CPU that autograd takes everywhere; that of shapes alone has no number.
DEVICE = torch.device("meta", 0)

_CPU = torch.device("cpu")
_MIXED = ("aten::index", "aten::copy_", "aten::_index_put_impl_", "aten::_to_copy")
_FROM_PYTHON = (torch.tensor, torch.as_tensor)
_FACTORIES = {
    *_FROM_PYTHON,
    *(torch.zeros, torch.ones, torch.full, torch.empty, torch.eye, torch.arange, torch.linspace),
    *(torch.logspace, torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal),
    *(torch.scalar_tensor, torch.from_numpy, torch.frombuffer, torch.empty_strided, torch.range),
    *(torch.tril_indices, torch.triu_indices, torch.complex, torch.hann_window, torch.Tensor),
}


class Elsewhere(Tensor):
    """A tensor that says it is on `DEVICE`; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        return made

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """Tells `nn.Module.to` to put new parameters in the place of old ones."""
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> Elsewhere:
        return Elsewhere(inner["held"])

    def __deepcopy__(self, memo: Any) -> Any:
        memo[id(self)] = found = self.detach().clone().requires_grad_(self.requires_grad)
        return found


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FROM_PYTHON and kwargs.get("device") == DEVICE:  # no dispatch for this kind
            return func(*args, **{**kwargs, "device": _CPU}).to(DEVICE)
        return func(*args, **kwargs)


@contextmanager
def pretend_device() -> Iterator[torch.device]:
    """`DEVICE` can be used."""
    with _Dispatch(), _Functions():
        yield DEVICE


class NamesItsDevice(TorchFunctionMode):
    """Fails on a tensor that code of the given package makes without saying where."""

    def __init__(self, package: str) -> None:
        super().__init__()
        self._package = package

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func in _FACTORIES and not isinstance(args[0] if args else None, Tensor)
        if made and kwargs.get("device") is None:
            caller = sys._getframe(1)
            if caller.f_globals.get("__name__", "").startswith(self._package):
                place = f"{caller.f_code.co_filename}:{caller.f_lineno}"
                raise AssertionError(f"{place}: {func.__name__} without a device")
        return func(*args, **kwargs)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    # By hand: a walk through every kind of container takes ten times as long as the operation.
    given: list[Tensor] = []

    def unwrap(value: Any) -> Any:
        if isinstance(value, Tensor):
            given.append(value)
            return value.held if isinstance(value, Elsewhere) else value
        return [unwrap(v) for v in value] if isinstance(value, (list, tuple)) else value

    wanted, generator = kwargs.get("device"), kwargs.get("generator")
    plain = [unwrap(v) for v in args]
    named = {k: unwrap(v) for k, v in kwargs.items()} if kwargs else kwargs
    goes = any(isinstance(v, Elsewhere) for v in given)
    one = all(isinstance(v, Elsewhere) or v.dim() == 0 for v in given)
    if goes and not one and not func._schema.name.startswith(_MIXED):
        raise RuntimeError(f"{func}: expected tensors of one device, but got two")
    if wanted is not None:
        goes = torch.device(wanted) == DEVICE
        if goes:
            named["device"] = _CPU
    if goes and generator is not None:
        raise RuntimeError(f"{func}: expected a generator of {DEVICE}")
    found = func(*plain, **named)
    if not goes:
        return found

    def place(value: Any) -> Any:
        if isinstance(value, Tensor):
            # In place, or into `out`: what was given is given back, not another of its values.
            for v in given:
                if value is (v.held if isinstance(v, Elsewhere) else v):
                    return v
            return Elsewhere(value)
        return type(value)(place(v) for v in value) if isinstance(value, (list, tuple)) else value

    return place(found)
