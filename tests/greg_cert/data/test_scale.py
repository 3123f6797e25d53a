"""What stands for white in an array: settled, told where it is doubtful, the same on disk."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from greg_cert.cli import main
from greg_cert.data import DataConfig, load_data
from greg_cert.data.sources.array import ArraySource
from greg_cert.data.sources.base import Request
from greg_cert.data.tensors import splits_from_tensors
from greg_cert.errors import DataError, DataWarning

RNG = np.random.default_rng(0)
BITS = RNG.integers(0, 2, (40, 8, 8), dtype=np.uint8)


def read(path: Path, stored: Any, **options: Any) -> Any:
    np.save(path, stored)
    source = ArraySource.model_validate({"path": path, **options})
    return source.load(Request("data.aux", "aux"))


@pytest.mark.parametrize("keep", ["memory", "disk"])
@pytest.mark.parametrize(
    ("dtype", "white"),
    [
        (np.uint8, 1),
        (np.uint8, 16),
        (np.uint8, 255),
        (np.uint16, 65535),
        (np.uint16, 4095),
        (np.int64, 255),
        (np.int32, 1),
        (np.float32, 255),
        (np.float64, 0.5),
    ],
)
def test_values_are_divided_by_what_stands_for_white(
    tmp_path: Path, keep: str, dtype: Any, white: float
) -> None:
    shares = RNG.integers(0, 18, (20, 1, 6, 6)) / 17
    shares[0, 0, 0, :2] = 0, 1
    stored = (shares * white).astype(dtype)
    found = read(tmp_path / "a.npy", stored, scale=white, keep=keep)
    expected = torch.from_numpy((stored.astype(np.float64) / white).astype(np.float32))
    assert torch.equal(found.pixels(), expected)
    assert torch.equal(found.subset([3, 4]).pixels(), expected[3:5])
    if (dtype, white) in {(np.uint8, 255), (np.uint16, 65535)}:
        return  # the type holds nothing above it
    stored[7, 0, 2, 3] = white + 1
    with pytest.raises(DataError, match=r"^data\.aux\.images: expected finite values in \[0, "):
        read(tmp_path / "a.npy", stored, scale=white, keep=keep).stored()


def test_bits_are_kept_as_grey_levels(tmp_path: Path) -> None:
    for stored in (BITS, BITS.astype(bool)):
        found = read(tmp_path / "a.npy", stored, scale=1)
        assert found.images.dtype == torch.uint8
        assert np.array_equal(found.images[:, 0].numpy(), BITS * 255)
    with pytest.raises(DataError, match=r"dtype bool\. Set scale .* such as 1 or 65535"):
        read(tmp_path / "a.npy", BITS.astype(bool))
    with pytest.raises(DataError, match="in image 0"):
        read(tmp_path / "a.npy", -BITS.astype(np.int8), scale=1)
    with pytest.raises(DataError, match="real numbers, but got dtype complex64"):
        read(tmp_path / "a.npy", BITS.astype(np.complex64), scale=1)


def test_a_fingerprint_tells_the_scale(tmp_path: Path) -> None:
    """And stays what it was where none is set, so that earlier runs know their data."""
    plain, same, other = (
        read(tmp_path / "a.npy", BITS * 255, keep="disk", **more).fingerprint()
        for more in ({}, {"scale": 255}, {"scale": 510})
    )
    assert plain == same != other


@pytest.mark.parametrize("bad", [0, -1, "white", float("nan")])
def test_a_scale_that_cannot_be(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(ValueError, match="scale"):
        ArraySource.model_validate({"path": tmp_path, "scale": bad})


def config(path: Path, images: Any = BITS, **source: Any) -> DataConfig:
    np.savez(path, images=images, labels=np.arange(len(images)) % 2)
    return DataConfig.model_validate({"id": {"source": "array", "path": str(path), **source}})


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (BITS, "no pixel is above 1, where 255 stands for white"),
        (BITS * 16, "no pixel is above 16, where 255"),  # sixteenths
        (BITS / 255.0, "no pixel is above 0.00392, where 1 stands"),  # divided twice
    ],
)
def test_a_dark_set_is_told_once(tmp_path: Path, stored: Any, said: str) -> None:
    with pytest.warns(DataWarning) as told:
        load_data(config(tmp_path / "a.npz", stored))
    assert len(told) == 1
    assert str(told[0].message).startswith(f"data.id.images: {said}")
    assert "Set scale" in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_data(config(tmp_path / "a.npz", stored, scale=float(stored.max())))
        load_data(config(tmp_path / "a.npz", BITS * 40))


@pytest.mark.parametrize("keep", ["memory", "disk"])
def test_masks_saved_as_pictures_and_arrays_on_disk_are_told(tmp_path: Path, keep: str) -> None:
    np.savez(tmp_path / "id.npz", images=BITS * 255, labels=np.arange(40) % 2)
    (tmp_path / "masks").mkdir()
    Image.fromarray(BITS[0]).save(tmp_path / "masks" / "0.png")
    np.save(tmp_path / "a.npy", BITS)
    for source, field in (
        ({"source": "folder", "path": tmp_path / "masks"}, r"data\.ood\[0\]\.path"),
        ({"source": "array", "path": tmp_path / "a.npy"}, r"data\.ood\[0\]\.images"),
    ):
        parts = {
            "id": {"source": "array", "path": tmp_path / "id.npz"},
            "image_size": 8,
            "channels": 1,
            "ood": [{**source, "keep": keep}],
        }
        with pytest.warns(DataWarning, match=field + ": no pixel is above 1"):
            load_data(DataConfig.model_validate(parts))


def test_tensors_are_told_too() -> None:
    bits, labels = torch.from_numpy(BITS)[:, None], torch.arange(40) % 2
    with pytest.warns(DataWarning, match=r"train: no pixel is above 1, .* Pass floats"):
        splits_from_tensors((bits[:20], labels[:20]), (bits[20:] * 255, labels[20:]), {})


def test_the_command_says_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = config(tmp_path / "a.npz").model_dump(mode="json")
    stage = {"method": "ce", "epochs": 1, "lr": 0.1}
    experiment = {"data": data, "model": {"name": "mlp"}, "train": {"stages": [stage]}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(experiment))
    command = ["greg-cert", "config", "check", "--data", str(tmp_path / "a.yaml")]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    warnings.simplefilter("default")  # pytest undoes it
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "no pixel" in line]
    assert len(lines) == 1
    assert lines[0].startswith("greg-cert: note: data.id.images: no pixel is above 1, where 255")


@pytest.mark.parametrize("keep", ["memory", "disk"])
@pytest.mark.parametrize(("dtype", "white"), [(np.float32, 1), (np.float64, 1), (np.float32, 255)])
def test_what_rounding_leaves_outside_is_brought_to_the_ends(
    tmp_path: Path, keep: str, dtype: Any, white: int
) -> None:
    stored = (RNG.random((4, 8, 8)) * white).astype(dtype)
    inside = stored.copy()
    stored[0, 0, :2] = white * (1 + 1e-6), -1e-6 * white
    inside[0, 0, :2] = white, 0
    found = read(tmp_path / "a.npy", stored, keep=keep, scale=white).pixels()
    assert torch.equal(found, read(tmp_path / "b.npy", inside, keep=keep, scale=white).pixels())
    for value in (white * (1 + 1e-4), -1e-4 * white, np.nan):
        stored[0, 0, 0] = value
        with pytest.raises(DataError, match="expected finite values in"):
            read(tmp_path / "a.npy", stored, keep=keep, scale=white).pixels()


def test_tensors_may_lie_outside_by_a_rounding() -> None:
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[0, 0, 0, 0] = 1.0000001
    labels = torch.arange(40) % 2
    splits = splits_from_tensors((images, labels), (images.flip(0) * 0.9, labels), {})
    assert float(splits.train.pixels().max()) <= 1.0
    with pytest.raises(DataError, match=r"finite pixels in \[0, 1\]"):
        splits_from_tensors((images * 1.01, labels), (images, labels), {})
