"""What a run begins with: its model, the weights loaded into it, and its Lipschitz penalty."""

from __future__ import annotations

import torch
from torch import nn

from greg_cert.config import ExperimentConfig
from greg_cert.data import DataSplits
from greg_cert.errors import ConfigError, RunError, UnsupportedModelError, UsageError
from greg_cert.files import is_folder
from greg_cert.models.last_layer import pass_with_features
from greg_cert.models.modes import evaluating
from greg_cert.runs.networks import make_network
from greg_cert.runs.records import RunFolder, model_sizes
from greg_cert.runs.weights import LoadReport, load_foreign
from greg_cert.train.objective.lipschitz import LipschitzPenalty, lipschitz_penalty


def first_model(
    config: ExperimentConfig, splits: DataSplits, device: torch.device, *, initialise: bool = True
) -> tuple[nn.Module, LoadReport | None]:
    """The model that a run begins with, on the CPU, and what was loaded into it.

    `device` is where it is to be trained. Where a run goes on, `initialise` is not set, and the
    weights of `train.init` are not loaded.

    Raises:
        UsageError: for a model that cannot take the images, or that the device cannot train, or
            weights that are missing or do not fit.
        RunError: for a factory that fails, or whose network does not suit data or stages.
    """
    train = config.train
    if train.sync_batchnorm and device.type == "cpu":
        raise ConfigError("train.sync_batchnorm: expected a GPU, but got the CPU")
    sizes = model_sizes(splits, absent_class=train.absent_class)
    model = make_network(config.model, sizes)
    _check_features(config, model, splits.train.image_shape)
    init = train.init if initialise else None
    if init is None:
        return model, None
    source, target = init.weights, model
    if is_folder(source):
        run = RunFolder(source)
        run.read_weights()  # refused where they are not the ones that its manifest tells of
        source = run.weights_file
    elif config.model.normalize:
        assert isinstance(model, nn.Sequential)
        target = model[1]  # a file from elsewhere holds the bare network
    return model, load_foreign(target, source, **init.model_dump(exclude={"weights"}))


def _check_features(config: ExperimentConfig, model: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuse a network without a last linear layer where a stage chooses outliers by features."""
    stages = enumerate(config.train.stages)
    asking = [(i, s.strategy) for i, s in stages if s.chooses_by_features]
    if not asking or config.model.factory is None:  # networks of ours end in a linear layer
        return
    with evaluating(model), torch.no_grad():
        found = pass_with_features(model, torch.full((1, *shape), 0.5))
    if found.features is None:
        i, strategy = asking[0]
        raise RunError(
            f"train.stages[{i}].strategy: {strategy} compares what enters the last nn.Linear, but "
            f"the logits of {config.network} come from elsewhere; expected random or greedy"
        )


def lipschitz_of(
    config: ExperimentConfig, model: nn.Module, image_shape: tuple[int, ...]
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
