"""The activation of Lipschitz-bounded networks: nothing of a step through it is lost."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from greg_cert.errors import UsageError


class MaxMin(nn.Module):
    """Channels i and i + C/2 become their larger and their smaller one (GroupSort of pairs).

    Its Jacobian is a permutation wherever it has one, so gradients keep their length. It stands for
    an activation after a convolution or linear layer with an even number of channels (or features).

    Source: Anil et al., "Sorting out Lipschitz function approximation", ICML 2019; pairs across
    halves as in Singla et al., "Improved deterministic l2 robustness on CIFAR-10", ICLR 2022.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to (B, C, ...): the C/2 larger ones, then the C/2 smaller ones.

        Raises:
            UsageError: for an odd C.
        """
        if x.ndim < 2 or x.shape[1] % 2:
            raise UsageError(
                "expected an even number of channels (B, C, ...) for MaxMin, "
                f"but got shape {tuple(x.shape)}"
            )
        first, second = x.chunk(2, dim=1)
        return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], dim=1)
