"""Masked products of operator norms: how fast each node can move with the input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from greg_cert.verify.bounds.interval import Interval, steepest
from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import Activation, Add, Affine, Concat, Flatten, Graph, Smooth
from greg_cert.verify.operators.masked_norm import MaskedNorm


@dataclass(frozen=True)
class Slope:
    """The Jacobian of a node factors as diag(mask)·R with ‖R‖ ≤ constant, over the whole ball."""

    constant: Tensor  # (B,)
    mask: Tensor  # (B, *shape), nonnegative


class NodeSlopes:
    """Local Lipschitz constants of every node of one graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._norms = {
            i: MaskedNorm(node.op)
            for i, node in enumerate(graph.nodes)
            if isinstance(node.op, Affine)
        }

    def __call__(
        self, preactivations: Mapping[int, Interval], like: Tensor, norm: float
    ) -> list[Slope]:
        """One `Slope` a node, for the balls over which the pre-activations hold.

        Args:
            preactivations: for each activation node its input's (lower, upper).
            like: (B, *input_shape), for batch size, type and device.
            norm: 2.0 or inf; Jacobians are measured from ℓ_norm to ℓ_norm.
        """
        slopes = [Slope(like.new_ones(len(like)), torch.ones_like(like))]
        for i, node in self._graph.computed:
            parents = [slopes[j] for j in node.inputs]
            match node.op:
                case Affine():
                    # A layer before an activation is measured again there, with its rows masked.
                    ones = like.new_ones(len(like), *node.shape)
                    slopes.append(Slope(self._through(i, parents[0], ones, norm), ones))
                case Activation() | Smooth():
                    # |σ'| ≤ root², so J = diag(root)·R with R = diag(σ'/root)·J of the input.
                    root = steepest(node.op, *preactivations[i]).sqrt()
                    source = node.inputs[0]
                    constant = _whole(Slope(parents[0].constant, parents[0].mask * root))
                    if source in self._norms:
                        before = slopes[self._graph.nodes[source].inputs[0]]
                        constant = self._through(source, before, root, norm)
                    slopes.append(Slope(constant, root))
                case MaxPool() as op:
                    # A row is one of a window's, of a mask no larger than the window's largest.
                    constant = parents[0].constant * op.lipschitz(norm)
                    slopes.append(Slope(constant, op.apply(parents[0].mask)))
                case Add():
                    total = sum((_whole(p) for p in parents), torch.zeros_like(parents[0].constant))
                    slopes.append(Slope(total, like.new_ones(len(like), *node.shape)))
                case Concat():
                    constants = torch.stack([p.constant for p in parents])
                    together = constants.amax(0) if norm == math.inf else constants.norm(dim=0)
                    slopes.append(Slope(together, torch.cat([p.mask for p in parents], 1)))
                case Flatten():
                    slopes.append(Slope(parents[0].constant, parents[0].mask.flatten(1)))
                case _:
                    assert_never(node.op)
        return slopes

    def _through(self, i: int, source: Slope, rows: Tensor, norm: float) -> Tensor:
        return source.constant * self._norms[i].bound(source.mask, rows, norm)


def _whole(slope: Slope) -> Tensor:
    """The constant of the node itself, its mask included."""
    return slope.constant * slope.mask.flatten(1).amax(1)
