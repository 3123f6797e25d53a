"""The manifest of a run as it begins: what its weights will follow from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from greg_cert.config import ExperimentConfig
from greg_cert.data import DataSplits
from greg_cert.errors import RunError
from greg_cert.runs.networks import code_digest
from greg_cert.runs.records import config_digest, environment, model_sizes
from greg_cert.runs.weights import LoadReport


def session_record(device: torch.device, processes: int) -> dict[str, Any]:
    """Versions, time and machine of one call of `fit`; a resumed run has several."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {**environment(name), "processes": processes, "threads": torch.get_num_threads()}


_REQUIRED = ("data", "model", "code")  # earlier versions lack the other parts


def first_manifest(
    config: ExperimentConfig,
    splits: DataSplits,
    loaded: LoadReport | None,
    command: str | None,
    session: dict[str, Any],
) -> dict[str, Any]:
    """The manifest before the first stage has begun; `session` is of `session_record`."""
    return {
        **session,
        "method": config.method,
        "score": config.score,
        "seed": config.seed,
        "model": model_sizes(splits, absent_class=config.train.absent_class),
        "code": {code: code_digest(code) for code in config.model.code},
        "init": None if loaded is None else loaded.to_dict(),
        "data": splits.fingerprints(),
        "split_sizes": {
            "train": len(splits.train),
            "calibration": len(splits.calibration),
            "test": len(splits.test),
            "aux": 0 if splits.aux is None else len(splits.aux),
            **{f"ood/{name}": len(s) for name, s in splits.ood.items()},
        },
        "command": command,
        "stages": [],
        "digests": {"config.yaml": config_digest(config)},
    }


def continued(
    before: dict[str, Any], own: dict[str, Any], session: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """The manifest of a run that goes on, with every session that had a part in the weights.

    Args:
        before: as its folder has it.
        own: as it would begin now.
        session: of this call.
        folder: for errors.

    Raises:
        RunError: the run was begun with other data or another model, or an entry is damaged.
    """
    parts = ("data", "model", "code", "method", "score", "seed", "split_sizes")
    check_same(before, {part: own[part] for part in parts}, folder)
    lists = {part: before.get(part, []) for part in ("resumed", "stages")}
    for part, found in lists.items():
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise RunError(f"resume: expected a list of records as {part} of {folder}'s manifest")
    lists["resumed"] = [*lists["resumed"], session]
    return {**before, **lists, "digests": own["digests"]}


def check_same(before: dict[str, Any], own: dict[str, Any], folder: Path) -> None:
    """Refuse to go on where a part of the manifest was another when the run was begun.

    Raises:
        RunError: names the part.
    """
    for part, mine in own.items():
        told = before.get(part, {} if part in _REQUIRED else mine)
        if json.dumps(told, sort_keys=True) != json.dumps(mine, sort_keys=True):
            raise RunError(f"resume: the {part} of {folder} changed since it was begun")
