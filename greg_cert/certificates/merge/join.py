"""Several verifications as one, paired by sample, so that any runs can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from greg_cert.certificates.folder import Tables, write_folder
from greg_cert.certificates.format import CERTIFICATES, PICTURES
from greg_cert.certificates.merge.check import MERGED, Part, check_alike, check_target, read_part
from greg_cert.certificates.merge.counts import recounted
from greg_cert.certificates.merge.names import Named, merged_names
from greg_cert.certificates.merge.record import merged_audit, merged_provenance
from greg_cert.certificates.merge.rows import Rows, kept_rows, shared_keys
from greg_cert.certificates.picture_file import (
    SamplePicture,
    most_pictures,
    read_pictures,
    write_pictures,
)
from greg_cert.errors import RunError, UsageError


@dataclass(frozen=True)
class Merged:
    """What was put together.

    Attributes:
        folder: the verification folder that was written.
        runs: names of the runs, the baseline first.
        baseline: the one that the others are compared with, or None.
        samples: ID samples that every run has.
        left_out: by folder and set, the samples that not all have; only where there are any.
        same: runs that several folders hold, kept once, and the folders they were not taken from.
        violations: certificates that an attack contradicts.
    """

    folder: Path
    runs: tuple[str, ...]
    baseline: str | None
    samples: int
    left_out: dict[str, dict[str, int]]
    same: dict[str, list[str]]
    violations: int


@dataclass(frozen=True)
class _Entry:
    """One run of the result: where it comes from, its names there and here, and its rows."""

    part: Part
    old: str
    rows: Rows
    name: str = ""

    @property
    def named(self) -> Named:
        seed = self.part.manifest(self.old).get("seed")
        folder = self.part.results.summary.provenance.folders.get(self.old)
        return Named(
            self.part.folder,
            self.old,
            seed if isinstance(seed, int) else None,
            None if folder is None else Path(folder),
        )


def merge_verifications(
    folders: Sequence[Path],
    out: Path,
    *,
    baseline: str | None = None,
    command: str | None = None,
) -> Merged:
    """Write one verification folder with the runs of all of them, of the samples that all have.

    The result is what one verification of all the runs would have written, but for where its
    numbers come from. A run that several folders hold with the same rows is kept once; runs of one
    name are told apart by the seed of their training, or by their own folders.

    Args:
        folders: verification folders of the same data, norm, tpr, largest radius, side and methods.
        out: folder to write to; made if absent.
        baseline: name of the run that the others are compared with, as it is called in the result;
            by default the one that the folders name, where it is one.
        command: the command line, for the record.

    Raises:
        RunError: a folder is damaged, or two do not fit each other; names the field, both folders
            and both values. Or a certificate that would be left out is contradicted.
        UsageError: fewer than two folders, one given twice, an `out` that holds something else, or
            a baseline that is not there.
    """
    check_target(folders, Path(out))
    parts = [read_part(folder) for folder in folders]
    check_alike(parts)
    shared = shared_keys([part.results for part in parts])
    entries = [
        _Entry(part, run, kept_rows(part.results, run, shared))
        for part in parts
        for run in part.results.runs
    ]
    left_out = _left_out(parts, entries)
    _check_labels(entries)
    entries, same = _once(entries)
    names = merged_names([entry.named for entry in entries])
    entries = [
        _Entry(entry.part, entry.old, entry.rows.renamed(name), name)
        for entry, name in zip(entries, names, strict=True)
    ]
    chosen = _baseline(entries, same, parts, baseline)
    entries.sort(key=lambda entry: entry.name != chosen)  # stable: the others keep their order
    summary = _summary(parts, entries, same, chosen, left_out, command)
    pictures = _pictures(entries)
    _write(Path(out), summary, [entry.rows for entry in entries], pictures)
    return Merged(
        Path(out),
        tuple(entry.name for entry in entries),
        chosen,
        len(entries[0].rows.certificates),
        left_out,
        {
            entry.name: [str(folder) for folder, _ in others]
            for entry in entries
            if (others := same[entry.part.folder, entry.old])
        },
        sum(entry.rows.violations for entry in entries),
    )


def _left_out(parts: Sequence[Part], entries: Sequence[_Entry]) -> dict[str, dict[str, int]]:
    """Samples of each folder that not all have; none of them may be contradicted by an attack."""
    found: dict[str, dict[str, int]] = {}
    for part in parts:
        mine = [entry for entry in entries if entry.part is part]
        broken = sum(entry.rows.violations_left_out for entry in mine)
        if broken:
            raise RunError(
                f"{part.folder}: {broken} certificates of samples that not every folder has are "
                "contradicted by an attack; the proofs of this folder must not be relied on"
            )
        counts: dict[str, int] = {}
        for entry in mine:
            for name, count in entry.rows.left_out.items():
                counts[name] = max(counts.get(name, 0), count)
        if counts:
            found[str(part.folder)] = counts
    return found


def _check_labels(entries: Sequence[_Entry]) -> None:
    """Nothing, if every run gives a sample the same label: they are then the same samples."""
    first = entries[0]
    mine = first.rows.certificates
    for entry in entries[1:]:
        theirs = entry.rows.certificates
        off = mine["label"].to_numpy() != theirs["label"].to_numpy()
        if off.any():
            row = int(off.argmax())
            raise RunError(
                f"{entry.part.folder / CERTIFICATES}: column label: expected "
                f"{mine['label'].iloc[row]} for index {mine['index'].iloc[row]}, as in "
                f"{first.part.folder}, but got {theirs['label'].iloc[row]}"
            )


_Same = dict[tuple[Path, str], list[tuple[Path, str]]]


def _once(entries: list[_Entry]) -> tuple[list[_Entry], _Same]:
    """The runs without those that an earlier folder holds too, and where else each one is.

    Both as the folder and the run's name there: what titles tell apart in one verification, folder
    names may have to in another.
    """
    kept: list[_Entry] = []
    same: _Same = {}
    for entry in entries:
        for other in kept:
            if _is_same(entry, other):
                same[other.part.folder, other.old].append((entry.part.folder, entry.old))
                break
        else:
            kept.append(entry)
            same[entry.part.folder, entry.old] = []
    return kept, same


def _is_same(one: _Entry, other: _Entry) -> bool:
    manifests = one.part.manifest(one.old), other.part.manifest(other.old)
    thresholds = (e.part.results.summary.runs[e.old].threshold for e in (one, other))
    return (
        manifests[0] == manifests[1]
        and len(set(thresholds)) == 1
        and one.rows.equal(other.rows.renamed(one.old))
    )


def _baseline(
    entries: Sequence[_Entry],
    same: _Same,
    parts: Sequence[Part],
    wanted: str | None,
) -> str | None:
    names = [entry.name for entry in entries]
    if wanted is not None:
        if wanted not in names:
            raise UsageError(f"--baseline: expected one of {', '.join(names)}, but got {wanted!r}")
        return wanted
    found = set()
    for part in parts:
        own = part.results.summary.baseline
        if own is None:
            continue
        for entry in entries:
            at = (entry.part.folder, entry.old)
            if (part.folder, own) in (at, *same[at]):
                found.add(entry.name)
    return found.pop() if len(found) == 1 else None


def _summary(
    parts: Sequence[Part],
    entries: Sequence[_Entry],
    same: _Same,
    baseline: str | None,
    left_out: Mapping[str, Mapping[str, int]],
    command: str | None,
) -> dict[str, Any]:
    """`summary.json` of the result."""
    rows = entries[0].rows
    complete = all(part.results.summary.complete for part in parts)
    asked = [wanted for part in parts if (wanted := part.results.summary.wanted) is not None]
    counts = {} if rows.ood is None else rows.ood["dataset"].value_counts(sort=False).to_dict()
    runs = {
        entry.name: recounted(
            entry.part.raw["runs"][entry.old],
            *(entry.rows.certificates, entry.rows.ood, entry.rows.ood_scores),
            whole=not entry.rows.left_out,
        )
        for entry in entries
    }
    first = parts[0].raw
    alike = {k: v for k, v in first.items() if all(p.raw.get(k, ...) == v for p in parts)}
    names = {
        at: entry.name
        for entry in entries
        for own in [(entry.part.folder, entry.old)]
        for at in (own, *same[own])
    }
    return {
        **alike,
        "score": runs[entries[0].name].get("score", first.get("score", "energy")),
        "complete": complete,
        "wanted": len(rows.certificates) if complete else min(asked, default=None),
        "samples": len(rows.certificates),
        "ood_wanted": {str(name): int(count) for name, count in counts.items()},
        "audit": merged_audit(parts),
        "baseline": baseline,
        "runs": runs,
        MERGED: {"folders": [str(part.folder) for part in parts], "left_out": dict(left_out)},
        "provenance": merged_provenance(parts, names, command),
    }


def _pictures(entries: Sequence[_Entry]) -> list[SamplePicture]:
    """The pictures of all runs under their new names, of samples that are kept."""
    found: list[SamplePicture] = []
    for entry in entries:
        kept = {("", int(index)) for index in entry.rows.certificates["index"]}
        if (ood := entry.rows.ood) is not None:
            kept |= set(zip(ood["dataset"].map(str), ood["index"].map(int), strict=True))
        found += [
            replace(picture, run=entry.name)
            for picture in read_pictures(entry.part.folder / PICTURES)
            if picture.run == entry.old and (picture.dataset, picture.index) in kept
        ]
    return found[: most_pictures(found[0].clean.shape)] if found else []


def _write(
    out: Path,
    summary: Mapping[str, Any],
    rows: Sequence[Rows],
    pictures: Sequence[SamplePicture],
) -> None:
    nothing = pd.DataFrame()
    tables = [
        Tables(
            *(
                nothing if table is None else table
                for table in (each.certificates, each.ood, each.ood_scores, each.test_scores)
            )
        )
        for each in rows
    ]
    try:
        out.mkdir(parents=True, exist_ok=True)
        if pictures:
            write_pictures(out / PICTURES, pictures)
        else:
            (out / PICTURES).unlink(missing_ok=True)
        write_folder(out, tables, summary)
    except OSError as error:
        raise UsageError(f"out {out}: cannot be written ({error.strerror or error})") from error
