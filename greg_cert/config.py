"""An experiment as one typed, frozen record, read from YAML; unknown keys are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from greg_cert.data.schema import DataConfig
from greg_cert.errors import ConfigError

Method = Literal["ce", "energy", "greg", "greg+"]
Margin = float | Literal["auto"]
# As in greg_cert.models.registry, which would import torch.
ModelName = Literal["mlp", "cnn_small", "resnet18_32x32", "wrn16_2", "wrn40_2"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(_Section):
    """Which network of `greg_cert.models`; its sizes follow from the data.

    Attributes:
        name: Name in the registry.
    """

    name: ModelName


class StageConfig(_Section):
    """One stage of training: a method, and the schedule of its optimiser.

    Attributes:
        method: `ce` cross-entropy; `energy` adds the margin loss of the energy score; `greg` the
            gradient penalty too; `greg+` picks auxiliary samples by clustering besides.
        epochs: Passes over the ID training split.
        lr: Learning rate at the start.
        schedule: `cosine` to zero over the stage's steps, or `constant`.
        momentum: Of SGD, with Nesterov's correction where it is positive.
        weight_decay: L2 penalty of the weights.
        batch_size: ID samples a step.
        aux_ratio: Auxiliary samples a step for each ID sample (`energy`, `greg`).
        candidates: Candidates a step for each ID sample (`greg+`); one cluster for each ID sample.
        m_in: Margin of ID scores, or `auto`: their mean when the stage begins.
        m_out: Margin of auxiliary scores, or `auto`: their mean when the stage begins.
        lambda_score: Weight λ_S of the margin loss.
        lambda_grad: Weight λ_∇ of the gradient loss.
        estimator: How the gradient penalty is differentiated; `finite-difference` costs less and
            is noisier.
        augment: `shift`: random shifts by up to an eighth of the image; `shift_flip`: mirrored too.
        augment_share: Share of the images that are augmented, drawn anew each time.
    """

    method: Method
    epochs: PositiveInt
    lr: PositiveFloat
    schedule: Literal["cosine", "constant"] = "cosine"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    batch_size: PositiveInt = 64
    aux_ratio: PositiveInt = 1
    candidates: PositiveInt = 6
    m_in: Margin = "auto"
    m_out: Margin = "auto"
    lambda_score: NonNegativeFloat = 0.1
    lambda_grad: NonNegativeFloat = 1.0
    estimator: Literal["finite-difference", "double-backward"] = "double-backward"
    augment: Literal["none", "shift", "shift_flip"] = "none"
    augment_share: Annotated[float, Field(gt=0, le=1)] = 1.0

    @model_validator(mode="after")
    def _margins_in_order(self) -> Self:
        fixed = isinstance(self.m_in, float) and isinstance(self.m_out, float)
        if fixed and not self.m_in < self.m_out:  # type: ignore[operator]
            raise ValueError(f"expected m_in < m_out, but got {self.m_in} and {self.m_out}")
        return self


class TrainConfig(_Section):
    """How a run is trained.

    Attributes:
        stages: In order; the last one names the run's method.
        init: Run folder (or its `model.safetensors`) whose weights to begin with.
        accelerator: Of Lightning Fabric: `auto`, `cpu`, `gpu`.
        log_every: Steps between two rows of `metrics.jsonl`.
    """

    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1)]
    init: Path | None = None
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    log_every: PositiveInt = 10


class VerifyConfig(_Section):
    """How a run is verified.

    Attributes:
        samples: How many test samples, the same ones for every run; None for all.
        norm: Norm of radii.
        max_radius: Radii are capped here.
        tpr: Share of the calibration split that the threshold accepts.
        method: As in `greg_cert.verify.certify`.
        engine: As in `greg_cert.verify.certify`.
        seed: Of the choice of samples and of the attacks.
    """

    samples: PositiveInt | None = 500
    norm: Literal["2", "inf"] = "2"
    max_radius: PositiveFloat = 1.0
    tpr: Annotated[float, Field(gt=0, le=1)] = 0.95
    method: Literal["crown", "crown-ibp", "lipschitz", "best"] = "crown"
    engine: Literal["auto", "auto-lirpa", "native"] = "auto"
    seed: NonNegativeInt = 0

    @field_validator("norm", mode="before")
    @classmethod
    def _norm_as_text(cls, value: object) -> object:
        """YAML reads a bare 2 as a number and .inf as infinity."""
        return f"{value:g}" if isinstance(value, (int, float)) else value

    @property
    def norm_value(self) -> float:
        """2.0 or inf."""
        return float(self.norm)


class ExperimentConfig(_Section):
    """Everything that makes a run.

    Attributes:
        name: What tables call the run; by default its method.
        seed: Of weights, batches and clusters.
        data: Sources and splits.
        model: Network.
        train: Stages of training.
        verify: Defaults of `greg-cert verify`.
    """

    name: Annotated[str, Field(min_length=1)] | None = None
    seed: NonNegativeInt = 0
    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    verify: VerifyConfig = VerifyConfig()

    @property
    def method(self) -> Method:
        """Method of the last stage."""
        return self.train.stages[-1].method

    @property
    def title(self) -> str:
        """`name` where given, otherwise the method."""
        return self.name or self.method


def load_config(path: Path) -> ExperimentConfig:
    """The experiment in a YAML file; its relative paths start from the file's folder.

    Raises:
        ConfigError: for a missing or unreadable file, an unknown key, or a value out of range; one
            line that names the field, what was expected and what was found.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: expected a readable file, but got {path}: {error}") from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = " ".join(str(error).split())
        raise ConfigError(f"config: expected valid YAML in {path}, but got: {line}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"config: expected a mapping in {path}, but got {type(raw).__name__}")
    return parse_config(raw, base=path.resolve().parent)


def parse_config(raw: dict[str, Any], base: Path | None = None) -> ExperimentConfig:
    """A validated experiment; with `base`, relative paths are made absolute from there.

    Raises:
        ConfigError: as `load_config`.
    """
    try:
        config = ExperimentConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from error
    return config if base is None else ExperimentConfig.model_validate(_anchor(config, base))


def dump_config(config: ExperimentConfig) -> str:
    """The resolved configuration as YAML; `parse_config` of it gives the same record."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _anchor(value: Any, base: Path) -> Any:
    """A record as plain values, its relative paths joined to `base`."""
    if isinstance(value, BaseModel):
        return {name: _anchor(getattr(value, name), base) for name in type(value).model_fields}
    if isinstance(value, (list, tuple)):
        return [_anchor(v, base) for v in value]
    if isinstance(value, Path):
        return base / value.expanduser()
    return value


def _one_line(error: ValidationError) -> str:
    """The first problem, as `field: expected …, but got …`."""
    problem = error.errors()[0]
    # The tag of a discriminated union stands in the location; the user wrote no such key.
    loc = problem["loc"]
    after_source = [i for i, p in enumerate(loc) if i and p in _TAGS and _holds_source(loc[i - 1])]
    field = _field_name([p for i, p in enumerate(loc) if i not in after_source])
    found = problem["input"]
    message = problem["msg"].removeprefix("Value error, ")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        return f"{field}: unknown key{_hint(problem['loc'], error)}{more}"
    if problem["type"] == "missing":
        return f"{field}: required, but missing{more}"
    shown = "" if isinstance(found, dict) else f", but got {found!r}"
    return f"{field}: {message[0].lower()}{message[1:]}{shown}{more}"


_TAGS = frozenset(
    [
        "digits",
        "faces",
        "photographs",
        "textures",
        "text",
        "uniform",
        "gaussian",
        "array",
        "folder",
        "torchvision",
    ]
)


def _holds_source(part: Any) -> bool:
    return isinstance(part, int) or part in ("id", "id_test", "aux")


def _field_name(location: list[Any]) -> str:
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part not in ("float", "literal['auto']"):  # members of a plain union
            name += f".{part}" if name else str(part)
    return name or "config"


def _hint(location: tuple[Any, ...], error: ValidationError) -> str:
    """The nearest known key of the same section, where there is one."""
    import difflib

    sections: list[type[BaseModel]] = [
        ExperimentConfig,
        ModelConfig,
        StageConfig,
        TrainConfig,
        VerifyConfig,
        DataConfig,
    ]
    known = {name for section in sections for name in section.model_fields}
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
