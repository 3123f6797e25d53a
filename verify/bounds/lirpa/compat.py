"""auto-LiRPA 0.3 on today's torch and numpy: the four names it misses, supplied once, on import.

0.3 is the newest release on the package index; 0.7, from its own repository, needs none of this and
is taken as it is.
"""

from __future__ import annotations

import importlib
import logging
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch

from greg_cert.errors import EngineError


@cache
def load_auto_lirpa() -> Any:
    """The auto_LiRPA module, made to run on this torch.

    Raises:
        EngineError: if the package is missing or cannot be imported; says how to install it.
    """
    _supply_numpy_name()
    _supply_opset_setter()
    _supply_node_attributes()
    log = logging.getLogger("torch.utils.cpp_extension")  # tells that there is no CUDA compiler
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        # Recording, because the import itself resets the warning filters.
        with warnings.catch_warnings(record=True):
            module = importlib.import_module("auto_LiRPA")
            general = importlib.import_module("auto_LiRPA.bound_general")
    except ImportError as error:
        raise EngineError(
            f"cannot import auto_LiRPA ({error}); "
            "install it with: pip install --no-deps auto-LiRPA==0.3"
        ) from error
    finally:
        log.setLevel(level)
    _accept_remove_duplicate(general.BoundedModule)
    return module


def _supply_numpy_name() -> None:
    name = "numpy.lib.arraysetops"
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        stand_in = types.ModuleType(name)
        stand_in.isin = np.isin  # type: ignore[attr-defined]
        sys.modules[name] = stand_in


def _supply_opset_setter() -> None:
    helper = importlib.import_module("torch.onnx.symbolic_helper")
    if hasattr(helper, "_set_opset_version"):
        return
    state = _onnx_globals()

    def set_opset_version(version: int) -> None:
        state.export_onnx_opset_version = version

    helper._set_opset_version = set_opset_version  # type: ignore[attr-defined]


def _onnx_globals() -> Any:
    for name in ("torch.onnx._internal.torchscript_exporter._globals", "torch.onnx._globals"):
        try:
            return importlib.import_module(name).GLOBALS
        except ImportError:
            continue
    raise EngineError(
        f"torch {torch.__version__} has no TorchScript ONNX exporter, which auto-LiRPA 0.3 needs"
    )


def _supply_node_attributes() -> None:
    """`node[name]` on TorchScript nodes, which torch 2 took away."""
    node = torch._C.Node
    if hasattr(node, "__getitem__"):
        return

    def get(self: Any, name: str) -> Any:
        return getattr(self, self.kindOf(name))(name)

    node.__getitem__ = get  # type: ignore[method-assign]


def _accept_remove_duplicate(module_class: Any) -> None:
    """`_named_members(..., remove_duplicate=...)`, which `torch.nn.Module` now passes."""
    original: Callable[..., Iterator[Any]] = module_class._named_members
    if "remove_duplicate" in original.__code__.co_varnames:
        return

    def named_members(
        self: Any, get: Any, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[Any]:
        return original(self, get, prefix=prefix, recurse=recurse)

    module_class._named_members = named_members
