"""Weights from elsewhere: loaded by name, whole, and with a report of what was not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from greg_cert.errors import RunError
from greg_cert.models.aliases import (
    begins_with,
    most_common_prefix,
    own_name,
    renamed,
    shared_prefix,
)
from greg_cert.models.base import Classifier
from greg_cert.runs.state_file import State, read_state
from greg_cert.tensor_file import check_ties

_SHOWN = 4  # names that an error lists of each kind
_PROBLEMS = ("missing", "unexpected", "of another shape", "in the same place")
_MISSING, _UNEXPECTED, _MISFIT, _CLASH = _PROBLEMS


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a checkpoint file and of a model."""

    path: Path
    sha256: str  # of the file, and of the parts that it names where it is an index
    entry: str  # where in the file the tensors stood; empty for the top
    prefix: str  # what every name in the file began with and was taken off, such as `module.`
    loaded: tuple[str, ...]  # the model's tensors that now come from the file
    kept: tuple[str, ...]  # the model's tensors that stayed as they were
    ignored: tuple[str, ...]  # the file's tensors that went nowhere, by their names in the file

    def summary(self) -> str:
        """The report in one line."""
        kept = [n for n in self.kept if not _is_counter(n) and not n.startswith("normalize.")]
        parts = [f"{len(self.loaded)} tensors from {self.path}"]
        if kept:
            parts.append(f"as initialised: {_first(kept)}")
        if self.ignored:
            parts.append(f"ignored: {_first(self.ignored)}")
        if any(name.startswith("normalize.") for name in self.kept):
            parts.append("normalisation follows the data")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for a manifest."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()} | {
            "path": str(self.path),
            "summary": self.summary(),
        }


def load_foreign(
    model: nn.Module,
    path: str | Path,
    *,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    rename: Iterable[tuple[str, str]] = (),
    entry: str | None = None,
) -> LoadReport:
    """What was loaded from a checkpoint file into `model`, which is filled or left untouched.

    Names are taken as they are, or by the model's aliases (`greg_cert.models.aliases`), after the
    wrappers' prefix that all of them share is gone. Two kinds of tensors may be missing without
    leave: BatchNorm's `num_batches_tracked`, and, where the names are another code base's, the
    normalisation, which then follows the data.

    Args:
        model: the model to fill, such as `greg_cert.models.build_model` gives.
        path: a `.safetensors` file or one of `torch.save`; no code in it is ever run.
        allow_missing: names of the model's tensors that stay as they are where the file lacks
            them or has them in another shape: exact, or patterns such as `head.*`.
        allow_unexpected: names in the file (with or without the shared prefix) that are ignored
            where the model has no place for them: exact, or patterns such as `aux1.*`.
        rename: pairs of module paths, in the file and in its place, such as ("projection", "head")
            or ("student", ""), applied first; each must occur.
        entry: where in the file the tensors stand, such as `ema.state_dict`; by default found.

    Returns:
        The model's tensors that were loaded and kept, and the file's that were ignored.

    Raises:
        RunError: for a file that cannot be read safely, names or shapes that do not fit and that
            the arguments above do not allow, two tensors for one place, several values of tied
            tensors, a value that is NaN or infinite, or a rename of nothing.
    """
    path, rename = Path(path), tuple(rename)
    state = read_state(path, entry)
    for old, _ in rename:
        if not any(begins_with(key, old) for key in state.values):
            raise RunError(f"weights.rename: expected a module path in {path}, but got {old!r}")
    own = model.state_dict()
    aliases = model.aliases if isinstance(model, Classifier) else {}
    plan = _match_names(state, own, aliases, rename, allow_unexpected)
    values = _match_values(plan, state, own, allow_missing)
    plan.refuse(path)
    if not any(not name.startswith(("head.", "normalize.")) for name in values):
        raise RunError(f"weights: expected tensors of the model's body in {path}, but got none")
    sick = [n for n, v in values.items() if v.is_floating_point() and not v.isfinite().all()]
    if sick:
        raise RunError(
            f"weights: expected finite values in {path}, but got NaN or infinity in {_first(sick)}"
        )
    check_ties(own, values, path)
    with torch.no_grad():
        for here, value in values.items():
            own[here].copy_(value)
    return LoadReport(
        path,
        _sha256(path, *state.parts),
        state.entry,
        plan.prefix,
        tuple(values),
        tuple(plan.kept),
        tuple(plan.ignored),
    )


def _sha256(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)  # goes on with what it has
    return digest.hexdigest()


@dataclass
class _Plan:
    """Which tensor of the file goes where, and what stands against it."""

    prefix: str
    sources: dict[str, str] = field(default_factory=dict)  # name here to name in the file
    native: bool = False  # whether the file has our own names
    kept: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=lambda: {k: [] for k in _PROBLEMS})

    def refuse(self, path: Path) -> None:
        """An error that lists everything that does not fit, where anything does not."""
        problems = [f"{len(v)} {kind}: {_first(v)}" for kind, v in self.problems.items() if v]
        if not problems:
            return
        missing, misfits = self.problems[_MISSING], self.problems[_MISFIT]
        hint = ""
        if misfits and all(name.startswith("head.") for name in (*missing, *misfits)):
            hint = "; allow_missing 'head.*' begins with a new head"
        if not any(found for kind, found in self.problems.items() if kind != _UNEXPECTED):
            names = self.problems[_UNEXPECTED]
            if len(names) > _SHOWN:
                plain = (name.removeprefix(self.prefix) for name in names)
                names = sorted({f"{name.partition('.')[0]}.*" for name in plain})
            hint = f"; allow_unexpected: [{', '.join(names)}] leaves them out"
        raise RunError(
            f"weights: expected the tensors of the model in {path}, "
            f"but got {'; '.join(problems)}{hint}"
        )


def _match_names(
    state: State,
    own: Mapping[str, Tensor],
    aliases: Mapping[str, str],
    rename: Iterable[tuple[str, str]],
    allow_unexpected: Sequence[str],
) -> _Plan:
    names = {key: renamed(key, rename) for key in state.values}
    # What may be ignored need not share the prefix, such as n_averaged beside module.*.
    wanted = [name for key, name in names.items() if not _matches(key, allow_unexpected)]

    def place(name: str) -> str | None:
        here = name if name in own else own_name(name, aliases)
        return here if here in own else None

    def fits(prefix: str) -> int:
        return sum(place(name.removeprefix(prefix)) is not None for name in wanted)

    prefix = shared_prefix(list(names.values())) or shared_prefix(wanted)
    common = most_common_prefix(wanted)  # with a stray one beside it, such as criterion.weight
    if not prefix and fits(common) > fits(""):
        prefix = common
    plan = _Plan(prefix)
    for key, name in names.items():
        plain = name.removeprefix(plan.prefix)
        here = place(plain)
        if here is None:
            allowed = _matches(key, allow_unexpected) or _matches(plain, allow_unexpected)
            (plan.ignored if allowed else plan.problems[_UNEXPECTED]).append(key)
            continue
        plan.native |= here == plain and here.startswith("body.")
        if here in plan.sources:
            plan.problems[_CLASH].append(f"{here} from {plan.sources[here]} and {key}")
        plan.sources[here] = key
    return plan


def _match_values(
    plan: _Plan, state: State, own: Mapping[str, Tensor], allow_missing: Sequence[str]
) -> dict[str, Tensor]:
    """Name here to new value; what does not fit is noted in the plan."""
    values = {}
    no_normalization = not any(here.startswith("normalize.") for here in plan.sources)
    for here, target in own.items():
        allowed = _matches(here, allow_missing)
        # Of tensors that the model ties some formats keep one.
        twin = (n for n in plan.sources if _is_one(own[n], target))
        source = here if here in plan.sources else next(twin, None)
        if source is None:
            usual = _is_counter(here) or (
                here.startswith("normalize.") and no_normalization and not plan.native
            )
            (plan.kept if usual or allowed else plan.problems[_MISSING]).append(here)
            continue
        key = plan.sources[source]
        if why := _misfit(state.values[key], target):
            if allowed:
                plan.kept.append(here)
                plan.ignored.append(key)
            else:
                plan.problems[_MISFIT].append(f"{here} ({why})")
            continue
        values[here] = state.values[key].detach().to(target.dtype)
    return values


def _is_one(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers in the same memory."""
    return (
        (one.data_ptr(), one.dtype, one.shape, one.stride())
        == (other.data_ptr(), other.dtype, other.shape, other.stride())
        and other.numel() > 0
        and not other.is_meta
    )


def _misfit(value: Any, target: Tensor) -> str:
    """Why `value` cannot be copied to `target`, or nothing."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.shape != target.shape:
        return f"{tuple(value.shape)} for {tuple(target.shape)}"
    if value.is_quantized or value.is_meta or value.layout != torch.strided:
        return "not an ordinary dense tensor"
    if value.is_complex() or value.is_floating_point() != target.is_floating_point():
        return f"{value.dtype} for {target.dtype}"
    return ""


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
