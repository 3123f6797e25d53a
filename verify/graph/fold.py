"""From operations as they were appended to the canonical graph: what can be folded is.

A per-channel step goes into the layer before it, or else becomes a layer; a rotation of pairs of
channels goes into the layer before it, or into those that read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from greg_cert.errors import UnsupportedModelError
from greg_cert.verify.graph.ops import (
    Affine,
    Computed,
    Conv,
    Flatten,
    Graph,
    Input,
    Linear,
    Node,
    Op,
)
from greg_cert.verify.graph.pairs import (
    Rotation,
    as_layer,
    commutes,
    rotated_input,
    rotated_output,
    takes_rotated,
)

_LARGEST_DIAGONAL = 8192  # a per-channel step on vectors becomes a dense matrix


@dataclass(frozen=True)
class PerChannel:
    """scale·x + shift of every channel, gone once the graph is finished."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Appended:
    """A node as it was appended, before folding."""

    name: str
    op: Op | Input | PerChannel | Rotation
    inputs: tuple[int, ...]
    shape: tuple[int, ...]


def canonical(
    appended: Sequence[Appended], output: int, dtype: torch.dtype, device: torch.device
) -> Graph:
    """The canonical graph that ends at node `output`; what does not reach it is dropped."""
    used = sorted(_ancestors(appended, output))
    readers: dict[int, list[int]] = {i: [] for i in used}
    for i in used:
        for j in appended[i].inputs:
            readers[j].append(i)
    nodes: list[Node] = []
    index: dict[int, int] = {}
    turned: dict[int, Rotation] = {}  # what is still to be done to the node that stands for i

    def append(given: Appended, op: Op, *inputs: int) -> int:
        nodes.append(Computed(given.name, op, inputs, given.shape))
        return len(nodes) - 1

    def settled(i: int) -> int:
        """The node that stands for i; a rotation still to be done becomes a layer of its own."""
        rotation = turned.pop(i, None)
        if rotation is not None:
            layer = as_layer(rotation, appended[i].shape, device, dtype)
            index[i] = append(appended[i], layer, index[i])
        return index[i]

    def absorbs(i: int) -> bool:
        """Whether node i, or all that read it, can take in a rotation of what it reads."""
        op = appended[i].op
        if isinstance(op, Affine) and takes_rotated(op):
            return True
        passes = isinstance(op, Flatten) or (isinstance(op, Conv) and commutes(op))
        return passes and i != output and all(absorbs(r) for r in readers[i])

    for i in used:
        given = appended[i]
        op, before = given.op, given.inputs
        if isinstance(op, Input):
            nodes.append(Node(given.name, op, (), given.shape))
            index[i] = 0
            continue
        if before[0] in turned and isinstance(op, Conv | Linear | Flatten) and absorbs(i):
            rotation = turned[before[0]]
            if isinstance(op, Affine) and takes_rotated(op):
                op = rotated_input(op, rotation)
            else:
                turned[i] = rotation
            index[i] = append(given, op, index[before[0]])
            continue
        inputs = tuple(settled(j) for j in before)
        if not isinstance(op, PerChannel | Rotation):
            index[i] = append(given, op, *inputs)
            continue
        source = nodes[inputs[0]]
        if len(readers[before[0]]) == 1 and isinstance(source.op, Affine):
            whole = _followed(source.op, op)
            if whole is not None:
                nodes[inputs[0]] = replace(source, op=whole)
                index[i] = inputs[0]
                continue
        if isinstance(op, Rotation):
            _check_size(given)
            index[i], turned[i] = inputs[0], op
        else:
            index[i] = append(given, _as_affine(given, op, device), *inputs)
    settled(output)
    return Graph(tuple(nodes))


def _as_affine(given: Appended, step: PerChannel, device: torch.device) -> Conv | Linear:
    scale, shift = step.scale.to(device), step.shift.to(device)
    if len(given.shape) == 3:
        return Conv(scale.reshape(-1, 1, 1, 1), shift, given.shape, groups=len(scale))
    _check_size(given)
    return Linear(torch.diag(scale), shift)


def _check_size(given: Appended) -> None:
    """Refuse what would become too large a matrix."""
    if given.shape[0] > _LARGEST_DIAGONAL:
        raise UnsupportedModelError(
            f"layer {given.name!r} takes {given.shape[0]} features one by one; at most "
            f"{_LARGEST_DIAGONAL} are supported"
        )


def _ancestors(appended: Sequence[Appended], output: int) -> set[int]:
    found, stack = {0}, [output]
    while stack:
        i = stack.pop()
        if i not in found:
            found.add(i)
            stack.extend(appended[i].inputs)
    return found


def _followed(op: Conv | Linear, step: PerChannel | Rotation) -> Conv | Linear | None:
    """The layer followed by the step, as one layer, or None where that is none."""
    if isinstance(step, Rotation):
        return rotated_output(op, step)
    scale, shift = step.scale.to(op.weight.device), step.shift.to(op.weight.device)
    weight = op.weight * scale.reshape(-1, *[1] * (op.weight.ndim - 1))
    return replace(op, weight=weight, bias=op.bias * scale + shift)
