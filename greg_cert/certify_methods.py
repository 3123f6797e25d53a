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
    "smoothing": PROBABILISTIC,
    "attack": UPPER,
}
"""Every method's status; only a proof feeds `radius_certified`."""

LINEAR = ("crown", "crown-ibp", "alpha-crown", "branch", "sdp-crown")
PROOFS = (*LINEAR, "lipschitz")
METHODS = (*PROOFS, "best", "clever", "smoothing")
_BEST = ("crown", "lipschitz")
L2_ONLY = (
    "expected norm 2 for the method sdp-crown, but got inf: it rests on what an l2 ball cannot do, "
    "move all neurons at once; an linf ball nearly can"
)


def chosen_methods(asked: str | Sequence[str]) -> tuple[str, ...]:
    """The methods in a name, a comma-separated list or a sequence, each once.

    `best` alone stands for crown and lipschitz; beside proofs it is what `radius_certified` is
    anyway, the largest of them, and adds nothing.

    Raises:
        UsageError: for an unknown name, or where all are estimates.
    """
    names = asked.split(",") if isinstance(asked, str) else list(asked)
    names = list(dict.fromkeys(name.strip() for name in names))
    for name in names:
        if name not in METHODS and name not in ("gradient", "attack"):
            raise UsageError(f"expected method in {', '.join(METHODS)}, but got {name!r}")
    if "best" in names and not any(name in PROOFS for name in names):
        names += _BEST
    found = tuple(name for name in STATUS if name in names)
    if not any(STATUS[name] in (PROOF, PROBABILISTIC) for name in found):
        raise UsageError(
            f"expected a method that proves ({', '.join(PROOFS)}, best or smoothing), but got "
            f"{', '.join(map(repr, names)) or 'none'}; an estimate certifies nothing"
        )
    return found


def column_of(method: str) -> str:
    """The column of a method's radius."""
    return "radius_" + method.replace("-", "_")
