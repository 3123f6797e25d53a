"""The values of the grid's settings, chosen on calibration data by one rule for all runs.

Rule, for the candidates of a run, all trained with the first seed:

1. Candidates whose accuracy is more than a point below that of `ce` are left out (if that is all of
   them, the most accurate stays).
2. Of the rest, those whose FPR95 is within 0.01 of the lowest stay.
3. Of these the one with the longest median certified radius is taken.

All of it is measured on the calibration split and on held-out auxiliary images: test data are not
read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from page_parts import folder_name

from greg_cert.config import VerifyConfig
from greg_cert.data import DataSplits, Images, load_data
from greg_cert.data.withheld import hold_out
from greg_cert.errors import ConfigError, TrainingError
from greg_cert.files import write_atomic
from greg_cert.runs.records import RunFolder
from greg_cert.train import fit
from greg_cert.verify.run.on_calibration import measure
from grid.tasks import RUNS, Task, proof

ACCURACY, FPR = 0.01, 0.01
HELD_OUT = 0.1  # share of the auxiliary images
SAMPLES = 40
_SEED = 0
_KEPT = ("accuracy", "calibration_error", "auroc", "fpr", "radius_certified", "radius_attack")


@dataclass(frozen=True)
class Chooser:
    """Trains and measures the candidates of a task, each once.

    Attributes:
        work: folder of runs and notes, to go on from.
        file: what was found, by run: the candidates with their numbers, and the choice.
    """

    task: Task
    work: Path
    file: Path

    def choose(self, run: str, found: dict[str, Any], splits: DataSplits, held_out: Images) -> None:
        """Choose the values of a run, after those of the run that it follows."""
        what = RUNS[run]
        before = found[what.follows]["chosen"] if what.follows else {}
        candidates = []
        for values in what.candidates():
            settings = {**before, **values}
            numbers = self._measured(run, settings, splits, held_out)
            candidates.append({"values": settings, **numbers})
        least = found["ce"]["candidates"][0]["accuracy"] if run != "ce" else 0.0
        best = candidates[chosen(candidates, least)]
        found[run] = {"candidates": candidates, "chosen": best["values"]}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.file, json.dumps(found, indent=1) + "\n")

    def _measured(
        self, run: str, settings: dict[str, float], splits: DataSplits, held_out: Images
    ) -> dict[str, Any]:
        name = "-".join([folder_name(run), *(f"{v:g}" for v in settings.values())])
        folder = self.work / name
        note = folder.with_name(f"{folder.name}.json")
        if note.exists():
            known: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
            return known
        start = None if RUNS[run].alone else self.work / "start"
        config = self.task.experiment(run, settings, _SEED, self.work.parent, start)
        begun = time.process_time()
        try:
            fit(config, splits, folder, resume=folder.exists())
        except (ConfigError, TrainingError) as error:
            numbers: dict[str, Any] = {"error": str(error)}
        else:
            seconds = time.process_time() - begun
            proven = proof(config.score, "2")
            proven["method"] = ("lipschitz", *proven["method"])
            how = VerifyConfig(samples=SAMPLES, batch=20, **proven)
            model = RunFolder(folder).load_model()
            of_run = measure(model, splits, held_out, how, score=config.score)
            numbers = {k: of_run.numbers[k] for k in _KEPT} | {"train_seconds": round(seconds, 1)}
        write_atomic(note, json.dumps(numbers) + "\n")
        print(f"{self.work.name}: {name}: {numbers}", flush=True)
        return numbers

    def __call__(self, runs: Sequence[str]) -> dict[str, Any]:
        """What is known of these runs, and of others from before."""
        found = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
        wanted = {"ce", *runs, *(RUNS[run].follows for run in runs)}
        missing = [run for run in RUNS if run in wanted and run not in found]
        if missing:
            data = self.task.experiment("start", {}, _SEED, self.work.parent).data
            splits = load_data(data, tests=False)
            assert splits.aux is not None
            aux, held_out = hold_out(splits.aux, HELD_OUT, most=2000, seed=data.seed)
            splits = replace(splits, aux=aux)
            start = self.work / "start"
            config = self.task.experiment("start", {}, _SEED, self.work.parent)
            fit(config, splits, start, resume=start.exists())
            for run in missing:
                self.choose(run, found, splits, held_out)
        return found


def chosen(candidates: list[dict[str, Any]], accuracy: float) -> int:
    """The place of the candidate that the rule takes, beside the accuracy of `ce`.

    Raises:
        ValueError: where none could be trained.
    """
    places = [i for i, c in enumerate(candidates) if "error" not in c]
    if not places:
        raise ValueError("expected a candidate that can be trained, but got none")
    kept = [i for i in places if candidates[i]["accuracy"] >= accuracy - ACCURACY]
    if not kept:
        return max(places, key=lambda i: candidates[i]["accuracy"])
    lowest = min(candidates[i]["fpr"] for i in kept)
    near = [i for i in kept if candidates[i]["fpr"] <= lowest + FPR]
    return max(near, key=lambda i: candidates[i]["radius_certified"])
