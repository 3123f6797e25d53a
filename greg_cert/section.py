"""What every section of a configuration has in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict


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
