"""The data sources that a configuration may name, in the order in which they are listed.

The table is read once, when `greg_cert.config` is imported.
"""

from __future__ import annotations

from greg_cert.data.sources.array import ArraySource
from greg_cert.data.sources.base import DataSource
from greg_cert.data.sources.digits import DigitsSource
from greg_cert.data.sources.faces import FacesSource
from greg_cert.data.sources.folder import FolderSource
from greg_cert.data.sources.noise import GaussianSource, UniformSource
from greg_cert.data.sources.pictures import PhotographsSource, TextSource, TexturesSource
from greg_cert.data.sources.torchvision_sets import TorchvisionSource

SOURCES: list[type[DataSource]] = [
    DigitsSource,
    FacesSource,
    PhotographsSource,
    TexturesSource,
    TextSource,
    UniformSource,
    GaussianSource,
    ArraySource,
    FolderSource,
    TorchvisionSource,
]
