"""Pictures of the most and the least robust samples, each with the nearest attack found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from greg_cert.certificates.format import PICTURES
from greg_cert.certificates.picture_file import (
    SamplePicture,
    most_pictures,
    read_pictures,
    write_pictures,
)
from greg_cert.certificates.robust_samples import LISTED, OOD_LISTED, shown_samples
from greg_cert.config import VerifyConfig
from greg_cert.data import DataSplits
from greg_cert.errors import RunError
from greg_cert.runs.inference import device_of
from greg_cert.verify.attack.audit import nearest_attack
from greg_cert.verify.attack.plan import AttackPlan
from greg_cert.verify.run.candidates import Candidate
from greg_cert.verify.run.job import Job
from greg_cert.verify.run.tables import VerifiedRun
from greg_cert.verify.scorer import Detector, Margin, check_inputs, logit_function


def write_sample_pictures(out: Path, job: Job, runs: Sequence[VerifiedRun]) -> Path | None:
    """Write `out`/pictures.npz for the samples that the report lists; None where there are none.

    The samples are those of `greg_cert.certificates.robust_samples`: of the ID side, then of each
    OOD set, as many as the file may hold. What an earlier call left there and fits the tables is
    kept.

    Raises:
        RunError: where the file cannot be written.
    """
    path = out / PICTURES
    try:
        old = {picture.key: picture for picture in read_pictures(path)}
    except RunError:  # whatever it holds is written anew
        old = {}
    room = most_pictures(job.splits.test.image_shape)
    pictures: list[SamplePicture] = []
    for side in ("id", "ood"):
        for run, found in zip(job.runs, runs, strict=True):
            rows = _shown(found, side).head(room - len(pictures))
            pictures += _pictures(job, run, rows, side, old)
    if pictures:
        return write_pictures(path, pictures)
    path.unlink(missing_ok=True)
    return None


def _shown(run: VerifiedRun, side: str) -> pd.DataFrame:
    """The rows of one side that get a picture, with the name of their OOD test set or an empty one.

    All sets of a side are attacked together: small batches take as long as larger ones.
    """
    if side == "id" and len(run.frame):
        return shown_samples(run.frame.assign(dataset=""), LISTED)
    if side == "ood" and len(run.ood_frame):
        sets = run.ood_frame.groupby("dataset", sort=False)
        return pd.concat([shown_samples(rows, OOD_LISTED) for _, rows in sets])
    return pd.DataFrame()


def _pictures(
    job: Job,
    run: Candidate,
    rows: pd.DataFrame,
    side: str,
    old: Mapping[tuple[str, str, int], SamplePicture],
) -> list[SamplePicture]:
    """Pictures of some rows; attacks are made on those alone that `old` has no picture of."""
    keys, known = [], []
    for dataset, index, *numbers in _numbers(rows):
        keys.append((run.name, dataset, index))
        picture = old.get(keys[-1])
        known.append(picture is not None and picture.fits(*numbers))
    done = {key: old[key] for key, there in zip(keys, known, strict=True) if there}
    missing = rows[~np.array(known, dtype=bool)]
    for start in range(0, len(missing), job.chunk):  # as many at once as were certified at once
        some = missing.iloc[start : start + job.chunk]
        done |= {p.key: p for p in attacked_pictures(run, job.splits, some, side, job.settings)}
    return [done[key] for key in keys]


def _numbers(rows: pd.DataFrame) -> list[tuple[str, int, float, float, float]]:
    """OOD test set, index, γ, score and attack radius of each row."""
    if rows.empty:
        return []
    names = ("dataset", "index", "threshold", "score", "radius_attack")
    return [
        (str(d), int(i), float(t), float(s), float(r))
        for d, i, t, s, r in zip(*(rows[name] for name in names), strict=True)
    ]


def attacked_pictures(
    run: Candidate, splits: DataSplits, rows: pd.DataFrame, side: str, settings: VerifyConfig
) -> list[SamplePicture]:
    """The samples of some certificates, each with the nearest perturbation that crosses γ.

    The attack that gave `radius_attack` is made again, with the same seed, settings and names of
    the samples, so that its radius is the table's up to rounding. No row is `rejected`, and
    `dataset` names its OOD test set; it is empty for the ID test split.
    """
    numbers = _numbers(rows)
    sets = [splits.ood[dataset] if dataset else splits.test for dataset, *_ in numbers]
    indices = torch.tensor([i for _, i, *_ in numbers], dtype=torch.int64, device="cpu")
    pixels = [images.pixels([int(i)]) for images, i in zip(sets, indices, strict=True)]
    x = check_inputs(torch.cat(pixels)).to(device_of(run.model))
    labels = None
    if settings.correct and side == "id":
        labels = torch.tensor(rows["label"].tolist(), dtype=torch.int64, device=x.device)
    margin = Margin(float(rows["threshold"].iloc[0]), side)
    detector = Detector(logit_function(run.model), run.score, margin)
    plan = AttackPlan(margin, settings.norm_value, settings.seed)
    wrong = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    found = nearest_attack(detector, plan, settings.max_radius, x, indices, labels, wrong)
    with torch.no_grad():
        logits = detector.logits(x + found.delta)
        scores, classes = detector.value(logits), detector.predicted(logits)
    pictures = []
    for k, (dataset, index, threshold, score, _) in enumerate(numbers):
        radius = float(found.radius[k])
        there = math.isfinite(radius)
        pictures.append(
            SamplePicture(
                run=run.name,
                dataset=dataset,
                index=index,
                threshold=threshold,
                score=score,
                clean=sets[k].stored([index])[0].numpy(),
                difference=found.delta[k].float().cpu().numpy() if there else None,
                radius=radius,
                attacked_score=float(scores[k]) if there else math.nan,
                attacked_class=int(classes[k]) if there else -1,
            )
        )
    return pictures
