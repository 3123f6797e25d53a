"""Where a network comes from: the registry, or a factory of the user's."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from greg_cert.models.names import expected_model_name, is_model_name
from greg_cert.section import Section


def _known(name: str) -> str:
    if not is_model_name(name):
        raise ValueError(expected_model_name(name))
    return name


ModelName = Annotated[str, AfterValidator(_known)]


class Network(Section):
    """What a network of an experiment and one from elsewhere have in common."""

    name: ModelName | None = None
    """Name in the registry, or `torchvision/NAME` of one of its classifiers; its sizes follow from
    the data.
    """
    factory: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")] | None = None
    """`package.module:function` or `package.module:Class` instead of a name: it makes the network,
    called with `arguments`. It is imported and run, so it must be code that you trust.
    """
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of `factory`."""
    normalize: bool = False
    """Whether (x - mean)/std stands before the network of `factory`, which otherwise takes raw
    pixels in [0, 1]; networks of ours have it inside.
    """

    def check_one(self, **others: object) -> None:
        """Refuse several origins of a network, or none, and what goes with another one.

        `others` are origins beside name and factory, by the names of their fields.
        """
        origins = {"name": self.name, "factory": self.factory, **others}
        if len([o for o in origins.values() if o is not None]) != 1:
            raise ValueError(f"expected one of {' or '.join(origins)}, and no other of them")
        if self.factory is None and self.arguments:
            raise ValueError("expected arguments beside factory alone")
        if self.name is not None and self.normalize:
            able = " or ".join(origin for origin in origins if origin != "name")
            raise ValueError(f"expected normalize beside {able}, not beside name")
