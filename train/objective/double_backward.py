"""Convolution, BatchNorm and ReLU whose gradients are cheap to differentiate once more.

PyTorch differentiates the input gradient of a convolution through transposed tensors with kernels
as large as the image, that of BatchNorm through a dozen elementwise passes, and that of ReLU by
adding zeros. All have closed forms with the kernels of an ordinary training step. On CPUs these
kernels are faster where channels lie last, whatever the layout of model and images; so here they
do. benchmarks/train_step.py measures the gain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from greg_cert.errors import UsageError

_aten = torch.ops.aten
_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
_RELUS = (F.relu, torch.relu, Tensor.relu)
_RELUS_INPLACE = (torch.relu_, Tensor.relu_)
_VIEWS = (Tensor.view, Tensor.view_as)


class EfficientDoubleBackward(TorchFunctionMode):
    """Within `with`, convolutions, ReLU and training-mode BatchNorm get the cheap derivatives.

    Values and derivatives are those of the operations replaced, to rounding. `input_gradient` of
    scores made inside is where it pays; every other use is served by PyTorch's own formulas.

    Feature maps made inside may lie with their channels last. `Tensor.view` takes them as they are
    inside; outside use `reshape`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inputs_only = False

    def input_gradient(self, scores: Tensor, inputs: Tensor) -> Tensor:
        """∇_x Σ S(x), with a graph to the weights; of the shape of `inputs`.

        Args:
            scores: (B,) scores, made of `inputs` inside this mode for the speed of it.
            inputs: tensor that requires grad.
        """
        # The backward functions cannot tell which gradients were asked for; without this they
        # would have to compute those of the weights too.
        self.inputs_only = True
        try:
            (gradient,) = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
        finally:
            self.inputs_only = False
        return gradient

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace what has a better second derivative, and leave the rest."""
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS:
            out = self._convolution(_named(_CONVOLUTION, args, kwargs))
            return func(*args, **kwargs) if out is None else out
        if func is F.batch_norm:
            out = self._batch_norm(_named(_BATCH_NORM, args, kwargs))
            return func(*args, **kwargs) if out is None else out
        if func in _RELUS:
            return _relu(*args, **kwargs)
        if func in _RELUS_INPLACE:
            return _relu(*args, **kwargs | {"inplace": True})
        if func in _VIEWS:
            return _view(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _convolution(self, given: dict[str, Any]) -> Tensor | None:
        """The convolution, or None where PyTorch's own has to do."""
        x, weight, bias, *sizes, groups = given.values()
        axes = weight.ndim - 2
        if isinstance(given["padding"], str) or x.ndim != weight.ndim or not x.requires_grad:
            return None
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            # Inside the function below autocast would not reach the tensors kept for later.
            dtype = torch.get_autocast_dtype(kind)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        # Without oneDNN, in float64, groups are slow with channels last.
        if kind == "cpu" and axes == 2 and not (groups > 1 and weight.dtype == torch.float64):
            x, weight = _channels_last(x), _channels_last(weight)
        each = [[size] * axes if isinstance(size, int) else list(size) for size in sizes]
        out: Tensor = _Convolution.apply(self, x, weight, bias, (*each, False, [0] * axes, groups))
        return out

    def _batch_norm(self, given: dict[str, Any]) -> Tensor | None:
        """BatchNorm, or None where PyTorch's own has to do."""
        x, mean, variance, weight, bias, training, momentum, eps = given.values()
        if not training or weight is None or not x.requires_grad:
            return None
        out: Tensor = _BatchNorm.apply(self, x, weight, bias, (mean, variance, True, momentum, eps))
        return out


# What the functions take, and what it is by default.
_CONVOLUTION = {
    **{"input": None, "weight": None, "bias": None},
    **{"stride": 1, "padding": 0, "dilation": 1, "groups": 1},
}
_BATCH_NORM = {
    **{"input": None, "running_mean": None, "running_var": None, "weight": None, "bias": None},
    **{"training": False, "momentum": 0.1, "eps": 1e-5},
}


def _named(
    defaults: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by name, in the order of the defaults."""
    return defaults | dict(zip(defaults, args, strict=False)) | kwargs


def _relu(input: Tensor, inplace: bool = False) -> Tensor:
    if not input.requires_grad or input.ndim <= 2:
        return torch.relu_(input) if inplace else torch.relu(input)
    out: Tensor = _ReLU.apply(input, inplace)
    return out


def _view(func: Callable[..., Tensor], tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A view, or a copy where it is channels last that stands in its way."""
    try:
        return func(tensor, *args, **kwargs)
    except RuntimeError:
        return func(tensor.contiguous(), *args, **kwargs)


def _channels_last(tensor: Tensor) -> Tensor:
    # `is_contiguous` would be content with one channel in either layout; the kernels are not.
    if tensor.stride(1) == 1:
        return tensor
    out: Tensor = _ChannelsLast.apply(tensor)
    return out


class _ChannelsLast(torch.autograd.Function):
    """The values with channels last; gradients come back contiguous, so that they can be viewed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.to(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.contiguous()


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mode: EfficientDoubleBackward,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        settings: tuple[Any, ...],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.mode, ctx.settings = mode, settings
        out: Tensor = _aten.convolution(x, weight, bias, *settings)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if ctx.mode.inputs_only:
            out = _ConvolutionInputGradient.apply(g, x, weight, ctx.settings)
            return None, out, None, None, None
        wanted = list(ctx.needs_input_grad[1:4])
        found = _aten.convolution_backward(g, x, weight, [len(weight)], *ctx.settings, wanted)
        return None, *(v if w else None for v, w in zip(found, wanted, strict=True)), None


class _ConvolutionInputGradient(torch.autograd.Function):
    """g ↦ Wᵀg: linear in both, so its own derivatives are a convolution and a weight gradient."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, settings: tuple[Any, ...]
    ) -> Tensor:
        ctx.save_for_backward(g, weight)
        ctx.settings = settings
        mask = [True, False, False]
        out: Tensor = _aten.convolution_backward(g, x, weight, None, *settings, mask)[0]
        return out

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_third_derivative()
        g, weight = ctx.saved_tensors
        back = forth = None
        if ctx.needs_input_grad[0]:
            back = _aten.convolution(v, weight, None, *ctx.settings)
        if ctx.needs_input_grad[2]:
            mask = [False, True, False]
            forth = _aten.convolution_backward(g, v, weight, None, *ctx.settings, mask)[1]
        return back, None, forth, None


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        if inplace:
            ctx.mark_dirty(x)
        y = x.relu_() if inplace else x.relu()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        # Detached, since PyTorch would hand zeros down to y.
        return _aten.threshold_backward(g, y.detach(), 0), None


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mode: EfficientDoubleBackward,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        settings: tuple[Any, ...],
    ) -> Tensor:
        y: Tensor
        y, mean, rstd = _aten.native_batch_norm(x, weight, bias, *settings)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.mode, ctx.eps = mode, settings[-1]
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        if ctx.mode.inputs_only:
            out = _BatchNormInputGradient.apply(g, x, weight, mean, rstd, ctx.eps)
            return None, out, None, None, None
        wanted = list(ctx.needs_input_grad[1:4])
        return None, *_batch_norm_backward(g, x, weight, mean, rstd, ctx.eps, wanted), None


class _BatchNormInputGradient(torch.autograd.Function):
    """g ↦ wρ(g − mean g − x̂·mean(g·x̂)), with x̂ = (x − μ)ρ and means over each channel's N values.

    With c = mean(g·x̂), d = mean(v·x̂), ⟨v, ·⟩ = wρN·A where A = mean(vg) − mean v·mean g − cd. The
    map is self-adjoint in g; A gives the derivative by w; and that by x is
    −wρ²[A·x̂ + c(v − mean v − d·x̂) + d(g − mean g − c·x̂)].
    """

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, eps: float
    ) -> Tensor:
        wanted = [True, True, True]  # the sums over g come for nothing
        out: Tensor
        out, c, g_mean = _batch_norm_backward(g, x, weight, mean, rstd, eps, wanted)
        ctx.save_for_backward(g, x, weight, mean, rstd, c, g_mean)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_third_derivative()
        g, x, weight, mean, rstd, c, g_mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        saved = (x, weight, mean, rstd, ctx.eps)
        by_g, d, v_mean = _batch_norm_backward(v, *saved, [True, True, True])
        c, d, v_mean, g_mean = c / count, d / count, v_mean / count, g_mean / count
        a = (v * g).mean([0, *range(2, x.ndim)], dtype=mean.dtype) - v_mean * g_mean - c * d
        outer = -weight * rstd * rstd
        on_x = outer * (a - 2 * c * d) * rstd
        rest = -on_x * mean - outer * (c * v_mean + d * g_mean)

        def channel(values: Tensor) -> Tensor:
            return values.to(x.dtype).view(1, -1, *([1] * (x.ndim - 2)))

        by_x = torch.addcmul(channel(rest), x, channel(on_x))
        by_x.addcmul_(v, channel(outer * c)).addcmul_(g, channel(outer * d))
        return by_g, by_x, (rstd * count * a).to(weight.dtype), None, None, None


def _refuse_third_derivative() -> None:
    # PyTorch's `once_differentiable` would let one by weights alone pass, and be wrong.
    if torch.is_grad_enabled():
        raise UsageError(
            "expected create_graph=False after input_gradient, but got a third derivative"
        )


def _batch_norm_backward(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    eps: float,
    wanted: list[bool],
) -> tuple[Any, Any, Any]:
    """Gradients by x, weight and bias, or None; the last two are Σ g·x̂ and Σ g by channel."""
    found = _aten.native_batch_norm_backward(
        g, x, weight, None, None, mean, rstd, True, eps, wanted
    )
    by_x, by_weight, by_bias = (v if w else None for v, w in zip(found, wanted, strict=True))
    return by_x, by_weight, by_bias
