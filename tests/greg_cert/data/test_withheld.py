"""Data without their test sets: these stay unread where they can, and the rest is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from greg_cert.data import DataConfig, DataSplits, Images, ImageSet, load_data
from greg_cert.data.withheld import WITHHELD, Withheld, hold_out
from greg_cert.errors import DataError

NOWHERE = {
    "id_test": {"source": "array", "path": "/nowhere/test.npz"},
    "ood": [{"source": "folder", "path": "/nowhere/ood"}],
}


def load(tests: bool = False, **parts: Any) -> DataSplits:
    config = {"id": {"source": "digits"}, "aux": {"source": "photographs", "n": 50}, **parts}
    return load_data(DataConfig.model_validate(config), tests=tests)


def same(one: Images | None, other: Images | None) -> bool:
    assert one is not None
    assert other is not None
    return one.fingerprint() == other.fingerprint()


def test_what_is_handed_out_is_what_it_is_with_the_tests() -> None:
    whole, splits = load(tests=True, ood=[{"source": "uniform", "n": 5}]), load()
    for name in ("train", "calibration", "aux"):
        assert same(getattr(whole, name), getattr(splits, name))
    assert (whole.mean, whole.std) == (splits.mean, splits.std)
    assert splits.ood == {}
    assert set(splits.indices) == {"train", "calibration"}
    assert splits.fingerprints()["test"] == WITHHELD


def test_sets_for_tests_alone_are_not_read() -> None:
    splits = load(**NOWHERE)
    assert isinstance(splits.test, Withheld)
    assert len(splits.train) + len(splits.calibration) == 1797  # none is cut for a test split
    with pytest.raises(DataError, match="nowhere"):
        load(tests=True, **NOWHERE)


@pytest.mark.parametrize("name", NOWHERE)
def test_they_are_read_where_other_sets_drop_what_they_hold(name: str) -> None:
    with pytest.raises(DataError, match="nowhere"):
        load(shared="drop", **{name: NOWHERE[name]})


def test_what_is_dropped_is_dropped_without_them_too(tmp_path: Path) -> None:
    aux = load().aux
    assert aux is not None
    np.save(tmp_path / "ood.npy", aux.stored()[:7].numpy())
    ood = [{"source": "array", "path": tmp_path / "ood.npy", "layout": "nchw"}]
    whole, splits = (load(tests=t, shared="drop", ood=ood) for t in (True, False))
    assert same(whole.aux, splits.aux)
    assert splits.aux is not None
    assert len(splits.aux) == 43
    assert splits.ood == {}


@pytest.mark.parametrize("use", ["pixels", "stored", "subset", "labels"])
def test_whoever_reads_a_withheld_set_is_refused(use: str) -> None:
    with pytest.raises(DataError, match="test: expected no use of test data"):
        getattr(Withheld("test", None, (1, 8, 8)), use)([0])


def made(count: int) -> ImageSet:
    grey = torch.arange(count, dtype=torch.uint8)
    return ImageSet("made", grey[:, None, None, None].expand(-1, 1, 2, 2).contiguous())


def test_held_out_images_are_the_others_drawn_by_the_seed() -> None:
    for share, most, count in ((0.1, 99, 5), (0.5, 7, 7)):
        kept, aside = hold_out(made(50), share, most=most, seed=3)
        values = [part.stored()[:, 0, 0, 0].tolist() for part in (kept, aside)]
        assert len(values[1]) == count
        assert sorted(values[0] + values[1]) == list(range(50))
        again = hold_out(made(50), share, most=most, seed=3)[1]
        assert same(aside, again)
        assert not same(aside, hold_out(made(50), share, most=most, seed=4)[1])


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_a_share_that_leaves_a_side_empty_is_refused(share: float) -> None:
    with pytest.raises(DataError, match=r"held-out: expected a share.* of the 50 of made"):
        hold_out(made(50), share, most=50, seed=0)
