"""What a reader must know before any number: what is unfinished, broken, or not the usual case."""

from __future__ import annotations

from collections.abc import Mapping

from greg_cert.certificates.results import Results
from greg_cert.report import wording
from greg_cert.report.tables.ood_rows import contradicted


def beside_every_table(results: Results) -> list[str]:
    """The warning, if there is one, and the notes: what must stand beside numbers anywhere."""
    alarm = warning(results)
    return [*([alarm] if alarm else []), *notes_of(results)]


def notes_of(results: Results) -> list[str]:
    """What is unfinished or not the usual case; empty for a finished verification of the energy."""
    notes = []
    summary = results.summary
    if not summary.complete:
        notes.append(_unfinished(results))
    if results.whole is not None and len(results.whole.runs) > len(results.runs):
        notes.append(_part_words(results, results.whole))
    if summary.correct:
        population = wording.population(summary)
        notes.append(
            f"Of {population}, certified means {wording.right_side(summary)} everywhere within the "
            "radius; one that is misclassified clean counts as on the wrong side."
        )
    scores = wording.score_names(summary)
    if summary.several_scores:
        notes.append(
            f"The runs have different scores ({scores}); radii are compared, each that of its own "
            "score and threshold."
        )
    elif scores != "energy":
        notes.append(
            f"The score is the {scores}, not the energy; every number "
            "of this report is about that score."
        )
    if summary.merged is not None and summary.merged.left_out:
        notes.append(left_out_words(summary.merged.left_out))
    return notes


def _part_words(results: Results, whole: Results) -> str:
    """How many runs are shown, and that the baseline is not where it is not."""
    words = f"Shown are {len(results.runs)} of the {len(whole.runs)} runs that were verified"
    if whole.summary.baseline is not None and results.summary.baseline is None:
        words += f", without the baseline {wording.one_line(whole.summary.baseline)}"
    return words + "."


def left_out_words(left_out: Mapping[str, Mapping[str, int]]) -> str:
    """Which samples of the verifications that were put together are not among those shown."""
    parts = []
    for folder, counts in left_out.items():
        words = [
            f"{count} {'ID test samples' if name == 'id' else 'of ' + name.removeprefix('ood/')}"
            for name, count in counts.items()
        ]
        parts.append(f"{wording.one_line(folder)} {', '.join(words)}")
    return (
        "Runs are paired by sample: those that not every verification has are left out ("
        f"{'; '.join(parts)})."
    )


def warning(results: Results) -> str | None:
    """The sentence that takes the proofs back, where an attack contradicts any of them."""
    broken = "; ".join(contradictions(results))
    taken_back = "so the proofs in this report must not be relied on."
    return f"Warning: attacks contradict proofs ({broken}), {taken_back}" if broken else None


def contradictions(results: Results) -> list[str]:
    """Where attacks contradict proofs, each with its count; empty where all held."""
    results = results.whole or results  # a run that is not shown takes back the proofs of all
    names = wording.quoted_names(results.runs)
    found = []
    for run, name in names.items():
        rows = results.of(run)
        if count := int(rows["violation"].sum()):
            found.append(f"{name}: {count} of {len(rows)}")
        for dataset in results.ood_sets(run):
            ood, scores = results.ood_of(run, dataset), results.ood_scores_of(run, dataset)
            where = f"{name} on {wording.one_line(dataset)}"
            if ood is not None and (count := int(ood["violation"].sum())):
                found.append(f"{where}: {count} of {len(ood)}")
            if scores is not None and (count := contradicted(scores)):
                found.append(f"{where}: {count} of {len(scores)} score bounds")
        if (audit := results.summary.runs[run].audit) is not None and audit.violations:
            found.append(f"audit of {name}: {audit.violations}")
    if (audit := results.summary.audit) is not None and audit.violations:
        found.append(f"audit: {audit.violations}")
    return found


def _unfinished(results: Results) -> str:
    summary, names = results.summary, wording.quoted_names(results.runs)
    counts = [run.samples for run in summary.runs.values()]
    done = ", ".join(f"{name} {n}" for name, n in zip(names.values(), counts, strict=True))
    done = str(counts[0]) if len({*counts}) == 1 else done
    of = "an unknown number of" if summary.wanted is None else str(summary.wanted)
    part = ", a random part of them" if summary.order == "random" else ""
    return (
        f"Unfinished: {done} of {of} samples are verified so far{part}; the {results.samples} that "
        "every run has are shown, and any number may still change."
    )
