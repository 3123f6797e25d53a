"""Lines around the maximum of a window whose members lie in a box, for CROWN's backward pass.

Above, for any weights w ≥ 0 and members in a box [l, u],

    max_j z_j ≤ Σ w_j·z_j + c,   c = max_j ( u_j − w_j·(u_j − l_j) ) − Σ w_j·l_j,

because max_j z_j − Σ w_i·z_i = max_j ( (1 − w_j)·z_j − Σ_{i≠j} w_i·z_i ), each largest in a corner
for w ≤ 1. With w_j = max(0, (u_j − t)/(u_j − l_j)) the first maximum is at most t. In the middle of
the box such a line lies at t + ½ Σ max(0, u_j − t), which is least wherever t lies between the
third and the second largest u; there t is chosen so that the weights add up to 1, if it can be.
Below, one member serves. A member that is above all others makes both lines exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.verify.graph.max_pool import MaxPool, windows_of


def relax_pool(op: MaxPool, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Σ below_j·z_j ≤ max_j z_j ≤ Σ above_j·z_j + intercept, for all z of a box.

    What the pool reads lies in the box, (B, *input_shape) each end.

    Returns:
        below and above (B, C, k, H′, W′), nonnegative; intercept (B, C, H′, W′); and the absolute
        terms (B, C, H′, W′) that either line sums, which measure its rounding. NaN for windows
        with ends that are not finite.
    """
    least, most = windows_of(op, low, high)
    real = op.real.to(low.device)
    least, most = torch.minimum(least, most), torch.maximum(least, most)  # as rounding may not
    width = torch.where(real, most - least, 1.0)
    top = most.topk(min(3, op.size), -3).values
    floor = least.amax(-3)  # no maximum is below
    second = torch.maximum(top[..., 1, :, :], floor)
    third = torch.maximum(top[..., -1, :, :], floor) if op.size > 2 else floor
    t = torch.minimum(torch.maximum(_of_total_one(most, width, real), third), second).unsqueeze(-3)
    tiny = torch.finfo(low.dtype).tiny
    above = torch.where(real, ((most - t) / width.clamp_min(tiny)).clamp(0.0, 1.0), 0.0)
    at_low = torch.where(real, least, 0.0)
    corner = (most - above * torch.where(real, width, 0.0)).amax(-3)
    intercept = corner - (above * at_low).sum(-3)
    place = torch.where(real, least + most, -torch.inf).argmax(-3, keepdim=True)
    below = torch.zeros_like(above).scatter(-3, place, 1.0)
    size = torch.where(real, torch.maximum(least.abs(), most.abs()), 0.0)
    terms = ((below + above) * size).sum(-3) + 2 * size.amax(-3)
    unknown = ~size.isfinite().all(-3)
    return below, above, intercept.masked_fill(unknown, torch.nan), terms


def _of_total_one(most: Tensor, width: Tensor, real: Tensor) -> Tensor:
    """The t at which the weights of the two members of the largest ends add up to 1."""
    ends, places = most.topk(2, -3)
    widths = width.gather(-3, places)
    (a, b), (v, w) = ends.unbind(-3), widths.unbind(-3)
    return ((a * w + b * v - v * w) / (v + w)).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
