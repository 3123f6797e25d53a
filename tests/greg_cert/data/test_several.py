"""Auxiliary outliers of several sources, taken together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from greg_cert.config import dump_config, parse_config
from greg_cert.config.places import without_places
from greg_cert.config.yaml_text import load_yaml
from greg_cert.data import DataSplits, load_data
from greg_cert.errors import ConfigError, DataError
from greg_cert.train import fit

PHOTOGRAPHS = {"source": "photographs", "n": 120}
FACES = {"source": "faces", "limit": 80}


def raw(*aux: dict[str, Any], **data: Any) -> dict[str, Any]:
    stages = [{"method": "ce", "epochs": 4, "lr": 0.1, "batch_size": 20}]
    stages += [{"method": "greg+", "epochs": 1, "lr": 0.01, "batch_size": 20}]
    return {
        "data": {"id": {"source": "digits", "limit": 300}, "aux": list(aux), **data},
        "model": {"name": "mlp"},
        "train": {"stages": stages},
    }


def loaded(*aux: dict[str, Any], **data: Any) -> DataSplits:
    return load_data(parse_config(raw(*aux, **data)).data)


def alone(aux: dict[str, Any]) -> torch.Tensor:
    splits = load_data(parse_config(raw() | {"data": raw()["data"] | {"aux": aux}}).data)
    assert splits.aux is not None
    return splits.aux.pixels()


def test_they_are_one_set_of_the_images_of_each_in_their_order() -> None:
    both = loaded(PHOTOGRAPHS, FACES).aux
    assert both is not None
    assert (len(both), both.name, both.labels) == (200, "photographs, faces", None)
    torch.testing.assert_close(both.pixels(), torch.cat([alone(PHOTOGRAPHS), alone(FACES)]))
    single = loaded(FACES).aux
    assert single is not None
    assert single.name == "faces"


def test_grey_levels_and_fractions_go_together(tmp_path: Path) -> None:
    fractions = np.random.default_rng(0).random((60, 8, 8), dtype=np.float32)
    np.save(tmp_path / "a.npy", fractions)
    both = loaded(PHOTOGRAPHS, {"source": "array", "path": str(tmp_path / "a.npy")}).aux
    assert both is not None
    expected = torch.cat([alone(PHOTOGRAPHS), torch.from_numpy(fractions).unsqueeze(1)])
    torch.testing.assert_close(both.stored(), expected)


def test_an_experiment_trains_with_them_and_is_read_again(tmp_path: Path) -> None:
    config = parse_config(raw(PHOTOGRAPHS, FACES))
    assert parse_config(load_yaml(dump_config(config))) == config
    run = fit(config, load_data(config.data), tmp_path / "run")
    assert run.config == config
    assert run.manifest["split_sizes"]["aux"] == 200


def test_their_places_are_left_out_of_what_an_experiment_is() -> None:
    one, other = (
        parse_config(raw(PHOTOGRAPHS, {"source": "array", "path": f"{place}.npy"}))
        for place in ("here", "there")
    )
    assert one != other
    assert without_places(one.model_dump(mode="json"), one) == without_places(
        other.model_dump(mode="json"), other
    )


@pytest.mark.parametrize(
    ("aux", "said"),
    [
        ([], r"^data\.aux: .*at least 1 item"),
        ([PHOTOGRAPHS, FACES | {"limt": 3}], r"^data\.aux\[1\]\.limt: unknown key; .*'limit'"),
        ([FACES | {"group": "far"}], r"group on OOD test sets alone, but aux\[0\] has one$"),
        ([PHOTOGRAPHS, {"source": "facs"}], r"^data\.aux\[1\]: .*'facs'"),
    ],
)
def test_what_is_no_list_of_sources_is_refused_by_place(aux: list[Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config(raw(*aux))


def test_none_of_them_may_share_with_other_sets(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.aux\[1\]: .*shares nothing with data\.id"):
        loaded(PHOTOGRAPHS, {"source": "digits"})
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8), dtype=np.uint8)
    for name in ("aux", "ood"):
        np.save(tmp_path / f"{name}.npy", images)
    aux, ood = ({"source": "array", "path": str(tmp_path / f"{n}.npy")} for n in ("aux", "ood"))
    with pytest.raises(DataError, match=r"^data\.aux\[1\]: .*data\.ood\[0\], but got 50 of 50"):
        loaded(PHOTOGRAPHS, aux, ood=[ood])
    np.save(tmp_path / "aux.npy", np.concatenate([images, 255 - images]))
    dropped = loaded(PHOTOGRAPHS, aux, ood=[ood], shared="drop").aux
    assert dropped is not None
    assert len(dropped) == 120 + 50


def test_one_that_stays_on_disk_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((50, 8, 8), dtype=np.uint8))
    source = {"source": "array", "path": str(tmp_path / "a.npy"), "keep": "disk"}
    with pytest.raises(DataError, match=r"^data\.aux\[0\]: .*in memory.* Set keep: memory"):
        loaded(source, PHOTOGRAPHS, image_size=8, channels=1)
