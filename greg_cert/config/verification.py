"""How a run is verified."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from greg_cert.certificates.certify_methods import L2_ONLY, METHODS, chosen_methods
from greg_cert.devices import check_device
from greg_cert.errors import UsageError
from greg_cert.section import NormName, Section


class VerifyConfig(Section):
    """How a run is verified.

    Attributes:
        samples: How many test samples, the same ones for every run; None for all.
        norm: Norm of radii.
        max_radius: Radii are capped here.
        tpr: Share of the calibration split that the threshold accepts.
        method: As in `greg_cert.verify.certify`: a name, or several with commas or as a list.
        engine: As in `greg_cert.verify.certify`.
        seed: Of the choice of samples and of the attacks.
        side: Whether accepted ID samples are certified to stay accepted, rejected samples of the
            OOD test sets to stay rejected, or both.
        ood_samples: How many samples of each OOD test set; None for all.
        batch: Samples certified at once, between two of which a run can be stopped; None: by the
            size of the network.
        memory: GiB that bounds may use; None for no limit.
        correct: Whether an ID certificate is about "accepted and classified as its label".
        cuts: As in `greg_cert.verify.certify`.
        until_share: Of the method `best`: a sample stops where its certified radius is this share
            of its attack's.
        budget: Of the method `best`: passes of a sample through the network, forward and back, as
            counted from its size; None for no end.
        seconds_per_sample: Of the method `best`, in place of the budget. Rows then depend on the
            machine and its load.
        auc_radii: Radii at which the least scores of OOD samples are bounded and attacked, for
            GAUC and AAUC; side `ood` or `both`.
        smoothing_sigma: Noise of the method `smoothing`, in raw pixels.
        smoothing_n: Its noisy copies of each sample.
        smoothing_alpha: How likely, at most, what it says of one sample is false.
        device: Where networks run: `auto` (a CUDA device where there is one), `cpu`, `cuda` or
            `cuda:N`.
    """

    samples: PositiveInt | None = 500
    norm: NormName = "2"
    max_radius: PositiveFloat = 1.0
    tpr: Annotated[float, Field(gt=0, le=1)] = 0.95
    method: str | tuple[str, ...] = "best"
    engine: Literal["auto", "auto-lirpa", "native"] = "auto"
    seed: NonNegativeInt = 0
    side: Literal["id", "ood", "both"] = "id"
    ood_samples: PositiveInt | None = 200
    batch: PositiveInt | None = None
    memory: PositiveFloat | None = None
    correct: bool = False
    cuts: NonNegativeInt = 3
    until_share: Annotated[float, Field(gt=0, le=1)] = 0.95
    budget: PositiveInt | None = 8000
    seconds_per_sample: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    auc_radii: tuple[PositiveFloat, ...] = ()
    smoothing_sigma: PositiveFloat = 0.25
    smoothing_n: PositiveInt = 10_000
    smoothing_alpha: Annotated[float, Field(gt=0, lt=1)] = 0.001
    device: str = "auto"

    @field_validator("method", mode="before")
    @classmethod
    def _known_methods(cls, value: object) -> object:
        """One name as text, several as a tuple."""
        given = value.split(",") if isinstance(value, str) else value
        names = [str(v).strip() for v in given] if isinstance(given, (list, tuple)) else []
        if not names or len(set(names)) < len(names) or not set(names) <= set(METHODS):
            raise ValueError(f"expected different names of {', '.join(METHODS)}")
        try:
            chosen_methods(names)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return names[0] if len(names) == 1 else tuple(names)

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        try:
            return check_device(value)
        except UsageError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _correct_is_about_labels(self) -> Self:
        if self.correct and self.side == "ood":
            raise ValueError("expected side id or both beside correct, but got ood")
        return self

    @model_validator(mode="after")
    def _balls_are_round(self) -> Self:
        if "sdp-crown" in chosen_methods(self.method) and self.norm != "2":
            raise ValueError(L2_ONLY)
        return self

    @property
    def norm_value(self) -> float:
        """2.0 or inf."""
        return float(self.norm)

    @property
    def sides(self) -> tuple[str, ...]:
        """`id`, `ood`, or both of them in this order."""
        return ("id", "ood") if self.side == "both" else (self.side,)
