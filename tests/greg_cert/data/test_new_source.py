"""The data source of docs/extending.md: one class, and a line in the table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from page_code import blocks

(STRIPES,) = (b["code"] for b in blocks("extending.md") if b["file"] and "stripes" in b["file"])

USE = """
import json
import sys

from greg_cert.data.sources.table import SOURCES
from stripes import StripesSource

SOURCES.append(StripesSource)  # the line in the table

from greg_cert.config import ExperimentConfig, parse_config
from greg_cert.config.describe import keys_of
from greg_cert.errors import ConfigError

experiment = {
    "data": {
        "id": {"source": "stripes", "limit": 60},
        "ood": [{"source": "stripes", "seed": 1, "width": 4, "name": "wide"}],
    },
    "model": {"name": "mlp"},
    "train": {"stages": [{"method": "ce", "epochs": 1, "lr": 0.1}]},
}
HEAVY = {"torch", "torchvision", "sklearn", "skimage", "PIL", "numpy"}
configuration = parse_config(experiment)
heavy = [sorted(HEAVY & sys.modules.keys())]
from greg_cert.data import load_data

splits = load_data(configuration.data)
heavy.append(sorted(HEAVY & sys.modules.keys()))
said = []
for key, value in (("id", {"source": "stripe"}), ("id", {"source": "stripes", "widht": 3})):
    try:
        parse_config(experiment | {"data": {key: value}})
    except ConfigError as error:
        said.append(str(error))
print(json.dumps({
    "sizes": [len(splits.train), len(splits.calibration), len(splits.test)],
    "classes": splits.num_classes,
    "wide": [len(splits.ood["wide"]), splits.ood["wide"].labels],
    "said": said,
    "heavy": heavy,
    "meaning": [k.meaning for k in keys_of(ExperimentConfig, "data.id.width")],
}))
"""


def test_a_source_in_a_file_of_its_own_is_configured_loaded_and_told_of(tmp_path: Path) -> None:
    (tmp_path / "stripes.py").write_text(STRIPES)
    (tmp_path / "use.py").write_text(USE)
    done = subprocess.run(
        [sys.executable, "use.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert sum(found["sizes"]) == 60
    assert found["classes"] == 2
    assert found["wide"] == [80, None]
    assert found["meaning"] == ["Of stripes: Of a stripe, in pixels."]
    assert found["heavy"] == [[], ["numpy", "torch"]]  # no library before it is needed
    kind, key = found["said"]
    assert kind.startswith("data.id: ")
    assert "'stripes'" in kind
    assert key == "data.id.widht: unknown key; did you mean 'width'?"
