"""An experiment as one typed, frozen record; unknown keys are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from greg_cert.config.network import Network
from greg_cert.config.verification import VerifyConfig
from greg_cert.data.schema import DataConfig
from greg_cert.models.names import (
    default_activation,
    default_dropout,
    expected_activation,
    expected_dropout,
)
from greg_cert.scores import SCORES
from greg_cert.section import Count, Name, Section, Seed
from greg_cert.stages import Method, ScoreName, StageConfig


class ModelConfig(Network):
    """Which network: one of `greg_cert.models`, or your own."""

    activation: Literal["relu", "maxmin"] | None = None
    """`relu`, or `maxmin` (pairs of channels sorted), which loses nothing of an ℓ2 ball; that for
    `mlp`, `cnn_small`, `lip_cnn` and `liresnet` alone. By default `maxmin` for the last two, `relu`
    for the others.
    """  # noqa: RUF001
    dropout: float | None = None
    """Share of features that training drops, of `wrn40_2` (by default 0.3) and `wrn16_2` (0)
    alone; the authors' code has 0.
    """

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_model(cls, value: Any) -> Any:
        """A resolved configuration names them, whatever later versions take for the default."""
        if isinstance(value, dict) and isinstance(name := value.get("name"), str):
            own = {"activation": default_activation(name), "dropout": default_dropout(name)}
            return {**value, **{k: v for k, v in own.items() if value.get(k) is None}}
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.check_one()
        if self.name is None:
            for field, value in self.choices.items():
                if value is not None:
                    raise ValueError(f"{field}: expected none beside factory, but got {value!r}")
            return self
        assert self.activation is not None
        if (expected := expected_activation(self.name, self.activation)) is not None:
            raise ValueError(f"activation: {expected}, but got {self.activation!r}")
        if (expected := expected_dropout(self.name, self.dropout)) is not None:
            raise ValueError(f"dropout: {expected}, but got {self.dropout!r}")
        return self

    @property
    def choices(self) -> dict[str, Any]:
        """Arguments of `greg_cert.models.build_model` that do not follow from the data."""
        return {"activation": self.activation, "dropout": self.dropout}

    @property
    def code(self) -> tuple[str, ...]:
        """The code that making the network runs: its factory, if it has one."""
        return () if self.factory is None else (self.factory,)


class InitConfig(Section):
    """Weights to begin with: of a run, or of a file from elsewhere. Every key of it must fit."""

    weights: Path
    """Run folder, or a `.safetensors`, `.pt` or `.pth` file, or the `.safetensors.index.json` of
    several; nothing in it is executed.
    """
    allow_missing: tuple[str, ...] = ()
    """Names here (or patterns such as `head.*`) that may stay as initialised."""
    allow_unexpected: tuple[str, ...] = ()
    """Names in the file, or patterns, that may be left out."""
    rename: tuple[tuple[str, str], ...] = ()
    """Pairs of module paths, in the file and here, for names that are not known."""
    entry: str | None = None
    """Which of several sets of weights in the file."""


def _bare_path(value: object) -> object:
    return {"weights": value} if isinstance(value, (str, Path)) else value


Init = Annotated[InitConfig | None, BeforeValidator(_bare_path)]
"""Weights to begin with, a bare path where nothing needs to be allowed."""


class TrainConfig(Section):
    """How a run is trained."""

    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1)]
    """In order; the last one names the run's method and score."""
    init: Init = None
    """Weights to begin with; a bare path where nothing needs to be allowed."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Of Lightning Fabric: `auto`, `cpu`, `gpu`."""
    devices: Count | Literal["auto"] = 1
    """Processes on each node, one a device; `auto` for all GPUs of the node."""
    nodes: Count = 1
    """Machines, each started by `torchrun` or `fabric run`."""
    precision: Literal["32", "bf16"] = "32"
    """`32`, or `bf16` for convolutions and matrix products, with scores and the norms of their
    gradients in float32.
    """
    channels_last: bool = True
    """Whether images lie in memory with their channels last, which is faster on most devices."""
    compile: bool = False
    """Whether `torch.compile` compiles the model; a gradient penalty then needs `estimator:
    finite-difference`.
    """
    sync_batchnorm: bool = False
    """Whether BatchNorm takes its statistics over all processes (GPUs only)."""
    log_every: Count = 10
    """Steps between two rows of `metrics.jsonl`; the first step of a stage is one."""
    checkpoint_every: Count | None = None
    """Steps between two checkpoints, beside that at the end of each epoch."""

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
        if self.absent_class and len(losses) > 1:
            raise ValueError(
                "expected one outlier_loss of an absent class in all stages with outliers or in "
                f"none, but got {', '.join(sorted(losses))}"
            )
        if self.absent_class and not SCORES[self.stages[-1].score].absent:
            raise ValueError(
                "expected the last stage to have a score of the absent class, as the model has "
                f"that output, but got {self.stages[-1].score}"
            )
        return self

    @property
    def absent_class(self) -> bool:
        """Whether the model has one more output than there are ID classes."""
        return any(s.has_absent_class for s in self.stages)


class ExperimentConfig(Section):
    """Everything that makes a run."""

    name: Name | None = None
    """What tables, figures and files call the run; by default its method."""
    seed: Seed = 0
    """Of weights, batches and clusters."""
    data: DataConfig
    """Sources and splits."""
    model: ModelConfig
    """Network."""
    train: TrainConfig
    """Stages of training."""
    verify: VerifyConfig = VerifyConfig()
    """Defaults of `greg-cert verify`."""

    @model_validator(mode="after")
    def _scale_of_pixels(self) -> Self:
        if self.model.name is None and not self.model.normalize:
            for i, stage in enumerate(self.train.stages):
                if stage.gradient and stage.gradient_space == "normalized":
                    raise ValueError(
                        f"train.stages[{i}].gradient_space: expected pixel, or model.normalize, as "
                        "what a factory's network does with pixels is not known"
                    )
        return self

    @property
    def network(self) -> str:
        """What tables call the network."""
        return self.model.name or self.model.factory or ""

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
