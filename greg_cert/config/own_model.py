"""A model that was trained elsewhere, described in a file of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self

from pydantic import model_validator

from greg_cert.config.experiment import Init
from greg_cert.config.network import Network
from greg_cert.config.verification import VerifyConfig
from greg_cert.data.schema import DataConfig
from greg_cert.section import Name, Section, Seed
from greg_cert.stages import ScoreName


class OwnNetwork(Network):
    """A network that was trained elsewhere."""

    onnx: Path | None = None
    """An ONNX file instead of a factory, with its weights; nothing in it is executed. It needs the
    extra `onnx`.
    """
    weights: Init = None
    """Their file, or nothing where `factory` loads them itself."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        self.check_one(onnx=self.onnx)
        if self.name is not None and self.weights is None:
            raise ValueError("expected weights beside name")
        if self.onnx is not None and self.weights is not None:
            raise ValueError("expected no weights beside onnx, whose file holds them")
        return self


class OwnModelConfig(Section):
    """A model that was trained elsewhere, and the data that it is evaluated and verified on."""

    name: Name | None = None
    """What tables call it; by default the name of the factory, network or file."""
    seed: Seed | None = None
    """That it was trained with, where means over seeds are wanted."""
    data: DataConfig
    """As in an experiment. `id` sets the threshold, and is what detectors are fitted on."""
    model: OwnNetwork
    """The network."""
    score: ScoreName = "energy"
    """OOD score it is evaluated by."""
    verify: VerifyConfig = VerifyConfig()
    """Defaults of `greg-cert verify`."""

    @property
    def network(self) -> str:
        """What tables call the network."""
        file = self.model.onnx
        return self.model.factory or self.model.name or (file.name if file else "")

    @property
    def method(self) -> str:
        """What tables call its training, of which nothing is known."""
        return "own model"

    @property
    def title(self) -> str:
        """`name` where given, otherwise the last part of the network's or file's name."""
        if self.model.onnx is not None:
            return self.name or self.model.onnx.stem
        return self.name or re.split(r"[:./]", self.network)[-1]
