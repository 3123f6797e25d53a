"""Named tensors from a checkpoint file, read without ever running code from it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from greg_cert.errors import RunError
from greg_cert.files import is_file, parse_json, plain_file
from greg_cert.runs.pickled_numbers import numbers_allowed
from greg_cert.tensor_file import read_tensors

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar")

# Where training scripts put the weights, beside the optimiser and the epoch.
ENTRIES = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "params",
    "ema",
    "model_ema",
    "state_dict_ema",
    "params_ema",
)
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_INDEX = ".safetensors.index.json"
_PART = re.compile(r"(.+)-\d+-of-(\d+)\.safetensors")
_DEPTH = 3  # {"ema": {"model": {"state_dict": …}}}


class State(NamedTuple):
    """What a checkpoint file holds."""

    values: Mapping[str, Any]  # tensors; what is none is kept, to be judged by the reader
    entry: str  # where in the file they stood, such as `state_dict`; empty for the top
    parts: tuple[
        Path, ...
    ] = ()  # the files that hold them, where the one that was read is an index


def read_state(path: Path, entry: str | None = None) -> State:
    """The named tensors in a checkpoint file, on the CPU.

    `entry` is where in the file they stand, such as `ema.state_dict`; by default the one usual
    entry that is there, or the top.

    Raises:
        RunError: for a missing, corrupt or empty file, one that cannot be read without running
            code, one of ours that is not as it was written, an entry that is not there, or several
            entries to choose from.
    """
    if not is_file(path):
        raise RunError(f"weights: expected a checkpoint file, but got {path}")
    if path.name.endswith(_INDEX):
        return _read_parts(path)
    if path.suffix == ".safetensors":
        if part := _PART.fullmatch(path.name):
            raise RunError(
                f"weights: expected all parts of a file, but {path} is one of {int(part[2])}: give "
                f"the index beside it, {part[1]}{_INDEX}"
            )
        content: Any = read_tensors(path).tensors
    elif path.suffix in TORCH_SUFFIXES:
        content = _read_torch(path)
    else:
        raise RunError(
            f"weights: expected a file named .safetensors, {', '.join(TORCH_SUFFIXES)} or "
            f"{_INDEX}, but got {path}"
        )
    return _find_state(content, path) if entry is None else _state_at(entry, content, path)


def _find_state(content: Any, path: Path) -> State:
    places = _places(content, _DEPTH)
    if not places and _holds_tensors(content):
        return State(content, "")
    if not places:
        raise RunError(
            f"weights: expected named tensors in {path}, at the top or under one of "
            f"{', '.join(ENTRIES)}, but got {_shown(content)}"
        )
    (entry, found), *others = places.items()
    if others:
        raise RunError(
            f"weights.entry: expected one of {', '.join(places)}, all of which {path} has, "
            "but got none"
        )
    return State(found, entry)


def _state_at(entry: str, content: Any, path: Path) -> State:
    found = content
    for part in entry.split(".") if entry else []:
        found = found.get(part) if isinstance(found, Mapping) else None
    if not _holds_tensors(found):
        raise RunError(
            f"weights.entry: expected where the tensors of {path} stand, but got {entry!r}; "
            f"the file has {_shown(content)}"
        )
    return State(found, entry)


def _read_parts(index: Path) -> State:
    """The tensors of several safetensors files, by the index that says which holds which."""
    expected = f"weights: expected {index} to name files beside it by tensor (weight_map)"
    try:
        told = parse_json(plain_file(index).read_bytes().decode("utf-8-sig"))["weight_map"]
        names = {str(key): str(name) for key, name in told.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{expected}, but got {type(error).__name__}: {error}") from error
    if odd := [n for n in names.values() if n != Path(n).name or not n.endswith(".safetensors")]:
        raise RunError(f"{expected}, but got {odd[0]!r}")
    parts = {name: index.parent / name for name in sorted(set(names.values()))}
    read = {name: read_tensors(path).tensors for name, path in parts.items()}
    held = sorted((key, name) for name, tensors in read.items() for key in tensors)
    if odd_ones := set(held) ^ set(names.items()):
        key, name = min(odd_ones)
        found = "has, but not by it" if (key, name) in held else "should have by it, but has not"
        raise RunError(
            f"weights: expected {index} to fit its files, but got {key}, which {name} {found}"
        )
    return State({k: read[name][k] for k, name in names.items()}, "", tuple(parts.values()))


def _read_torch(path: Path) -> Any:
    try:
        with numbers_allowed(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and TorchScript
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a corrupt file may raise anything: KeyError, IndexError, EOFError
        # The advice in torch's own messages, to load without protection, is not passed on.
        needs = _GLOBAL.search(str(error))
        if needs or "TorchScript" in str(error):
            what = needs[1] if needs else "a TorchScript program"
            raise RunError(
                f"weights: expected tensors only, but got {path}, which asks for {what}: nothing "
                "of it was run; save the model's state_dict() where the file comes from"
            ) from None
        raise RunError(
            f"weights: expected a whole checkpoint of torch.save, but got {path}: it is corrupt, "
            f"cut short, or of another format ({type(error).__name__})"
        ) from None


def _holds_tensors(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and all(isinstance(key, str) for key in content)
        and any(isinstance(value, Tensor) for value in content.values())
    )


def _places(content: Any, depth: int) -> dict[str, Any]:
    """Dotted entry to state, for the usual entries that hold one."""
    if not isinstance(content, Mapping) or depth == 0:
        return {}
    places: dict[str, Any] = {}
    for entry in ENTRIES:
        inner = content.get(entry)
        if deeper := _places(inner, depth - 1):
            places |= {f"{entry}.{rest}": state for rest, state in deeper.items()}
        elif _holds_tensors(inner):
            places[entry] = inner
    return places


def _shown(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    keys = [str(key) for key in content]
    more = f" and {len(keys) - 6} more" if len(keys) > 6 else ""
    return f"the keys {', '.join(keys[:6])}{more}" if keys else "nothing"
