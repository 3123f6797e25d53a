"""Data: from a `DataConfig` to checked, disjoint, reproducible `DataSplits`.

Names are resolved on first use, so that reading a configuration (`greg_cert.data.schema`) imports
neither torch nor any image library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greg_cert.data.files.threads import prefetch
    from greg_cert.data.load import load_data
    from greg_cert.data.schema import DataConfig, LabelledSource, Source
    from greg_cert.data.tensors import splits_from_tensors
    from greg_cert.data.types import DataSplits, Images, ImageSet

__all__ = [
    "DataConfig",
    "DataSplits",
    "ImageSet",
    "Images",
    "LabelledSource",
    "Source",
    "load_data",
    "prefetch",
    "splits_from_tensors",
]

_HOME = {
    "DataConfig": "schema",
    "DataSplits": "types",
    "ImageSet": "types",
    "Images": "types",
    "LabelledSource": "schema",
    "Source": "schema",
    "load_data": "load",
    "prefetch": "files.threads",
    "splits_from_tensors": "tensors",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
