"""What `certify` is asked for beside the model and the samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pkgutil import resolve_name
from typing import Any

from greg_cert.certificates.methods import TABLE, chosen_methods
from greg_cert.errors import UsageError
from greg_cert.scores import SCORES
from greg_cert.verify.methods.method import Method, at_least, check_least
from greg_cert.verify.norms import check_norm, check_radius

OF_A_CALL = ("labels", "indices", "progress")
"""Options of `certify` that belong to its samples."""

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in all)."""


@dataclass(frozen=True)
class CertifyOptions:
    """What `certify` is asked for; `read_options` makes it from the names of users.

    Attributes:
        methods: names of those asked for.
        settings: of every method, by its name.
        side: `id` or `ood`.
        norm: 2 or inf.
        max_radius: radii are capped here.
        engine: `auto`, `native` or `auto-lirpa`.
        score: the OOD score that γ is about: energy, max_logit, max_softmax or absent_class.
        lipschitz: compute the Lipschitz columns.
        attack: compute the attack column.
        attack_steps: gradient steps of one PGD run.
        attack_restarts: random restarts of the attack.
        attack_polish: steps along the boundary at its end.
        batch: samples bounded at once.
        memory: budget in GiB of what a batch takes; chunks are made to fit. About 1 GiB where it
            is not given.
        seed: of the attack; CLEVER and smoothing have their own, in their options.
    """

    methods: tuple[str, ...]
    settings: Mapping[str, Method]
    side: str = "id"
    norm: float = 2.0
    max_radius: float = 1.0
    engine: str = "auto"
    score: str = "energy"
    lipschitz: bool = True
    attack: bool = True
    attack_steps: int = at_least(1, 30)
    attack_restarts: int = at_least(1, 2)
    attack_polish: int = at_least(0, 20)
    batch: int = at_least(1, 128)
    memory: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_least(self)
        check_norm(self.norm)
        check_radius("max_radius", self.max_radius)
        if self.score not in SCORES:
            raise UsageError(f"expected score in {', '.join(SCORES)}, but got {self.score!r}")
        if self.memory is not None and not (self.memory > 0 and math.isfinite(self.memory)):
            raise UsageError(f"expected memory > 0 GiB and finite, but got {self.memory}")

    @property
    def memory_bytes(self) -> int | None:
        """The budget in bytes."""
        return None if self.memory is None else max(1, int(self.memory * 2**30))


def read_options(method: str | Sequence[str], **given: Any) -> CertifyOptions:
    """Options by name: fields of `CertifyOptions`, and those of the methods.

    An option of a method that is not asked for is looked at and has no effect.

    Args:
        method: names, as of `certify`.
        **given: options.

    Raises:
        UsageError: for an unknown name, or a value out of range.
    """
    own = {f.name for f in fields(CertifyOptions)} - {"methods", "settings"}
    names = chosen_methods(method)
    of_methods: set[str] = set()
    made: dict[str, Method] = {}
    for line in TABLE:
        if line.code:
            kind = resolve_name(line.code)
            settings = {f.name for f in fields(kind) if f.init}
            of_methods |= settings
            made[line.name] = kind(**{k: v for k, v in given.items() if k in settings})
    for name in given:
        if name not in own | of_methods:
            known = ", ".join(sorted(own | of_methods | {*OF_A_CALL}))
            raise UsageError(f"expected options in {known}, but got {name!r}")
    methods = tuple(name for name in names if name in made)
    return CertifyOptions(methods, made, **{k: v for k, v in given.items() if k in own})
