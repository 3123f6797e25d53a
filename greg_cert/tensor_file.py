"""Named tensors as safetensors files, which hold the digest of what they say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from greg_cert.digests import check_digest, tensors_digest
from greg_cert.errors import RunError
from greg_cert.files import atomic_path, plain_file

_DIGEST = "greg-cert digest"


class TensorFile(NamedTuple):
    """What a safetensors file holds."""

    tensors: dict[str, Tensor]  # by name, on the CPU
    digest: str | None  # that of the tensors, where the file holds it; None of one from elsewhere


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors and their digest, all of them or none; shared ones are written twice.

    Raises:
        RunError: where they cannot be written.
    """
    own = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()
    }
    try:
        with atomic_path(path) as temporary:
            save_file(own, temporary, {_DIGEST: tensors_digest(own)})
    except Exception as error:  # OSError, SafetensorError
        raise RunError(f"weights: cannot write {path}: {error}") from error


def read_tensors(path: Path) -> TensorFile:
    """The tensors in a file, if they are as they were written where the file tells.

    Raises:
        RunError: for a file that is missing or cannot be read, or whose content has another digest.
    """
    try:
        with safe_open(plain_file(path), "pt") as file:
            told = (file.metadata() or {}).get(_DIGEST)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = None if told is None else tensors_digest(tensors)
    except Exception as error:  # OSError, SafetensorError, and what odd headers lead to
        raise RunError(
            f"weights: expected a readable safetensors file, but got {path}: {error}"
        ) from error
    if found is not None:
        check_digest(told, found, path)
    return TensorFile(tensors, found)


def check_ties(own: Mapping[str, Tensor], values: Mapping[str, Tensor], path: Path) -> None:
    """Refuse several values for tensors that a model ties: one memory under several names.

    The last one copied would win in silence. The `values` of the file, on the CPU, are to be copied
    into some of the model's `own` tensors, such as its `state_dict()`, of the same shapes.

    Raises:
        RunError: names the file and the tensors.
    """
    owners: dict[tuple[int, torch.dtype], list[str]] = defaultdict(list)
    for name in values:
        owners[own[name].untyped_storage().data_ptr(), own[name].dtype].append(name)
    for names in owners.values():
        odd = _overwritten(names, own, values) if len(names) > 1 and own[names[0]].numel() else ()
        if odd:
            raise RunError(
                f"weights: expected one value in {path} for tensors that the model ties, "
                f"but got several for {', '.join(sorted(odd))}"
            )


def _overwritten(
    names: Sequence[str], own: Mapping[str, Tensor], values: Mapping[str, Tensor]
) -> set[str]:
    """Of tensors in one memory those that lose their value to another, and that one."""
    first = own[names[0]]
    memory = torch.empty(
        first.untyped_storage().nbytes() // first.element_size(), dtype=first.dtype
    )
    writer = torch.full(memory.shape, -1)

    def part(whole: Tensor, name: str) -> Tensor:
        return whole.as_strided(own[name].shape, own[name].stride(), own[name].storage_offset())

    for number, name in enumerate(names):
        part(memory, name).copy_(values[name])
        part(writer, name).fill_(number)
    odd = set()
    for name in names:
        if not torch.equal(part(memory, name), values[name].to(memory)):
            odd |= {name, *(names[i] for i in part(writer, name).unique().tolist())}
    return odd
