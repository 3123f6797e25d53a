import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from greg_cert.data.sources.array import ArraySource
from greg_cert.data.sources.base import Request
from greg_cert.errors import DataError

FIELD = "data.ood[1]"
RNG = np.random.default_rng(0)
NCHW = RNG.integers(0, 256, (6, 3, 5, 7), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 2, 1, 0])
PICKLED = np.array([NCHW, None], dtype=object)


def read(path: Path, *, labelled: bool = False, **options: Any) -> Any:
    source = ArraySource.model_validate({"path": path, **options})
    return source.load(Request(FIELD, "id" if labelled else "ood"))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("explicit", [True, False])
def test_round_trip_of_both_layouts(tmp_path: Path, layout: str, explicit: bool) -> None:
    stored = NCHW if layout == "nchw" else NCHW.transpose(0, 2, 3, 1)
    np.savez(tmp_path / "a.npz", images=stored, labels=LABELS.astype(np.uint8))
    loaded = read(tmp_path / "a.npz", labelled=True, layout=layout if explicit else "auto")
    assert torch.equal(loaded.images, torch.from_numpy(NCHW))
    assert loaded.labels.tolist() == LABELS.tolist()
    assert loaded.labels.dtype == torch.int64
    assert loaded.name == "a"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_round_trip_of_floats_through_npy(tmp_path: Path, dtype: type) -> None:
    stored: Any = (NCHW[:, 0] / 256).astype(dtype)  # exact in all three
    np.save(tmp_path / "a.npy", stored)
    loaded = read(tmp_path / "a.npy")
    assert loaded.images.dtype == torch.float32
    assert np.array_equal(loaded.images.numpy()[:, 0], stored)
    assert loaded.labels is None


def test_keys_are_the_users_own_and_unneeded_labels_are_not_read(tmp_path: Path) -> None:
    bad = np.array([-1.5])
    np.savez(tmp_path / "a.npz", x=NCHW, y=LABELS, labels=bad)
    assert read(tmp_path / "a.npz", images="x").labels is None
    assert read(tmp_path / "a.npz", images="x", labels="y", labelled=True).labels is not None


def test_limit_keeps_image_and_label_together(tmp_path: Path) -> None:
    labels = np.arange(300) % 3
    np.savez(tmp_path / "a.npz", images=np.full((300, 4, 4), 99 + labels[:, None, None], np.uint8),
             labels=labels)  # fmt: skip
    some = read(tmp_path / "a.npz", labelled=True, limit=50, seed=1)
    assert len(some) == 50
    assert torch.equal(some.images[:, 0, 0, 0].long(), 99 + some.labels)
    again = read(tmp_path / "a.npz", labelled=True, limit=50, seed=1)
    assert some.fingerprint() == again.fingerprint()
    other = read(tmp_path / "a.npz", labelled=True, limit=50, seed=2)
    assert some.fingerprint() != other.fingerprint()
    assert len(read(tmp_path / "a.npz", labelled=True, limit=1000)) == 300
    with pytest.raises(DataError, match=r"data\.ood\[1\]\.limit: .* keeps all 3 .* got 2, which"):
        read(tmp_path / "a.npz", labelled=True, limit=2)


def with_value(value: float) -> np.ndarray[Any, Any]:
    images = np.full((4, 5, 5), 0.5)
    images[2, 1, 1] = value
    return images


@pytest.mark.parametrize(
    ("images", "field", "said"),
    [
        (with_value(np.nan), "images", "nan in image 2"),
        (with_value(-0.25), "images", "-0.25 in image 2"),
        (with_value(255.0), "images", "255 in image 2. Store grey levels as uint8"),
        (np.zeros((4, 5, 5), np.int64), "images", "dtype int64"),
        (np.zeros((25, 5), np.uint8), "images", "shape (25, 5)"),
        (np.zeros((0, 5, 5), np.uint8), "images", "shape (0, 5, 5)"),
        (np.zeros((4, 3, 5, 3), np.uint8), "layout", "shape (4, 3, 5, 3). Set the layout"),
        (np.zeros((4, 5, 5, 4), np.uint8), "layout", "shape (4, 5, 5, 4)"),
    ],
)
def test_unfit_images(tmp_path: Path, images: Any, field: str, said: str) -> None:
    np.save(tmp_path / "a.npy", images)
    with pytest.raises(DataError) as error:
        read(tmp_path / "a.npy")
    assert str(error.value).startswith(f"{FIELD}.{field}: expected ")
    assert said in str(error.value)


def test_a_layout_that_does_not_fit(tmp_path: Path) -> None:
    for layout, shape in (("nhw", (4, 1, 5, 5)), ("nchw", (4, 5, 5)), ("nhwc", (4, 3, 5, 5))):
        np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
        with pytest.raises(DataError, match=r"^data\.ood\[1\]\.(layout|images): .*shape|'n"):
            read(tmp_path / "a.npy", layout=layout)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (LABELS.astype(float), "dtype float64"),
        (LABELS - 1, "a label -1"),
        (LABELS[:5], "(5,)"),
        (LABELS[:, None], "(6, 1)"),
        (LABELS * 0, "only the label 0"),
        (LABELS * 2, "none labelled 1"),
        (LABELS + 1, "none labelled 0"),
        (np.array(list("abcabc")), "dtype <U1"),
        (LABELS.astype(np.uint64) * 2**62, "none labelled 1"),
    ],
)
def test_unfit_labels(tmp_path: Path, labels: Any, said: str) -> None:
    np.savez(tmp_path / "a.npz", images=NCHW, labels=labels)
    with pytest.raises(DataError) as error:
        read(tmp_path / "a.npz", labelled=True)
    assert str(error.value).startswith(f"{FIELD}.labels: expected ")
    assert said in str(error.value)


@pytest.mark.parametrize(("options", "field"), [({"images": "x"}, "images"), ({}, "labels")])
def test_a_missing_key_is_named_beside_those_there_are(
    tmp_path: Path, options: dict[str, str], field: str
) -> None:
    np.savez(tmp_path / "a.npz", images=NCHW, y=LABELS)
    with pytest.raises(DataError, match=rf"\.{field}: expected .*images, y, but got '(x|labels)'"):
        read(tmp_path / "a.npz", labelled=True, **options)


def npy(array: Any = NCHW) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def zipped(*, cut: int = 0, garble: bool = False) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, images=NCHW)
    data = file.getvalue()
    if garble:
        start = data.index(b"images.npy") + 40
        data = data[:start] + bytes(40) + data[start + 40 :]
    return data[: len(data) - cut]


def pickled_in_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("images.npy", npy(PICKLED))
    return file.getvalue()


def twice() -> bytes:
    """An archive with a key that stands there twice; numpy takes the last one in silence."""
    file = io.BytesIO(zipped())
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("images.npy", npy())
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("truncated.npz", zipped(cut=60)),
        ("garbled.npz", zipped(garble=True)),
        ("empty.npz", b""),
        ("bare.npz", npy()),
        ("text.npz", b"hello"),
        ("twice.npz", twice()),
        ("objects.npz", pickled_in_zip()),
        ("objects.npy", npy(PICKLED)),
        ("truncated.npy", npy()[:-1]),
        ("header.npy", npy()[:20]),
        ("empty.npy", b""),
        ("images.mat", npy()),
    ],
)
def test_damaged_and_pickled_files(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value).startswith(f"{FIELD}.path: expected a complete .npz or .npy file")
    assert "\n" not in str(error.value)
    assert name in str(error.value)
    assert error.value.__cause__ is not None


def test_missing_files_and_npy_for_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.ood\[1\]\.path: expected an existing.*nowhere"):
        read(tmp_path / "nowhere.npz")
    np.save(tmp_path / "a.npy", NCHW)
    with pytest.raises(DataError, match=r"data\.ood\[1\]\.path: .* labels too, but got .*a\.npy"):
        read(tmp_path / "a.npy", labelled=True)
