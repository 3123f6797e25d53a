"""Options of a command on top of what a configuration says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greg_cert.config import VerifyConfig


def verify_settings(configured: VerifyConfig, **given: Any) -> VerifyConfig:
    """The settings with what the user gave on top, validated again.

    Args:
        configured: the run's own.
        **given: options by field name; None where an option was not given, and 0 for all samples
            or for a budget without end.

    Raises:
        UsageError: for a value out of range; names the option.
    """
    from pydantic import ValidationError

    from greg_cert.config import VerifyConfig
    from greg_cert.errors import UsageError

    values = configured.model_dump()
    values.update({k: v for k, v in given.items() if v is not None})
    if given.get("budget") is not None and given.get("seconds_per_sample") is not None:
        raise UsageError("expected --budget or --seconds-per-sample, but got both")
    if given.get("budget") is not None:
        values["seconds_per_sample"] = None
    for name in ("samples", "ood_samples", "budget"):
        if given.get(name) == 0:
            values[name] = None
    try:
        return VerifyConfig.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        message = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:  # about several fields; the message names them
            raise UsageError(message) from error
        option = "--" + str(problem["loc"][0]).replace("_", "-")
        found = "" if "but got" in message else f", but got {problem['input']!r}"
        raise UsageError(f"{option}: {message}{found}") from error
