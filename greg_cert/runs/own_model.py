"""Models from elsewhere: a factory and weights, or an ONNX file, described in YAML."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from greg_cert.config import OwnModelConfig, load_own_model
from greg_cert.data import DataSplits, load_data
from greg_cert.digests import json_digest, tensors_digest
from greg_cert.errors import RunError
from greg_cert.models import build_model
from greg_cert.models.onnx.file import OnnxFile, read_onnx
from greg_cert.runs.networks import check_logits, made_by, normalised
from greg_cert.runs.records import environment, model_sizes
from greg_cert.runs.weights import LoadReport, load_foreign
from greg_cert.scores import SCORES


@dataclass(frozen=True)
class OwnModel:
    """A model that was trained elsewhere, described by a YAML file (`OwnModelConfig`).

    Its factory is imported and run; the current folder is one of those that are looked through.
    """

    path: Path

    @cached_property
    def config(self) -> OwnModelConfig:
        """The description.

        Raises:
            ConfigError: as `load_own_model`.
        """
        return load_own_model(self.path)

    @cached_property
    def _splits(self) -> DataSplits:
        return load_data(self.config.data)

    def load_data(self) -> DataSplits:
        """Its data, read once."""
        return self._splits

    @property
    def _sizes(self) -> dict[str, Any]:
        return model_sizes(self._splits, absent_class=SCORES[self.config.score].absent)

    @cached_property
    def _loaded(self) -> tuple[nn.Module, LoadReport | OnnxFile | None]:
        described = self.config.model
        report: LoadReport | OnnxFile | None = None
        if described.onnx is not None:
            report = self._onnx(described.onnx)
            model: nn.Module = report.module
        elif described.name is not None:
            model = build_model(described.name, **self._sizes)
        else:
            assert described.factory is not None
            model = made_by(described.factory, described.arguments)
        if (given := described.weights) is not None:
            options = {k: v for k, v in given if k != "weights"}
            report = load_foreign(model, given.weights, **options)
        if described.normalize:
            model = normalised(model, self._sizes)
        model = model.to("cpu", torch.float32).eval()
        check_logits(model, self._splits.calibration.pixels([0]), self._sizes, self.config.network)
        return model, report

    def _onnx(self, path: Path) -> OnnxFile:
        found = read_onnx(path)
        of_data = (self._splits.channels, self._splits.image_size, self._splits.image_size)
        if found.image_shape != of_data:
            raise RunError(
                f"model.onnx: expected {path} to take images of the data, {of_data}, "
                f"but it takes {found.image_shape}"
            )
        return found

    def load_model(self) -> nn.Module:
        """The model from raw pixels to logits, on the CPU in evaluation mode.

        Raises:
            RunError: the factory cannot be imported or fails, the weights do not fit, the ONNX file
                cannot be read, or the outputs are not one logit a class.
            UnsupportedModelError: an operation in the ONNX file that is not known.
        """
        return self._loaded[0]

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 of the model's tensors, by name, and of the ONNX file where they come from one.

        Which layers such a file has, and of which strides, is not told by its tensors.
        """
        digest, report = tensors_digest(self.load_model().state_dict()), self._loaded[1]
        if isinstance(report, OnnxFile):
            digest = json_digest({"tensors": digest, "file": report.sha256})
        return digest

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """As of a run: sizes, fingerprints, and where the weights came from."""
        report = self._loaded[1]
        return {
            "method": self.config.method,
            "score": self.config.score,
            "model": self._sizes,
            "data": self._splits.fingerprints(),
            "init": None if report is None else report.to_dict(),
            "weights_sha256": self.weights_digest,
            **environment("cpu"),
        }
