"""The optimiser that a stage asks for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from greg_cert.errors import shown
from greg_cert.stages import StageConfig


def make_optimizer(stage: StageConfig, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
    """A fresh optimiser of the weights, without a state; the stage's schedule sets its rate later.

    Source: SGD with Nesterov's correction as Sutskever et al., "On the importance of initialization
    and momentum in deep learning", ICML 2013, has it; Adam of Kingma and Ba, ICLR 2015; AdamW of
    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """
    if stage.optimizer == "sgd":
        return torch.optim.SGD(
            weights,
            lr=stage.lr,
            momentum=stage.momentum,
            nesterov=stage.momentum > 0,
            weight_decay=stage.weight_decay,
        )
    kind = torch.optim.Adam if stage.optimizer == "adam" else torch.optim.AdamW
    return kind(weights, lr=stage.lr, betas=stage.betas, weight_decay=stage.weight_decay)


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Fill a fresh optimiser, perhaps wrapped by Fabric, with the state of one like it.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: it is of another one, or no state.
    """
    fresh = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(state)
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    for group, own in zip(inner.param_groups, fresh, strict=True):
        for name, value in own.items():
            if name not in ("params", "lr") and group.setdefault(name, value) != value:
                raise ValueError(f"{name} {shown(group[name])}, not {shown(value)}")
        kept = {"exp_avg", "exp_avg_sq", "step"} if "betas" in own else {"momentum_buffer"}
        for weight in group["params"] if own.get("momentum", True) else ():
            for name in kept if weight in inner.state else ():
                value = inner.state[weight].get(name)
                shape = () if name == "step" else weight.shape
                if not isinstance(value, Tensor) or value.shape != shape:
                    raise ValueError(f"{name} {shown(value)} for a weight of {tuple(weight.shape)}")
                if not value.isfinite().all():
                    raise ValueError(f"{name} that is not finite")
