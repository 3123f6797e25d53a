"""L̄, the formula of the Lipschitz constant that certificates prove, as a penalty for training.

The same walk over the same graph as `greg_cert.verify.global_lipschitz_bound`, but the norm of each
layer comes from power iteration with vectors that are kept from step to step, one iteration a step:
from below, so that the value is an estimate and no bound, and differentiable at those vectors, as
in Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018. No image
passes through the network for it, and nothing is differentiated twice.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from greg_cert.errors import UnsupportedModelError, UsageError
from greg_cert.scores import SCORES
from greg_cert.verify.graph.live_graph import LiveGraph
from greg_cert.verify.graph.ops import Conv, Linear
from greg_cert.verify.lipschitz.global_bound import score_constant
from greg_cert.verify.norms import check_norm
from greg_cert.verify.operators.layers import one_kind

_FIRST = 20  # iterations before the first step, from random vectors


class LipschitzPenalty(nn.Module):
    """L̄(θ), an estimate of a bound of sup ‖∇S‖* over all inputs, as a term of a training loss.

        penalty = lipschitz_penalty(model, (3, 32, 32))
        loss = ... + 0.01 * penalty()

    The function that is bounded is that of the model in evaluation mode, without dropout. Its
    BatchNorm scales by the running variance, which knows nothing of the weights: the penalty would
    shrink weights that BatchNorm scales up again. Where a network has it, let the penalty see the
    pass, and it takes the variance of this batch, through which the slope flows:

        with penalty.watch():
            logits = model(images)

    Its vectors belong in a checkpoint: it is a module with a `state_dict`. Called without arguments
    it gives a float64 scalar in score units per pixel unit.

    Args:
        model: raw images (B, *input_shape) to logits (B, K), of any mode, on any device; left as it
            was found. Its parameters must stay the same objects, so make this after moving it.
        input_shape: of one input, (C, H, W) or (D,).
        norm: of perturbations, 2 or inf; the gradient is measured in its dual.
        score: one of `greg_cert.scores.SCORES`.
        iterations: of the power method a call.
        seed: of the vectors it begins with.

    Raises:
        UsageError: for a value out of range.
        UnsupportedModelError: names a layer that certificates cannot bound, or one whose weights
            cannot be followed.
    """

    def __init__(
        self,
        model: nn.Module,
        input_shape: tuple[int, ...],
        *,
        norm: float = 2.0,
        score: str = "energy",
        iterations: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if score not in SCORES:
            raise UsageError(f"expected score in {', '.join(SCORES)}, but got {score!r}")
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise UsageError(f"expected iterations >= 1, but got {iterations!r}")
        self.norm, self.score, self._iterations = check_norm(norm), score, iterations
        self._graph = LiveGraph(model, input_shape)
        self._generator = torch.Generator().manual_seed(seed)
        self._variances: dict[int, Tensor] = {}
        # Whatever the norm, so that the vectors are there when it changes.
        if not self._value(2.0, _FIRST).isfinite():
            raise UnsupportedModelError(
                "expected a network with a Lipschitz constant, but a function in it has a jump "
                "(torch's Softplus), or weights are not finite"
            )

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """The next call takes BatchNorm's variances from the training pass of the model inside."""
        with _Variances() as seen:
            yield
        self._variances = seen.found

    def forward(self) -> Tensor:
        """L̄, a scalar; moves the vectors."""
        try:
            return self._value(self.norm, self._iterations)
        finally:
            self._variances = {}

    def _value(self, norm: float, iterations: int) -> Tensor:
        def norms_of(ops: Sequence[Conv | Linear]) -> Sequence[Tensor]:
            named = {f"vector_{i}": one_kind(op) for i, op in enumerate(ops)}
            alike: dict[Any, dict[str, Conv]] = {}
            for name, op in named.items():
                geometry: tuple[Any, ...] = (op.weight.shape, op.input_shape, op.stride)
                geometry += (op.padding, op.dilation, op.groups)
                if op.weight.device.type == "cpu":
                    # oneDNN takes longer for groups than for one layer after the other.
                    geometry += (name,)
                alike.setdefault(geometry, {})[name] = op
            found: dict[str, Tensor] = {}
            for some in alike.values():
                found |= zip(some, self._norms(some, norm, iterations), strict=True)
            # One transfer of single numbers, with which the rest is done.
            return torch.stack([found[name] for name in named]).to("cpu", torch.float64).unbind()

        graph = self._graph(self._variances)
        with torch.autocast(graph.device.type, enabled=False):
            return score_constant(graph, self.score, norm, norms_of).to(graph.device)

    def _norms(self, layers: dict[str, Conv], norm: float, iterations: int) -> Sequence[Tensor]:
        """‖W‖ of layers of one geometry, by the names of their vectors.

        Side by side in one convolution of so many groups: a deep network has many layers and few
        geometries, and on a GPU an operation costs much the same for one as for all.
        """
        first, count = next(iter(layers.values())), len(layers)
        # One by itself keeps its memory format.
        weights = [op.weight for op in layers.values()]
        weight = weights[0].unsqueeze(0) if count == 1 else torch.stack(weights)
        if first.is_diagonal:
            return weight.abs().flatten(1).amax(1).unbind()
        channels, *size = first.input_shape
        every = replace(
            first,
            weight=weight.flatten(0, 1),
            input_shape=(count * channels, *size),
            groups=count * first.groups,
        )
        if norm == math.inf:
            sums = every.apply(weight.new_ones(1, *every.input_shape), every.weight.abs())
            largest: Tensor = sums.reshape(count, -1).amax(1)
            return largest.unbind()
        for name in layers:
            if name not in self._buffers:
                start = torch.randn(1, *first.input_shape, generator=self._generator).to(weight)
                self.register_buffer(name, start / start.norm())
        vectors = torch.cat([self.get_buffer(name) for name in layers], 1)
        for _ in range(iterations):
            image = every.apply(vectors, every.weight).reshape(count, -1)
            with torch.no_grad():
                back = every.adjoint(image.reshape(1, *every.output_shape), every.weight)
                back = back.reshape(count, -1)
                length = torch.linalg.vector_norm(back, dim=1, keepdim=True)
                # A layer of zeros has no direction: the vector stays.
                back = torch.where(length > 0, back / length, vectors.reshape(count, -1))
                vectors = back.reshape(vectors.shape)
        for name, vector in zip(layers, vectors.split(channels, 1), strict=True):
            setattr(self, name, vector)
        sizes: Tensor = torch.linalg.vector_norm(image, dim=1)
        return sizes.unbind()


lipschitz_penalty = LipschitzPenalty
"""The name it has for users, beside `gradient_penalty`."""


class _Variances(TorchFunctionMode):
    """Sees the variance of what BatchNorm normalises by its batch, by the id of the running one."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            names = ("input", "running_mean", "running_var", "weight", "bias", "training")
            given = dict(zip(names, args, strict=False)) | kwargs
            x, running = given["input"], given["running_var"]
            if given.get("training", False) and running is not None:
                self.found[id(running)] = _Variance.apply(x, running.dtype)
        return func(*args, **kwargs)


class _Variance(torch.autograd.Function):
    """Of each channel of x (B, C, ...), by BatchNorm's kernel: a tenth of the time of `var`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        mean, variance = torch.ops.aten.batch_norm_update_stats(x.to(dtype), None, None, 0.0)
        ctx.save_for_backward(x, mean)  # x as it came, which BatchNorm keeps as well
        found: Tensor = variance
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        scale = 2 * g / (x.numel() // x.shape[1])
        shape = (1, -1, *[1] * (x.ndim - 2))
        slope = torch.addcmul((-scale * mean).view(shape), x.to(g.dtype), scale.view(shape))
        return slope.to(x.dtype), None
