"""What a configuration asks of `certify`."""

from __future__ import annotations

from typing import Any

from greg_cert.config import VerifyConfig
from greg_cert.verify.radius.sampled.clever import CleverOptions
from greg_cert.verify.radius.sampled.smoothing import SmoothingOptions

_SAME = (
    *("max_radius", "method", "engine", "cuts", "until_share", "budget", "seconds_per_sample"),
    *("memory", "seed"),
)


def certify_options(settings: VerifyConfig) -> dict[str, Any]:
    """Keyword arguments of `certify` that follow from the settings of a verification."""
    smoothing = SmoothingOptions(
        sigma=settings.smoothing_sigma,
        n=settings.smoothing_n,
        alpha=settings.smoothing_alpha,
        seed=settings.seed,
    )
    return {
        **{name: getattr(settings, name) for name in _SAME},
        "norm": settings.norm_value,
        "smoothing": smoothing,
        "clever": CleverOptions(seed=settings.seed),
        **settings.options,
    }
