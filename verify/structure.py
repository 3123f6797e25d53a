"""What tracing a model cannot see: wrappers, hooks, replaced methods; refused by layer name."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from greg_cert.errors import UnsupportedModelError

# They set a weight before each call and change nothing else; the copy that is traced has run them.
_REPARAMETRISATIONS = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
_WRAPPERS = (
    nn.DataParallel,
    nn.parallel.DistributedDataParallel,
    torch.optim.swa_utils.AveragedModel,
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_CALLS = ("forward", "__call__", "_call_impl", "_wrapped_call_impl")
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)
# As they were when this module was imported, so that a later replacement is seen.
_MODULE_CALLS = {name: getattr(nn.Module, name) for name in _CALLS[1:]}
_FUNCTIONS = {name: f for name, f in vars(F).items() if callable(f) and not name.startswith("__")}


def check_model(model: object) -> None:
    """Refuse what is not the network itself but something around it; says what to pass instead.

    Raises:
        UnsupportedModelError: for another object than a module, a wrapper for several devices, a
            compiled, scripted or exported module, anywhere in the model.
    """
    if isinstance(model, torch.export.ExportedProgram):
        raise UnsupportedModelError(_other("ExportedProgram", "the module that was exported"))
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"expected model to be a torch.nn.Module, but got {type(model).__name__}"
        )
    for name, module in model.named_modules():
        if (instead := _wrapped(module)) is not None:
            where = f"layer {name!r} is" if name else "the model is"
            raise UnsupportedModelError(f"{where} {_other(type(module).__name__, instead)}")


def _other(kind: str, instead: str) -> str:
    return f"a {kind}; expected the plain module, pass {instead}"


def _wrapped(module: nn.Module) -> str | None:
    """What to pass in place of a wrapper, or None where it is none."""
    if isinstance(module, torch.jit.ScriptModule):
        return "the module that was scripted or traced"
    if any(cls.__module__.startswith("torch.export") for cls in type(module).__mro__):
        return "the module that was exported"
    if hasattr(module, "_orig_mod"):  # torch.compile
        return "its ._orig_mod"
    inside = ("_forward_module", "_fsdp_wrapped_module")  # Lightning Fabric, sharded data parallel
    if isinstance(module, _WRAPPERS) or any(hasattr(module, name) for name in inside):
        return "its .module"
    return None


def check_traceable(model: nn.Module) -> None:
    """Refuse hooks and replaced methods, which run but leave no trace in the graph.

    Spectral norm, weight norm and pruning are taken as they are: they only set weights.

    Raises:
        UnsupportedModelError: names the first layer that has one.
    """
    for name in _GLOBAL_HOOKS:
        if getattr(torch_module, name):
            raise UnsupportedModelError(
                f"torch.nn has a hook for all modules ({name}), which may change what any layer "
                "gives; remove it"
            )
    for name, call in _MODULE_CALLS.items():
        if getattr(nn.Module, name) is not call:
            raise UnsupportedModelError(f"torch.nn.Module.{name} was replaced; restore it")
    for name, function in _FUNCTIONS.items():
        if getattr(F, name, None) is not function:
            raise UnsupportedModelError(f"torch.nn.functional.{name} was replaced; restore it")
    for name, module in model.named_modules():
        where = f"layer {name!r}" if name else "the model itself"
        for fault in _faults(module):
            raise UnsupportedModelError(
                f"{where} ({type(module).__name__}) {fault}, so what runs is not what its layers "
                "say: write it as a layer of the model, or remove it"
            )


def _faults(module: nn.Module) -> Iterator[str]:
    for kind in _HOOKS:
        for hook in vars(module).get(kind, {}).values():
            if not isinstance(hook, _REPARAMETRISATIONS):
                name = getattr(hook, "__qualname__", type(hook).__name__)
                yield f"has a hook ({kind.strip('_').replace('_', ' ')[:-1]} {name})"
    for call in _CALLS:
        if call in vars(module):
            yield f"has a {call} of its own, set on the instance"
    if not isinstance(module, fx.GraphModule):  # each is a class of its own, with its own __call__
        for call, original in _MODULE_CALLS.items():
            if getattr(type(module), call) is not original:
                yield f"replaces {call} of torch.nn.Module"


def says_what_it_does(module: nn.Module, leaf: type[nn.Module]) -> bool:
    """Whether a layer of a known class runs that class's own code, so that its settings say all.

    A subclass may add methods and settings, as a parametrisation does; one that overrides a method
    that the class has is traced through like any other module.
    """
    for cls in type(module).__mro__:
        if cls is leaf:
            break
        if any(hasattr(leaf, name) for name in vars(cls) if not name.startswith("__")):
            return False
    own = (name for name in vars(module) if not name.startswith("__"))
    return not any(callable(getattr(leaf, name, None)) for name in own)
