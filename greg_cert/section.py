"""What every section of a configuration has in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _no_truth(value: object) -> object:
    """YAML reads yes and no as truth values, which Python takes for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


def _moderate(value: float) -> float:
    """Refuse numbers that float32, or their squares in it, cannot hold: nothing is trained so."""
    if value and not _SMALLEST <= abs(value) <= _LARGEST:
        raise ValueError(f"expected a number of {_SMALLEST:g} to {_LARGEST:g} in size")
    return value


_MOST, _SMALLEST, _LARGEST = 2**31 - 1, 1e-15, 1e15
_Whole = Annotated[int, BeforeValidator(_no_truth)]
_Real = Annotated[float, BeforeValidator(_no_truth), AfterValidator(_moderate)]
Count = Annotated[_Whole, Field(gt=0, le=_MOST)]
Natural = Annotated[_Whole, Field(ge=0, le=_MOST)]
Seed = Annotated[_Whole, Field(ge=0, lt=2**63)]
Number = _Real
Positive = Annotated[_Real, Field(gt=0)]
NonNegative = Annotated[_Real, Field(ge=0)]


def _plain_text(value: str) -> str:
    if not value.isprintable():
        raise ValueError("expected text without line breaks and control characters")
    return value


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_plain_text)]
"""What tables call something."""


def _norm_as_text(value: object) -> object:
    """YAML reads a bare 2 as a number and .inf as infinity."""
    return f"{value:g}" if isinstance(value, (int, float)) else value


NormName = Annotated[Literal["2", "inf"], BeforeValidator(_norm_as_text)]
"""A norm of perturbations."""


class Section(BaseModel):
    """A frozen record that refuses unknown keys and numbers that are not finite.

    The docstring below a field is what `greg-cert config schema` says of it.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )
