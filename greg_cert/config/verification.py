"""How a run is verified."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from greg_cert.certificates.methods import L2_ONLY, METHODS, TABLE, chosen_methods
from greg_cert.devices import check_device
from greg_cert.section import Count, Natural, NormName, Positive, Section, Seed

_METHODS = (
    "One method, or several with commas: best, a ladder of the other proofs, the cheapest first; "
    "or " + ", ".join(f"{m.name} ({m.status})" for m in TABLE if m.code and m.name != "best") + "."
)


class VerifyConfig(Section):
    """How a run is verified."""

    samples: Count | None = 500
    """How many ID test samples, the same for every run; None for all."""
    norm: NormName = "2"
    """Norm of radii: 2 or inf."""
    max_radius: Positive = 1.0
    """Radii are capped here."""
    tpr: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Share of the calibration split that the threshold accepts."""
    method: Annotated[str | tuple[str, ...], Field(description=_METHODS)] = "best"
    engine: Literal["auto", "auto-lirpa", "native"] = "auto"
    """Whose bounds prove the radii: auto, auto-lirpa or native."""
    seed: Seed = 0
    """Of the choice of samples and of the attacks."""
    side: Literal["id", "ood", "both"] = "id"
    """What is certified: accepted ID samples stay accepted (id), rejected samples of the OOD test
    sets stay rejected (ood), or both.
    """
    ood_samples: Count | None = 200
    """How many samples of each OOD test set; None for all."""
    batch: Count | None = None
    """Samples certified at once, between two of which a run can be stopped; None for as many as
    suit the network.
    """
    memory: Positive | None = None
    """GiB that bounds may use; None for no limit."""
    correct: bool = False
    """Certify that ID samples stay accepted and classified as their labels."""
    cuts: Natural = 3
    """How often a ball is cut down to where violations may lie."""
    until_share: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Of the method `best`: a sample stops where its certified radius is this share of its
    attack's.
    """
    budget: Count | None = 8000
    """Of the method `best`: passes of a sample through the network, forward and back, as counted
    from its size; None for no end.
    """
    seconds_per_sample: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Of the method `best`, in place of the budget. Rows then depend on the machine and its load.
    """
    auc_radii: tuple[Positive, ...] = ()
    """Radii at which the least scores of OOD samples are bounded and attacked, for GAUC and AAUC;
    side `ood` or `both`.
    """
    smoothing_sigma: Positive = 0.25
    """Noise of the method `smoothing`, in raw pixels."""
    smoothing_n: Count = 10_000
    """Its noisy copies of each sample."""
    smoothing_alpha: Annotated[float, Field(gt=0, lt=1)] = 0.001
    """How likely, at most, what it says of one sample is false."""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Further options of `greg_cert.verify.certify` by name, those of methods among them."""
    device: Annotated[str, AfterValidator(check_device)] = "auto"
    """Where networks run: `auto` (a CUDA device where there is one), `cpu`, `cuda` or `cuda:N`."""

    @field_validator("method", mode="before")
    @classmethod
    def _known_methods(cls, value: object) -> object:
        """One name as text, several as a tuple."""
        given = value.split(",") if isinstance(value, str) else value
        names = [str(v).strip() for v in given] if isinstance(given, (list, tuple)) else []
        if not names or len(set(names)) < len(names) or not set(names) <= set(METHODS):
            raise ValueError(f"expected different names of {', '.join(METHODS)}")
        chosen_methods(names)
        return names[0] if len(names) == 1 else tuple(names)

    @field_validator("auc_radii", mode="before")
    @classmethod
    def _radii(cls, value: object) -> object:
        """Numbers, or text with commas between them."""
        return value.split(",") if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.correct and self.side == "ood":
            raise ValueError("expected side id or both beside correct, but got ood")
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
