"""Networks as a configuration describes them: of the registry, or made by a user's own code."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from greg_cert.config.experiment import ModelConfig
from greg_cert.errors import RunError
from greg_cert.files import plain_file
from greg_cert.models import build_model
from greg_cert.models.modes import evaluating
from greg_cert.models.normalize import Normalize


def make_network(described: ModelConfig, sizes: Mapping[str, Any]) -> nn.Module:
    """The network of an experiment, freshly made: raw images (B, C, H, W) to logits (B, K).

    `sizes` are those of the data (`greg_cert.runs.records.model_sizes`).

    Raises:
        RunError: for a factory that fails, as `made_by`, or makes a network that does not take such
            images or does not give K logits.
        UsageError: for a network of the registry that cannot take the images.
    """
    if described.name is not None:
        return build_model(described.name, **described.choices, **sizes)
    assert described.factory is not None
    model = made_by(described.factory, described.arguments)
    if described.normalize:
        model = normalised(model, sizes)
    image = torch.full((1, sizes["in_channels"], sizes["image_size"], sizes["image_size"]), 0.5)
    with evaluating(model):
        check_logits(model, image, sizes, described.factory)
    return model


def normalised(model: nn.Module, sizes: Mapping[str, Any]) -> nn.Module:
    """The model behind (x - mean)/std of the data."""
    return nn.Sequential(Normalize(sizes["mean"], sizes["std"]), model)


def check_logits(model: nn.Module, image: Tensor, sizes: Mapping[str, Any], network: str) -> None:
    """Refuse a model that does not give one logit for each of `num_classes`.

    `image` is one, (1, C, H, W), and `network` what messages call the model.

    Raises:
        RunError: it fails, or gives something else.
    """
    try:
        with torch.no_grad():
            logits = model(image)
    except Exception as error:
        raise RunError(
            f"model: {network} cannot take images of shape {tuple(image.shape)} "
            f"({type(error).__name__}: {error})"
        ) from error
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (1, sizes["num_classes"]):
        raise RunError(
            f"model: expected logits (1, {sizes['num_classes']}) of one image, one a class (and "
            f"one of the absent class, where there is one), but {network} gives {found}"
        )


def code_digest(factory: str) -> str | None:
    """SHA-256 of the file that a factory stands in; None where there is no such file."""
    try:
        file = inspect.getsourcefile(_found(factory))
        return (
            None
            if file is None
            else hashlib.sha256(plain_file(Path(file)).read_bytes()).hexdigest()
        )
    except (OSError, TypeError):
        return None


def made_by(factory: str, arguments: dict[str, Any]) -> nn.Module:
    """What `package.module:name`, called with the arguments, makes.

    Raises:
        RunError: it cannot be imported, fails, or makes something else than a module.
    """
    place, field = _found(factory), "model.factory"
    try:
        with _at_home():
            model = place(**arguments)
    except (Exception, SystemExit) as error:
        given = json.dumps(arguments, default=str)
        raise RunError(
            f"{field}: {factory} failed with arguments {given} ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(model, nn.Module):
        raise RunError(
            f"{field}: expected {factory} to give a torch.nn.Module, "
            f"but got a {type(model).__name__}"
        )
    return model


def _found(factory: str) -> Any:
    module_name, _, name = factory.partition(":")
    try:
        with _at_home():
            place: Any = importlib.import_module(module_name)
        for part in name.split("."):
            place = getattr(place, part)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        raise RunError(
            "model.factory: expected package.module:name that can be imported from here, "
            f"but got {factory!r} ({type(error).__name__}: {error})"
        ) from error
    return place


@contextmanager
def _at_home() -> Iterator[None]:
    """The current folder importable, as `python -m` has it, and what is printed on standard error.

    Standard output is for results; a factory may tell of its progress there.
    """
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
