"""The contents of `summary.json`, checked field by field.

Keys of the contract (docs, `summary.json` schema 1) are required; the keys that later versions
of the verifier add are optional, and unknown keys are ignored. Every failure is one `RunError`
that names the file and the field.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from greg_cert.certificates.format import STATUSES, SUMMARY
from greg_cert.certificates.methods import NO_METHOD, PROOFS, RADIUS_METHOD, STOPPED_BY, STOPS
from greg_cert.digests import check_seal, tell_unchecked
from greg_cert.errors import RunError
from greg_cert.files import read_json

SCHEMA = 1

Rate = Annotated[float, Field(ge=0, le=1)]
Radius = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class MedianMean(_Record):
    """Median and mean of a radius, or of another length, over the samples of a run."""

    median: Radius | None
    mean: Radius | None = None


class GradientRadius(MedianMean):
    """Median of the first-order estimate, and how often a real attack undercuts it."""

    above_attack: Rate | None = None


_WORDS = {"status": STATUSES, RADIUS_METHOD: (*PROOFS, NO_METHOD), STOPPED_BY: STOPS}


class _Counted(_Record):
    """What is counted of the samples of a run, or of one OOD set."""

    samples: int = Field(ge=1)
    violations: Count
    status: dict[str, Count] | None = None
    radius_method: dict[str, Count] | None = None
    stopped_by: dict[str, Count] | None = None

    @field_validator("status", "radius_method", "stopped_by")
    @classmethod
    def _one_word_a_sample(
        cls, value: dict[str, int] | None, info: ValidationInfo
    ) -> dict[str, int] | None:
        known = _WORDS[str(info.field_name)]
        if unknown := [name for name in value or () if name not in known]:
            raise ValueError(f"expected {', '.join(known)}, but got {unknown[0]!r}")
        samples = info.data.get("samples")
        if value is not None and samples not in (None, sum(value.values())):
            raise ValueError(f"expected {samples} in all, as samples, but got {value}")
        return value


class AttackRadius(MedianMean):
    """Median and mean of the distances at which attacks succeeded, and how many did."""

    found: Count | None = None


class OodSide(_Counted):
    """What the verifier counted for one run on one OOD set."""

    certified_radius: MedianMean | None = None
    attack_radius: AttackRadius | None = None


class Audit(_Record):
    """The attacks made on certificates to contradict them."""

    violations: Count = 0
    attacks: Count | list[str] | None = None
    certificates: Count | None = None
    steps: Count | None = None
    restarts: Count | None = None

    @model_validator(mode="after")
    def _no_more_than_there_are(self) -> Audit:
        found = [
            (name, value)
            for name in ("violations", "attacks", "certificates")
            if isinstance(value := getattr(self, name), int)
        ]
        for (less, few), (more, many) in itertools.pairwise(found):
            if few > many:
                raise ValueError(f"{less}: expected at most the {many} {more}, but got {few}")
        return self


class Detection(_Record):
    """How well one OOD set is told apart, without any perturbation."""

    fpr95: Rate | None = None
    fpr95_ood_recall: Rate | None = None
    auroc: Rate | None = None
    aupr_in: Rate | None = None
    aupr_out: Rate | None = None


class Smoothing(_Record):
    """Settings of randomised smoothing: noise, votes, and the chance of error of each radius."""

    sigma: float = Field(gt=0)
    n: int = Field(ge=1)
    alpha: float = Field(gt=0, lt=1)


class RunSummary(_Counted):
    """What the verifier measured for one run; rates are fractions in [0, 1]."""

    method: str
    id_accuracy: Rate | None
    threshold: float
    fpr95: Rate | None
    auroc: Rate | None
    certified_radius: MedianMean
    attack_radius: AttackRadius
    gradient_radius: GradientRadius
    lipschitz_radius: MedianMean
    seconds: Annotated[float, Field(ge=0)] | None
    fpr95_ood_recall: Rate | None = None
    aupr_in: Rate | None = None
    aupr_out: Rate | None = None
    test_tpr: Rate | None = None
    gradient_norm: MedianMean | None = None
    ood: dict[str, Detection] = Field(default_factory=dict)
    robust: dict[str, dict[str, Rate]] = Field(default_factory=dict)
    ood_side: dict[str, OodSide] = Field(default_factory=dict)
    audit: Audit | None = None
    score: str | None = None


class Merged(_Record):
    """That a folder was put together from several, and how many samples not all of them had."""

    folders: list[str] = Field(default_factory=list)
    left_out: dict[str, dict[str, Count]] = Field(default_factory=dict)


class Provenance(_Record):
    """Where the numbers came from; everything is optional, because old folders lack it.

    What is only shown, and comes from elsewhere, is taken as it is.
    """

    command: str | None = None
    created: str | None = None
    versions: dict[str, str | None] = Field(default_factory=dict)
    device: str | None = None
    seed: int | str | None = None
    git_commit: str | None = None
    python: str | None = None
    platform: str | None = None
    processes: int | None = None
    configs: dict[str, str] = Field(default_factory=dict)
    folders: dict[str, str] = Field(default_factory=dict)
    settings: Any = None
    selection: Any = None
    runs: Any = None
    weights: Any = None
    parts: Any = None


class Summary(_Record):
    """The whole of `summary.json`."""

    norm: Annotated[float, Field(allow_inf_nan=True)]
    tpr: float = Field(gt=0, le=1)
    runs: dict[str, RunSummary] = Field(min_length=1)
    max_radius: Annotated[float, Field(gt=0)] | None = None
    side: str = "id"
    sides: list[str] = Field(default_factory=list)
    clip: bool = False
    baseline: str | None = None
    score: str = "energy"
    engine: str | None = None
    method: str | list[str] | None = None
    methods: list[str] = Field(default_factory=list)
    classes: list[str] = Field(default_factory=list)
    complete: bool = True
    samples: Count | None = None
    wanted: Count | None = None
    order: str | None = None
    ood_wanted: dict[str, Count] | None = None
    smoothing: Smoothing | None = None
    correct: bool = False
    audit: Audit | None = None
    merged: Merged | None = None
    provenance: Provenance = Field(default_factory=Provenance)

    @property
    def scores(self) -> dict[str, str]:
        """Name of the OOD score of each run."""
        return {run: record.score or self.score for run, record in self.runs.items()}

    @property
    def several_scores(self) -> bool:
        """Whether the runs have different scores."""
        return len(set(self.scores.values())) > 1

    @field_validator("norm", mode="before")
    @classmethod
    def _norm(cls, value: object) -> object:
        if isinstance(value, str) and value.lower() in {"inf", "linf"}:
            return math.inf
        if isinstance(value, bool) or value not in (1, 2, math.inf):
            raise ValueError(f'expected 1, 2 or "inf", but got {value!r}')
        return float(str(value))

    @field_validator("side")
    @classmethod
    def _side(cls, value: str) -> str:
        if value not in {"id", "ood"}:
            raise ValueError(f'expected "id" or "ood", but got {value!r}')
        return value

    @field_validator(
        *("score", "sides", "methods", "classes", "complete", "correct", "provenance"),
        mode="before",
    )
    @classmethod
    def _absent(cls, value: object, info: ValidationInfo) -> object:
        return (
            cls.model_fields[str(info.field_name)].get_default(call_default_factory=True)
            if value is None
            else value
        )

    @model_validator(mode="after")
    def _baseline_is_a_run(self) -> Summary:
        if self.baseline is not None and self.baseline not in self.runs:
            raise ValueError(
                f"baseline: expected one of the runs {list(self.runs)}, but got {self.baseline!r}"
            )
        return self


def read_document(folder: Path) -> dict[str, Any]:
    """What `folder/summary.json` holds, if it is as it was written.

    Raises:
        RunError: the file is missing, is not JSON, has another schema number, or another digest.
    """
    path = folder / SUMMARY
    try:
        raw = read_json(path)
    except FileNotFoundError:
        raise RunError(f"{path}: the file is missing; expected a verification folder") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise RunError(f"{path}: not valid JSON, perhaps truncated ({error})") from error
    if not isinstance(raw, dict):
        raise RunError(f"{path}: expected a JSON object, but got {type(raw).__name__}")
    if "schema" not in raw:
        raise RunError(f"{path}: field schema: missing")
    if raw["schema"] != SCHEMA or isinstance(raw["schema"], bool):
        raise RunError(f"{path}: field schema: expected {SCHEMA}, but got {raw['schema']!r}")
    if not check_seal(raw, path):
        tell_unchecked(path)
    return raw


def summary_of(path: Path, document: dict[str, Any]) -> Summary:
    """The checked fields of such a document, read from `path`.

    Raises:
        RunError: a field is missing, or holds what it cannot hold; names it and what it holds.
    """
    try:
        return Summary.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        prefix = f"field {field}: " if field else "field "
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            reason = "missing"
        elif first["type"] != "value_error":
            shown = repr(first["input"])
            shown = shown if len(shown) <= 60 else f"{shown[:59]}…"
            reason = f"{reason.replace('Input should be', 'expected')}, but got {shown}"
        raise RunError(f"{path}: {prefix}{reason}") from None
