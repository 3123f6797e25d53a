"""Data: from a `DataConfig` to checked, disjoint, reproducible `DataSplits`.

Names are resolved on first use, so that reading a configuration (`greg_cert.data.schema`) imports
neither torch nor any image library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

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

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "files.threads": ["prefetch"],
        "load": ["load_data"],
        "schema": ["DataConfig", "LabelledSource", "Source"],
        "tensors": ["splits_from_tensors"],
        "types": ["DataSplits", "ImageSet", "Images"],
    },
)
