"""Pictures of the most and the least robust samples, each with the nearest attack found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from greg_cert.config import VerifyConfig
from greg_cert.data import Images
from greg_cert.errors import RunError
from greg_cert.extremes import LISTED, OOD_LISTED, shown_samples
from greg_cert.picture_file import (
    PICTURES,
    SamplePicture,
    most_pictures,
    read_pictures,
    write_pictures,
)
from greg_cert.verify.certifier import Certifier
from greg_cert.verify.job import Job
from greg_cert.verify.options import CertifyOptions
from greg_cert.verify.paired import ID, Candidate, images_of, part_of, side_of
from greg_cert.verify.results import VerifiedRun
from greg_cert.verify.scorer import Margin, check_inputs


@dataclass(frozen=True)
class _Shown:
    """The samples of one run and part that get a picture."""

    run: Candidate
    part: str
    dataset: str
    rows: pd.DataFrame


def write_sample_pictures(out: Path, job: Job, runs: tuple[VerifiedRun, ...]) -> Path | None:
    """Write `out`/pictures.npz for the samples that the report lists; None where there are none.

    The samples are those of `greg_cert.extremes`: of the ID side, then of each OOD test set, as
    many as the file may hold. What an earlier call left there and fits the tables is kept.

    Args:
        out: the folder of the results.
        job: what was verified, and how.
        runs: the rows of the tables, in the order of `job.runs`.

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
    for shown in _shown(job, runs):
        rows = shown.rows.head(room - len(pictures))
        pictures += _pictures(job, shown, rows, old)
    if pictures:
        return write_pictures(path, pictures)
    path.unlink(missing_ok=True)
    return None


def _shown(job: Job, runs: tuple[VerifiedRun, ...]) -> Iterator[_Shown]:
    """What is shown, the ID side of all runs first."""
    pairs = list(zip(job.runs, runs, strict=True))
    for run, found in pairs:
        if len(found.frame):
            yield _Shown(run, ID, "", shown_samples(found.frame, LISTED))
    for run, found in pairs:
        if len(found.ood_frame):
            for name, rows in found.ood_frame.groupby("dataset", sort=False):
                dataset = str(name)
                yield _Shown(run, part_of(dataset), dataset, shown_samples(rows, OOD_LISTED))


def _pictures(
    job: Job,
    shown: _Shown,
    rows: pd.DataFrame,
    old: Mapping[tuple[str, str, int], SamplePicture],
) -> list[SamplePicture]:
    """Pictures of some rows; attacks are made on those alone that `old` has no picture of."""
    done: dict[int, SamplePicture] = {}
    for index, *numbers in _numbers(rows):
        known = old.get((shown.run.name, shown.dataset, index))
        if known is not None and known.fits(*numbers):
            done[index] = known
    missing = rows[~rows["index"].isin(list(done))]
    images = images_of(job.splits, shown.part)
    for start in range(0, len(missing), job.chunk):  # as many at once as were certified at once
        some = missing.iloc[start : start + job.chunk]
        made = attacked_pictures(shown.run, images, some, side_of(shown.part), job.settings)
        done |= {picture.index: picture for picture in made}
    return [done[index] for index, *_ in _numbers(rows)]


def _numbers(rows: pd.DataFrame) -> list[tuple[int, float, float, float]]:
    """Index, γ, score and attack radius of each row."""
    names = ("index", "threshold", "score", "radius_attack")
    return [
        (int(i), float(t), float(s), float(r))
        for i, t, s, r in zip(*(rows[name] for name in names), strict=True)
    ]


def attacked_pictures(
    run: Candidate, images: Images, rows: pd.DataFrame, side: str, settings: VerifyConfig
) -> list[SamplePicture]:
    """The samples of some certificates, each with the nearest perturbation that crosses γ.

    The attack that gave `radius_attack` is made again, with the same seed, settings and names of
    the samples, so that its radius is the table's up to rounding.

    Args:
        run: the run that the rows are about.
        images: the set of their indices.
        rows: certificates, none of them `rejected`.
        side: `id` or `ood`.
        settings: what they were certified with.
    """
    indices = torch.tensor(rows["index"].tolist(), dtype=torch.int64)
    x = check_inputs(images.pixels(indices))
    threshold = float(rows["threshold"].iloc[0])
    labels = None
    if settings.correct and side == "id":
        labels = torch.tensor(rows["label"].tolist(), dtype=torch.int64)
    certifier = Certifier(
        run.model,
        None,  # nothing is bounded here
        settings.engine,
        Margin(threshold, side),
        settings.norm_value,
        settings.max_radius,
        (),
        CertifyOptions(score=run.score, seed=settings.seed),
    )
    wrong = torch.zeros(len(x), dtype=torch.bool)
    found = certifier.nearest_attack(x, indices, labels, wrong)
    with torch.no_grad():
        logits = certifier.logits(x + found.delta)
        scores = certifier.value(logits)
    classes = (logits[:, :-1] if run.score == "absent_class" else logits).argmax(1)
    clean = images.stored(indices).numpy()
    delta = found.delta.float().numpy()
    dataset = str(rows["dataset"].iloc[0]) if "dataset" in rows else ""
    pictures = []
    for k, (index, gamma, score, _) in enumerate(_numbers(rows)):
        radius = float(found.radius[k])
        there = radius < float("inf")
        pictures.append(
            SamplePicture(
                run.name,
                dataset,
                index,
                gamma,
                score,
                clean[k],
                delta[k] if there else None,
                radius,
                float(scores[k]) if there else float("nan"),
                int(classes[k]) if there else -1,
            )
        )
    return pictures
