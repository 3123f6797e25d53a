"""The methods of `certify`, and what each of their numbers is worth."""

from __future__ import annotations

from collections.abc import Sequence

from greg_cert.errors import UsageError

PROOF, PROBABILISTIC, ESTIMATE, UPPER = (
    "proof",
    "probabilistic proof",
    "estimate",
    "upper bound",
)

STATUS = {
    "gradient": ESTIMATE,
    "clever": ESTIMATE,
    "lipschitz": PROOF,
    "crown": PROOF,
    "crown-ibp": PROOF,
    "alpha-crown": PROOF,
    "branch": PROOF,
    "sdp-crown": PROOF,
    "best": PROOF,
    "smoothing": PROBABILISTIC,
    "attack": UPPER,
}
"""Every method's status; only a proof feeds `radius_certified`."""

LINEAR = ("crown", "crown-ibp", "alpha-crown", "branch", "sdp-crown")
PROOFS = (*LINEAR, "lipschitz", "best")
METHODS = (*PROOFS, "clever", "smoothing")
NO_METHOD = "none"
"""What is said of a radius of 0: no method gave it."""

RADIUS_METHOD, STOPPED_BY = "radius_method", "stopped_by"
"""Columns of the method `best`: which method gave the certified radius, and what stopped it."""

STOPS = ("share", "max_radius", "budget", "seconds", "exhausted", "rejected")
"""What may have stopped a sample: a radius near enough to the attack's, or as large as is looked
for; its budget or its seconds; nothing left to try; a clean sample that is on the wrong side."""
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
