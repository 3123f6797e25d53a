"""Run folders: what a training run leaves behind, and how to open it again."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from greg_cert.config import ExperimentConfig, ModelConfig, dump_config, parse_config
from greg_cert.config.places import without_places
from greg_cert.config.yaml_text import load_yaml
from greg_cert.data import DataSplits, load_data
from greg_cert.digests import json_digest, tensors_digest
from greg_cert.errors import ConfigError, GregCertWarning, RunError
from greg_cert.files import read_text, write_atomic
from greg_cert.runs.manifest import MANIFEST_FILE, check_file, read_manifest
from greg_cert.runs.networks import code_digest, make_network
from greg_cert.runs.training_log import METRICS_FILE
from greg_cert.tensor_file import check_ties, read_tensors, write_tensors

_PACKAGES = (
    "greg-cert",
    "torch",
    "torchvision",
    "auto-LiRPA",
    "numpy",
    "scipy",
    "scikit-learn",
    "scikit-image",
    "faiss-gpu",
    "faiss-cpu",
    "lightning-fabric",
    "pytorch-ood",
)


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, by name.

    Attributes:
        path: the folder.
        trust: factories (`package.module:name`) that may be imported and run to make its network,
            where it was trained with one; no other code that a run folder names is ever run.
    """

    path: Path
    trust: tuple[str, ...] = ()

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def manifest_file(self) -> Path:
        """Versions, seed, device, data fingerprints and model sizes."""
        return self.path / MANIFEST_FILE

    @property
    def weights_file(self) -> Path:
        """The trained weights; there only once training is complete."""
        return self.path / "model.safetensors"

    @property
    def metrics_file(self) -> Path:
        """A JSON object a line."""
        return self.path / METRICS_FILE

    @property
    def events_folder(self) -> Path:
        """The rows of metrics as TensorBoard's events."""
        return self.path / "tensorboard"

    @property
    def checkpoint_file(self) -> Path:
        """State to resume from."""
        return self.path / "checkpoint" / "last.pt"

    @property
    def complete(self) -> bool:
        """Whether training came to its end."""
        return self.weights_file.is_file()

    @cached_property
    def config(self) -> ExperimentConfig:
        """The configuration the run was made with.

        Raises:
            RunError: if it is missing or cannot be read, or is not the one of the manifest.
        """
        expected = f"run: expected a run folder with a valid config.yaml, but got {self.path}"
        try:
            raw = load_yaml(read_text(self.config_file))
            config = parse_config(raw)
            found, earlier = config_digest(config, raw), json_digest({"config": raw})
        except (OSError, ValueError, TypeError, yaml.YAMLError, ConfigError) as error:
            raise RunError(f"{expected}: {error}") from error
        if self.manifest_file.exists():  # a run begins with its configuration
            known = self.manifest.get("digests")
            if isinstance(known, dict) and known.get("config.yaml") == earlier:
                return config  # an earlier version's digest, which told where the data stood
            check_file(self.manifest, self.config_file, found)
        return config

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What made the run, as `greg_cert.runs.manifest` reads it.

        Raises:
            RunError: if it is missing or cannot be read, or is not as it was written.
        """
        found = read_manifest(self.path)
        if not isinstance(found.get("data"), dict):
            raise RunError(f"run: expected a manifest.json with a 'data' entry in {self.path}")
        return found

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 of the weights' file."""
        with self.weights_file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def load_data(self) -> DataSplits:
        """The data of the configuration, read anew."""
        return load_data(self.config.data)

    def save_weights(self, model: nn.Module) -> None:
        """Write the weights, all of them or none.

        Raises:
            RunError: where they cannot be written.
        """
        write_tensors(self.weights_file, model.state_dict())

    def read_weights(self) -> dict[str, Tensor]:
        """The trained weights by name.

        Raises:
            RunError: if they cannot be read, or are not as they were written.
        """
        tensors, digest = read_tensors(self.weights_file)
        if self.manifest_file.exists():
            check_file(self.manifest, self.weights_file, digest or tensors_digest(tensors))
        return tensors

    def load_model(self) -> nn.Module:
        """The trained model, on the CPU in evaluation mode.

        Raises:
            RunError: if the run is not complete, or its weights are corrupt, of another model, or
                not the ones of the manifest, or its network is made by code that is not in `trust`.
        """
        if not self.complete:
            raise RunError(
                f"run: expected a trained run with model.safetensors, but got {self.path}; "
                "train it, or go on with --resume"
            )
        sizes = self.manifest.get("model")
        if not isinstance(sizes, dict):
            raise RunError(
                f"run: expected model sizes in manifest.json of {self.path}, but got none"
            )
        tensors, described = self.read_weights(), self.config.model
        self.check_code()
        try:
            if described.name is not None:
                self._check_size(described, sizes, tensors)
            model = make_network(described, sizes)
        except (TypeError, KeyError, RuntimeError, OverflowError) as error:
            raise RunError(f"run: manifest.json of {self.path} names odd sizes: {error}") from error
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise RunError(
                f"weights: {self.weights_file} does not fit the model: {error}"
            ) from error
        check_ties(model.state_dict(), tensors, self.weights_file)
        return model.eval()

    def _check_size(
        self, described: ModelConfig, sizes: dict[str, Any], tensors: dict[str, Tensor]
    ) -> None:
        """Refuse sizes of a larger network than the weights are of, before it takes any memory."""
        with torch.device("meta"):
            asked = sum(t.numel() for t in make_network(described, sizes).state_dict().values())
        if asked > (held := sum(t.numel() for t in tensors.values())):
            raise RunError(
                f"weights: {self.weights_file} does not fit the model: it holds {held} numbers, "
                f"but the sizes in manifest.json ask for {asked}"
            )

    def check_code(self) -> None:
        """Refuse code of the network that is not in `trust`; note that its file has changed.

        Raises:
            RunError: says how to trust it.
        """
        for code in self.config.model.code:
            if code not in self.trust:
                raise RunError(
                    f"run: the network of {self.path} is made by {code}, code that is imported "
                    f"from here and run; if you trust it, say --trust {code} (in Python "
                    f"RunFolder(path, trust=({code!r},)))"
                )
            if self.manifest.get("code", {}).get(code) != code_digest(code):
                warnings.warn(
                    f"{self.path}: the file of {code} is not the one that the run was trained "
                    "with; what follows is of the network that it makes now",
                    GregCertWarning,
                    stacklevel=2,
                )


def config_digest(config: ExperimentConfig, raw: dict[str, Any] | None = None) -> str:
    """Digest of a configuration, wherever its data stand.

    `raw` is what its YAML file holds, by default what `write_config` writes.
    """
    raw = yaml.safe_load(dump_config(config)) if raw is None else raw
    return json_digest({"config": without_places(raw, config)})


def write_config(run: RunFolder, config: ExperimentConfig) -> None:
    """Write the resolved configuration."""
    write_atomic(run.config_file, dump_config(config))


def model_sizes(splits: DataSplits, *, absent_class: bool = False) -> dict[str, Any]:
    """Arguments of `build_model` that follow from the data; one class more for an absent one."""
    return {
        "num_classes": splits.num_classes + absent_class,
        "in_channels": splits.channels,
        "image_size": splits.image_size,
        "mean": list(splits.mean),
        "std": list(splits.std),
    }


def environment(device: str) -> dict[str, Any]:
    """What a number depends on beside code and seed: versions, device, commit, time."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "versions": package_versions(),
        "git_commit": git_commit(),
    }


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide numbers."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "torch": torch.__version__}  # with its build, which the metadata leaves out


def git_commit() -> str | None:
    """Commit of the checkout this package runs from, marked where it is modified; or None."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=here.parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()

    try:
        # Installed inside somebody else's repository, that one's commit would say nothing.
        git("ls-files", "--error-unmatch", here.name)
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") or None
    except (OSError, subprocess.SubprocessError):
        return None
