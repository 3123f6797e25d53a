"""What a run begins with: its model, the weights loaded into it, and its Lipschitz penalty."""

from __future__ import annotations

import torch

from greg_cert.config import ExperimentConfig
from greg_cert.data import DataSplits
from greg_cert.errors import ConfigError, UnsupportedModelError, UsageError
from greg_cert.models import Classifier, build_model
from greg_cert.runs.records import RunFolder, model_sizes
from greg_cert.runs.weights import LoadReport, load_foreign
from greg_cert.train.objective.lipschitz import LipschitzPenalty, lipschitz_penalty


def first_model(
    config: ExperimentConfig, splits: DataSplits, device: torch.device, *, initialise: bool = True
) -> tuple[Classifier, LoadReport | None]:
    """The model that a run begins with, on the CPU, and what was loaded into it.

    `device` is where it is to be trained. Where a run goes on, `initialise` is not set, and the
    weights of `train.init` are not loaded.

    Raises:
        UsageError: for a model that cannot take the images, or that the device cannot train, or
            weights that are missing or do not fit.
    """
    train = config.train
    if train.sync_batchnorm and device.type == "cpu":
        raise ConfigError("train.sync_batchnorm: expected a GPU, but got the CPU")
    sizes = model_sizes(splits, absent_class=train.absent_class)
    model = build_model(config.model.name, **config.model.choices, **sizes)
    init = train.init if initialise else None
    if init is None:
        return model, None
    source = init.weights
    if source.is_dir():
        run = RunFolder(source)
        run.read_weights()  # refused where they are not the ones that its manifest tells of
        source = run.weights_file
    return model, load_foreign(model, source, **init.model_dump(exclude={"weights"}))


def lipschitz_of(
    config: ExperimentConfig, model: Classifier, image_shape: tuple[int, ...]
) -> LipschitzPenalty | None:
    """L̄ of the model, or None where it cannot be had and no stage asks for it.

    Raises:
        UsageError: where a stage asks for it.
    """
    try:
        return lipschitz_penalty(model, image_shape, seed=config.seed)
    except (UnsupportedModelError, UsageError) as error:
        for i, stage in enumerate(config.train.stages):
            if stage.lambda_lipschitz:
                raise UsageError(f"train.stages[{i}].lambda_lipschitz: {error}") from error
        return None
