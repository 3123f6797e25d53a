"""An experiment as one typed, frozen record, read from YAML; unknown keys are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from greg_cert.certify_methods import METHODS, chosen_methods
from greg_cert.data.schema import DataConfig, Source
from greg_cert.errors import ConfigError, UsageError
from greg_cert.models.names import expected_model_name, is_model_name
from greg_cert.section import Section
from greg_cert.stages import Method, ScoreName, StageConfig


class ModelConfig(Section):
    """Which network of `greg_cert.models`; its sizes follow from the data.

    Attributes:
        name: Name in the registry, or `torchvision/NAME` of one of its classifiers.
    """

    name: str

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if not is_model_name(name):
            raise ValueError(expected_model_name(name))
        return name


class InitConfig(Section):
    """Weights to begin with: of a run, or of a file from elsewhere. Every key of it must fit.

    Attributes:
        weights: Run folder, or a `.safetensors`, `.pt` or `.pth` file; nothing in it is executed.
        allow_missing: Names here (or patterns such as `head.*`) that may stay as initialised.
        allow_unexpected: Names in the file, or patterns, that may be left out.
        rename: Pairs of module paths, in the file and here, for names that are not known.
        entry: Which of several sets of weights in the file.
    """

    weights: Path
    allow_missing: tuple[str, ...] = ()
    allow_unexpected: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    entry: str | None = None


class TrainConfig(Section):
    """How a run is trained.

    Attributes:
        stages: In order; the last one names the run's method and score.
        init: Weights to begin with; a bare path where nothing needs to be allowed.
        accelerator: Of Lightning Fabric: `auto`, `cpu`, `gpu`.
        devices: Processes on each node, one a device; `auto` for all GPUs of the node.
        nodes: Machines, each started by `torchrun` or `fabric run`.
        precision: `32`, or `bf16` for convolutions and matrix products, with scores and the norms
            of their gradients in float32.
        channels_last: Whether images lie in memory with their channels last, which is faster on
            most devices.
        compile: Whether `torch.compile` compiles the model; a gradient penalty then needs
            `estimator: finite-difference`.
        sync_batchnorm: Whether BatchNorm takes its statistics over all processes (GPUs only).
        log_every: Steps between two rows of `metrics.jsonl`.
        checkpoint_every: Steps between two checkpoints, beside that at the end of each epoch.
    """

    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1)]
    init: InitConfig | None = None
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: PositiveInt | Literal["auto"] = 1
    nodes: PositiveInt = 1
    precision: Literal["32", "bf16"] = "32"
    channels_last: bool = True
    compile: bool = False
    sync_batchnorm: bool = False
    log_every: PositiveInt = 10
    checkpoint_every: PositiveInt | None = None

    @field_validator("init", mode="before")
    @classmethod
    def _bare_path(cls, value: object) -> object:
        return {"weights": value} if isinstance(value, (str, Path)) else value

    @field_validator("precision", mode="before")
    @classmethod
    def _precision_as_text(cls, value: object) -> object:
        """YAML reads a bare 32 as a number."""
        return str(value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for i, stage in enumerate(self.stages):
            exact = stage.gradient and stage.estimator == "double-backward"
            if self.compile and exact:
                raise ValueError(
                    f"expected stages[{i}].estimator finite-difference beside compile, "
                    "but got double-backward, which torch.compile cannot differentiate"
                )
            if self.precision == "bf16" and stage.gradient and not exact:
                raise ValueError(
                    f"expected stages[{i}].estimator double-backward beside precision bf16, "
                    "but got finite-difference, which drowns in its rounding"
                )
            if self.sync_batchnorm and exact:
                raise ValueError(
                    f"expected stages[{i}].estimator finite-difference beside sync_batchnorm, "
                    "but got double-backward, which it has no second derivative for"
                )
        losses = {s.outlier_loss for s in self.stages} - {"none"}
        if "absent_class" in losses and len(losses) > 1:
            raise ValueError(
                "expected outlier_loss absent_class in all stages with outliers or in none, "
                f"but got {', '.join(sorted(losses))}"
            )
        if "absent_class" in losses and self.stages[-1].score != "absent_class":
            raise ValueError(
                "expected the last stage to have the score absent_class, as the model has that "
                f"output, but got {self.stages[-1].score}"
            )
        return self

    @property
    def absent_class(self) -> bool:
        """Whether the model has one more output than there are ID classes."""
        return any(s.outlier_loss == "absent_class" for s in self.stages)


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
        auc_radii: Radii at which the least scores of OOD samples are bounded and attacked, for
            GAUC and AAUC; side `ood` or `both`.
        smoothing_sigma: Noise of the method `smoothing`, in raw pixels.
        smoothing_n: Its noisy copies of each sample.
        smoothing_alpha: How likely, at most, what it says of one sample is false.
    """

    samples: PositiveInt | None = 500
    norm: Literal["2", "inf"] = "2"
    max_radius: PositiveFloat = 1.0
    tpr: Annotated[float, Field(gt=0, le=1)] = 0.95
    method: str | tuple[str, ...] = "crown"
    engine: Literal["auto", "auto-lirpa", "native"] = "auto"
    seed: NonNegativeInt = 0
    side: Literal["id", "ood", "both"] = "id"
    ood_samples: PositiveInt | None = 200
    batch: PositiveInt | None = None
    memory: PositiveFloat | None = None
    correct: bool = False
    cuts: NonNegativeInt = 3
    auc_radii: tuple[PositiveFloat, ...] = ()
    smoothing_sigma: PositiveFloat = 0.25
    smoothing_n: PositiveInt = 10_000
    smoothing_alpha: Annotated[float, Field(gt=0, lt=1)] = 0.001

    @field_validator("norm", mode="before")
    @classmethod
    def _norm_as_text(cls, value: object) -> object:
        """YAML reads a bare 2 as a number and .inf as infinity."""
        return f"{value:g}" if isinstance(value, (int, float)) else value

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

    @model_validator(mode="after")
    def _correct_is_about_labels(self) -> Self:
        if self.correct and self.side == "ood":
            raise ValueError("expected side id or both beside correct, but got ood")
        return self

    @property
    def norm_value(self) -> float:
        """2.0 or inf."""
        return float(self.norm)

    @property
    def sides(self) -> tuple[str, ...]:
        """`id`, `ood`, or both of them in this order."""
        return ("id", "ood") if self.side == "both" else (self.side,)


class ExperimentConfig(Section):
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
    def score(self) -> ScoreName:
        """OOD score the run is evaluated by: that of the last stage."""
        return self.train.stages[-1].score

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


_SOURCES: tuple[type[BaseModel], ...] = get_args(get_args(Source)[0])
_TAGS = frozenset(source.model_fields["source"].default for source in _SOURCES)


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
        InitConfig,
        StageConfig,
        TrainConfig,
        VerifyConfig,
        DataConfig,
        *_SOURCES,
    ]
    known = {name for section in sections for name in section.model_fields}
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
