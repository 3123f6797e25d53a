"""Which activations are charged for how far they move, and what a search begins with."""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.verify.bounds.coupled.ball_boxes import Moved
from greg_cert.verify.bounds.coupled.neurons import Variables
from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import NONLINEAR, Activation, Add, Affine, Conv, Graph
from greg_cert.verify.operators.band import Band
from greg_cert.verify.operators.layers import as_convolution

_SMALLEST = 1e-4  # share of a sum's charge that an operand begins with
_WORK = 2e10  # multiplications of the factorisations of one proof, about a second


def charged_activations(graph: Graph) -> frozenset[int]:
    """Activations whose charge can be proven: the affine layers that it passes next are small.

    The cheapest first, as long as all of them together cost no more than `_WORK` to prove.
    """
    passed: dict[int, dict[int, Band]] = {}
    for i in graph.activations:
        stack, bands = [graph.nodes[i].inputs[0]], {}
        while stack:
            node = graph.nodes[j := stack.pop()]
            diagonal = isinstance(node.op, Conv) and node.op.is_diagonal
            if isinstance(node.op, Affine) and not diagonal:
                bands[j] = Band.of(as_convolution(node.op))
            if j and not isinstance(node.op, Activation):  # other nodes hand on what they are given
                stack += node.inputs
        if all(band.fits for band in bands.values()):
            passed[i] = bands
    found: set[int] = set()
    proven: dict[int, Band] = {}
    for i in sorted(passed, key=lambda i: sum(band.work for band in passed[i].values())):
        together = proven | passed[i]
        if sum(band.work for band in together.values()) <= _WORK:
            found.add(i)
            proven = together
    return frozenset(found)


@torch.no_grad()
def add_charges(
    graph: Graph,
    norms: dict[int, float],
    charged: frozenset[int],
    moved: list[Moved],
    balls: dict[int, Tensor],
    variables: Variables,
) -> None:
    """First charges, in place: each activation's own best ball, and all that is passed to it."""
    passed: dict[int, Tensor] = {}  # one number (B, 1) a node, for all its elements

    def give(node: int, charge: Tensor) -> None:
        passed[node] = passed[node] + charge if node in passed else charge

    for i in range(len(graph.nodes) - 1, 0, -1):
        node, charge = graph.nodes[i], passed.pop(i, None)
        if i in balls:
            total = balls[i].exp() if charge is None else balls[i].exp() + charge
            shape = moved[i].centre.shape
            if i not in charged:
                variables["ball", i] = total.log()
                continue
            log = total.log().reshape(len(total), 1, *[1] * (len(shape) - 1))
            variables["charge", i] = log.repeat(1, 1, *shape[1:])
            give(node.inputs[0], total)
        elif charge is not None:
            if isinstance(node.op, Add):
                # In proportion to how far each may move: then the roots of what they cost add up.
                far = torch.stack([moved[j].reach for j in node.inputs], 1)
                far = torch.maximum(far, _SMALLEST * far.amax(1, keepdim=True)).log().unsqueeze(1)
                shape = moved[i].centre.shape[1:]
                logits = far.reshape(*far.shape, *[1] * len(shape)).nan_to_num()
                variables["join", i] = logits.repeat(1, 1, 1, *shape)
                for j, weight in zip(node.inputs, logits.flatten(1).softmax(1).T, strict=True):
                    give(j, charge / weight.unsqueeze(1))
                continue
            if isinstance(node.op, Affine):
                charge = charge * norms[i] ** 2
            elif isinstance(node.op, MaxPool):
                charge = charge * node.op.overlap
            for j in node.inputs:
                give(j, charge)


def reads_input(graph: Graph, i: int) -> bool:
    """Whether only affine steps lie between an affine layer and the input, or it is diagonal."""
    op = graph.nodes[i].op
    if isinstance(op, Conv) and op.is_diagonal:
        return True
    stack = list(graph.nodes[i].inputs)
    while stack:
        j = stack.pop()
        if isinstance(graph.nodes[j].op, NONLINEAR):
            return False
        stack += graph.nodes[j].inputs
    return True
