"""What a configuration asks of `certify`."""

from __future__ import annotations

from typing import Any

from greg_cert.config import VerifyConfig
from greg_cert.verify.radius.sampled.clever import CleverOptions
from greg_cert.verify.radius.sampled.smoothing_state import SmoothingOptions


def asked(settings: VerifyConfig) -> dict[str, Any]:
    """Keyword arguments of `certify` that follow from the settings of a verification."""
    return {
        "norm": settings.norm_value,
        "max_radius": settings.max_radius,
        "method": settings.method,
        "engine": settings.engine,
        "cuts": settings.cuts,
        "until_share": settings.until_share,
        "budget": settings.budget,
        "seconds_per_sample": settings.seconds_per_sample,
        "memory": settings.memory,
        "seed": settings.seed,
        "smoothing": SmoothingOptions(
            sigma=settings.smoothing_sigma,
            n=settings.smoothing_n,
            alpha=settings.smoothing_alpha,
            seed=settings.seed,
        ),
        "clever": CleverOptions(seed=settings.seed),
    }
