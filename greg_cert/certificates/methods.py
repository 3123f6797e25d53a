"""The methods of `certify`, and what each of their numbers is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from greg_cert.certificates.format import REJECTED
from greg_cert.errors import UsageError

PROOF, PROBABILISTIC, ESTIMATE, UPPER = (
    "proof",
    "probabilistic proof",
    "estimate",
    "upper bound",
)


@dataclass(frozen=True)
class Method:
    """One way to radii.

    Attributes:
        name: as users write it.
        title: in tables.
        status: what its numbers are worth; only a proof feeds `radius_certified`.
        code: `module:class` of its settings; empty where it is always computed.
    """

    name: str
    title: str
    status: str
    code: str = ""

    @property
    def column(self) -> str:
        """Of its radii."""
        return column_of(self.name)


_CODE = "greg_cert.verify.methods."
TABLE = (
    Method("crown", "CROWN", PROOF, _CODE + "linear:Crown"),
    Method("crown-ibp", "CROWN-IBP", PROOF, _CODE + "linear:CrownIbp"),
    Method("alpha-crown", "\u03b1-CROWN", PROOF, _CODE + "linear:AlphaCrown"),
    Method("branch", "Branched", PROOF, _CODE + "linear:Branch"),
    Method("sdp-crown", "SDP-CROWN", PROOF, _CODE + "sdp_crown:SdpCrown"),
    Method("lipschitz", "Lipschitz", PROOF, _CODE + "lipschitz:Lipschitz"),
    Method("best", "Best", PROOF, _CODE + "best:Best"),
    Method("clever", "CLEVER", ESTIMATE, _CODE + "clever:Clever"),
    Method("smoothing", "Smoothing", PROBABILISTIC, _CODE + "smoothing:Smoothing"),
    Method("gradient", "First-order", ESTIMATE),
    Method("attack", "Attack", UPPER),
)
"""All methods; what a table, the command line and a report say of one follows from its line."""

STATUS = {m.name: m.status for m in TABLE}
PROOFS = tuple(m.name for m in TABLE if m.status == PROOF)
METHODS = tuple(m.name for m in TABLE if m.code)
NO_METHOD = "none"
"""What is said of a radius of 0: no method gave it."""

RADIUS_METHOD, STOPPED_BY = "radius_method", "stopped_by"
"""Columns of the method `best`: which method gave the certified radius, and what stopped it."""

STOPS = ("share", "max_radius", "budget", "seconds", "exhausted", REJECTED)
"""What may have stopped a sample: a radius near enough to the attack's, or as large as is looked
for; its budget or its seconds; nothing left to try; a clean sample that is on the wrong side."""
DECISIONS = ("accepted", "rejected", "abstained")
"""Of the smoothed detector."""

L2_ONLY = (
    "expected norm 2 for the method sdp-crown, but got inf: it rests on what an l2 ball cannot do, "
    "move all neurons at once; an linf ball nearly can"
)


def chosen_methods(asked: str | Sequence[str]) -> tuple[str, ...]:
    """The methods in a name, a comma-separated list or a sequence, each once.

    Raises:
        UsageError: for an unknown name, or where all are estimates.
    """
    names = asked.split(",") if isinstance(asked, str) else list(asked)
    names = list(dict.fromkeys(name.strip() for name in names))
    for name in names:
        if name not in METHODS and name not in ("gradient", "attack"):
            raise UsageError(f"expected method in {', '.join(METHODS)}, but got {name!r}")
    found = tuple(name for name in STATUS if name in names)
    if not any(STATUS[name] in (PROOF, PROBABILISTIC) for name in found):
        raise UsageError(
            f"expected a method that proves ({', '.join(PROOFS)} or smoothing), but got "
            f"{', '.join(map(repr, names)) or 'none'}; an estimate certifies nothing"
        )
    return found


def column_of(method: str) -> str:
    """The column of a method's radius."""
    return "radius_" + method.replace("-", "_")
