"""Several verifications as one, paired by sample, so that any runs can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from greg_cert.certificates.columns import refused
from greg_cert.certificates.folder import write_folder
from greg_cert.certificates.format import CERTIFICATES, PICTURES
from greg_cert.certificates.merge.check import MERGED, check_alike, check_target
from greg_cert.certificates.merge.counts import recounted
from greg_cert.certificates.merge.names import Named, merged_names
from greg_cert.certificates.merge.record import in_common, merged_audit, merged_provenance
from greg_cert.certificates.merge.rows import (
    Rows,
    kept_rows,
    renamed,
    same_rows,
    shared_keys,
    violations,
)
from greg_cert.certificates.picture_file import (
    SamplePicture,
    most_pictures,
    read_pictures,
    write_pictures,
)
from greg_cert.certificates.results import Results, load_results
from greg_cert.errors import RunError, UsageError


@dataclass(frozen=True)
class Merged:
    """What was put together.

    `same`: runs that several folders hold, kept once, and the folders they were not taken from.
    """

    folder: Path
    runs: tuple[str, ...]  # the baseline first
    baseline: str | None
    samples: int  # ID samples that every run has
    left_out: dict[str, dict[str, int]]  # by folder and set, samples that not all have, if any
    same: dict[str, list[str]]
    violations: int  # certificates that an attack contradicts


@dataclass(frozen=True)
class _Entry:
    """One run of the result: where it comes from, its names there and here, and its rows."""

    part: Results
    old: str
    rows: Rows
    name: str = ""

    @property
    def key(self) -> _Key:
        """Its folder, and what it is called there."""
        return self.part.folder, self.old

    @property
    def named(self) -> Named:
        seed = self.part.manifest(self.old).get("seed")
        folder = self.part.summary.provenance.folders.get(self.old)
        return Named(
            *self.key,
            seed if isinstance(seed, int) else None,
            None if folder is None else Path(folder),
        )


_Key = tuple[Path, str]
_Same = dict[_Key, list[_Key]]


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
    parts = [load_results(folder) for folder in folders]
    check_alike(parts)
    shared = shared_keys(parts)
    entries = [
        _Entry(part, run, kept_rows(part, run, shared)) for part in parts for run in part.runs
    ]
    left_out = _left_out(parts, entries)
    _check_labels(entries)
    entries, same = _once(entries)
    names = merged_names([entry.named for entry in entries])
    entries = [
        replace(entry, name=name, rows=replace(entry.rows, tables=renamed(entry.rows.tables, name)))
        for entry, name in zip(entries, names, strict=True)
    ]
    chosen = _baseline(entries, same, parts, baseline)
    entries.sort(key=lambda entry: entry.name != chosen)  # stable: the others keep their order
    summary = _summary(parts, entries, same, chosen, left_out, command)
    _write(Path(out), summary, entries)
    return Merged(
        Path(out),
        tuple(entry.name for entry in entries),
        chosen,
        len(entries[0].rows.tables.certificates),
        left_out,
        {e.name: [str(folder) for folder, _ in same[e.key]] for e in entries if same[e.key]},
        sum(violations(*entry.rows.tables[:2]) for entry in entries),
    )


def _left_out(parts: Sequence[Results], entries: Sequence[_Entry]) -> dict[str, dict[str, int]]:
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
    mine = first.rows.tables.certificates
    for entry in entries[1:]:
        theirs = entry.rows.tables.certificates
        off = mine["label"].to_numpy() != theirs["label"].to_numpy()
        if off.any():
            row = int(off.argmax())
            raise refused(
                entry.part.folder / CERTIFICATES,
                "label",
                f"{mine['label'].iloc[row]} for index {mine['index'].iloc[row]}, as in "
                f"{first.part.folder}",
                theirs["label"].iloc[row],
            )


def _once(entries: Sequence[_Entry]) -> tuple[list[_Entry], _Same]:
    """The runs without those that an earlier folder holds too, and where else each one is.

    Both as the folder and the run's name there: what titles tell apart in one verification, folder
    names may have to in another.
    """
    kept: list[_Entry] = []
    same: _Same = {}
    for entry in entries:
        twin = next((other for other in kept if _is_same(entry, other)), None)
        if twin is None:
            kept.append(entry)
            same[entry.key] = []
        else:
            same[twin.key].append(entry.key)
    return kept, same


def _is_same(one: _Entry, other: _Entry) -> bool:
    thresholds = {e.part.summary.runs[e.old].threshold for e in (one, other)}
    return (
        one.part.manifest(one.old) == other.part.manifest(other.old)
        and len(thresholds) == 1
        and same_rows(one.rows.tables, renamed(other.rows.tables, one.old))
    )


def _baseline(
    entries: Sequence[_Entry], same: _Same, parts: Sequence[Results], wanted: str | None
) -> str | None:
    names = [entry.name for entry in entries]
    if wanted is not None:
        if wanted not in names:
            raise UsageError(f"--baseline: expected one of {', '.join(names)}, but got {wanted!r}")
        return wanted
    told = {(part.folder, part.summary.baseline) for part in parts}
    found = {e.name for e in entries if not told.isdisjoint([e.key, *same[e.key]])}
    return found.pop() if len(found) == 1 else None


def _summary(
    parts: Sequence[Results],
    entries: Sequence[_Entry],
    same: _Same,
    baseline: str | None,
    left_out: Mapping[str, Mapping[str, int]],
    command: str | None,
) -> dict[str, Any]:
    """`summary.json` of the result."""
    rows = entries[0].rows.tables
    complete = all(part.summary.complete for part in parts)
    asked = [wanted for part in parts if (wanted := part.summary.wanted) is not None]
    counts = rows.ood["dataset"].value_counts(sort=False).to_dict() if len(rows.ood) else {}
    runs = {
        entry.name: recounted(
            entry.part.document["runs"][entry.old],
            entry.rows.tables,
            whole=not entry.rows.left_out,
        )
        for entry in entries
    }
    names = {at: entry.name for entry in entries for at in (entry.key, *same[entry.key])}
    return {
        **in_common([part.document for part in parts]),
        "score": runs[entries[0].name].get("score", parts[0].document.get("score", "energy")),
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
        certificates, ood, *_ = entry.rows.tables
        kept = {("", int(index)) for index in certificates["index"]}
        if len(ood):
            kept |= set(zip(ood["dataset"].map(str), ood["index"].map(int), strict=True))
        found += [
            replace(picture, run=entry.name)
            for picture in read_pictures(entry.part.folder / PICTURES)
            if picture.run == entry.old and (picture.dataset, picture.index) in kept
        ]
    return found[: most_pictures(found[0].clean.shape)] if found else []


def _write(out: Path, summary: Mapping[str, Any], entries: Sequence[_Entry]) -> None:
    pictures = _pictures(entries)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if pictures:
            write_pictures(out / PICTURES, pictures)
        else:
            (out / PICTURES).unlink(missing_ok=True)
        write_folder(out, [entry.rows.tables for entry in entries], summary)
    except OSError as error:
        raise UsageError(f"out {out}: cannot be written ({error.strerror or error})") from error
