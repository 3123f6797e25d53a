import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from greg_cert.data.sources.base import Request
from greg_cert.data.sources.torchvision_sets import _KNOWN, TorchvisionSource
from greg_cert.data.types import ImageSet
from greg_cert.errors import DataError

RNG = np.random.default_rng(0)
LABELS = np.arange(20, dtype=np.uint8) % 10


def read(name: str, root: Path, labelled: bool = True, shape: Any = (), **options: Any) -> Any:
    options = {"dataset": name, "root": root, "split": "test", **options}
    source = TorchvisionSource.model_validate(options)
    return source.load(Request("data.id", "id" if labelled else "ood", *shape))


def idx(array: Any) -> bytes:
    shape = array.shape
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + array.tobytes()


def write_mnist(root: Path, name: str = "MNIST") -> Any:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    images = RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8)
    for part, pixels in (("train", images[::-1]), ("t10k", images)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(LABELS))
    return images


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_mnist_files_give_back_their_pixels(tmp_path: Path, name: str) -> None:
    images = write_mnist(tmp_path, name)
    test, train = read(name, tmp_path), read(name, tmp_path, split="train")
    assert np.array_equal(test.images.numpy()[:, 0], images)
    assert np.array_equal(train.images.numpy()[:, 0], images[::-1])
    assert test.labels.tolist() == LABELS.tolist()
    assert len(test.classes) == 10
    assert read(name, tmp_path, labelled=False).labels is None


def test_truncated_and_mislabelled_mnist(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    images, labels = raw / "t10k-images-idx3-ubyte", raw / "t10k-labels-idx1-ubyte"
    whole = images.read_bytes()
    for damaged in (whole[:-100], whole[:3], b""):
        images.write_bytes(damaged)
        with pytest.raises(
            DataError, match=r"^data\.id\.root: expected MNIST's test files"
        ) as error:
            read("MNIST", tmp_path)
        assert error.value.__cause__ is not None
        assert "\n" not in str(error.value)
    images.write_bytes(whole)
    labels.write_bytes(idx(LABELS[:19]))
    with pytest.raises(DataError, match=r"^data\.id\.root: expected one label an image.*\(19,\)"):
        read("MNIST", tmp_path)
    labels.write_bytes(idx(LABELS % 9))
    with pytest.raises(DataError, match=r"all 10 classes of MNIST, but got labels up to 8"):
        read("MNIST", tmp_path)


@pytest.mark.parametrize("name", sorted(_KNOWN))
def test_missing_files_say_how_to_get_them(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as error:
        read(name, tmp_path / "nowhere")
    told = str(error.value)
    assert told.startswith(f"data.id.root: expected {name}'s test files")
    assert "nowhere" in told
    assert "Set download: true" in told
    assert "http" in told


def write_cifar(root: Path) -> dict[str, tuple[Any, str]]:
    base = root / "cifar-10-batches-py"
    base.mkdir()
    written = {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        data = RNG.integers(0, 256, (20, 3072), dtype=np.uint8)
        content = pickle.dumps({"data": data, "labels": LABELS.tolist()})
        (base / name).write_bytes(content)
        written[name] = (data, hashlib.md5(content).hexdigest())
    meta = pickle.dumps({"label_names": list("abcdefghij")})
    (base / "batches.meta").write_bytes(meta)
    written["batches.meta"] = (np.empty(0, np.uint8), hashlib.md5(meta).hexdigest())
    return written


def test_cifar_is_read_only_if_its_checksums_match(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10

    written = write_cifar(tmp_path)
    with pytest.raises(DataError, match=r"data\.id\.root: .*CIFAR10.*unchanged"):
        read("CIFAR10", tmp_path)  # the files are not the true ones, so they are not unpickled
    train = [[name, md5] for name, (_, md5) in written.items() if name.startswith("data")]
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", written["test_batch"][1]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": written["batches.meta"][1]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    test = read("CIFAR10", tmp_path)
    assert np.array_equal(test.images.numpy(), written["test_batch"][0].reshape(-1, 3, 32, 32))
    assert test.classes == tuple("abcdefghij")
    assert len(read("CIFAR10", tmp_path, split="train")) == 100
    some = read("CIFAR10", tmp_path, split="train", limit=60)
    assert len(some) == 60
    assert read("CIFAR10", tmp_path, split="train", limit=60).fingerprint() == some.fingerprint()


def test_svhn_counts_its_zeros_as_class_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    images = RNG.integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    file = tmp_path / "test_32x32.mat"
    savemat(file, {"X": images, "y": (LABELS + 1)[:, None]})
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    monkeypatch.setattr(SVHN, "split_list", {"test": ["", file.name, md5]})
    loaded = read("SVHN", tmp_path)
    assert np.array_equal(loaded.images.numpy(), images.transpose(3, 2, 0, 1))
    assert loaded.labels.tolist() == [(label + 1) % 10 for label in LABELS.tolist()]
    assert loaded.classes == tuple("0123456789")


def test_emnist_letters_stand_upright_and_count_from_zero(tmp_path: Path) -> None:
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    images = RNG.integers(0, 256, (26, 28, 28), dtype=np.uint8)
    (raw / "emnist-letters-test-images-idx3-ubyte").write_bytes(idx(images))
    labels = np.arange(1, 27, dtype=np.uint8)
    (raw / "emnist-letters-test-labels-idx1-ubyte").write_bytes(idx(labels))
    loaded = read("EMNIST", tmp_path)
    assert np.array_equal(loaded.images.numpy()[:, 0], images.transpose(0, 2, 1))
    assert loaded.labels.tolist() == list(range(26))
    assert loaded.classes == tuple("abcdefghijklmnopqrstuvwxyz")


def test_stl10_is_stored_by_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import STL10

    base = tmp_path / "stl10_binary"
    base.mkdir()
    images = RNG.integers(0, 256, (20, 3, 96, 96), dtype=np.uint8)
    (base / "test_X.bin").write_bytes(images.transpose(0, 1, 3, 2).tobytes())
    (base / "test_y.bin").write_bytes((LABELS + 1).tobytes())
    listed = [[f.name, hashlib.md5(f.read_bytes()).hexdigest()] for f in sorted(base.iterdir())]
    monkeypatch.setattr(STL10, "test_list", listed)
    monkeypatch.setattr(STL10, "train_list", [])
    loaded = read("STL10", tmp_path)
    assert np.array_equal(loaded.images.numpy(), images)
    assert loaded.labels.tolist() == LABELS.tolist()


def photograph(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((30, 40, 3), level, np.uint8)).save(path)


def write_dtd(root: Path, _: pytest.MonkeyPatch) -> None:
    names = ("banded", "woven")
    for i, name in enumerate(names):
        photograph(root / "dtd" / "dtd" / "images" / name / "1.jpg", 50 + 100 * i)
    labels = root / "dtd" / "dtd" / "labels"
    labels.mkdir()
    (labels / "test1.txt").write_text("\n".join(f"{name}/1.jpg" for name in names))
    (labels / "train1.txt").write_text("woven/1.jpg\nbanded/1.jpg")
    (labels / "val1.txt").write_text("woven/1.jpg\nbanded/1.jpg")


def write_food101(root: Path, _: pytest.MonkeyPatch) -> None:
    for i, name in enumerate(("pie", "soup")):
        photograph(root / "food-101" / "images" / name / "1.jpg", 50 + 100 * i)
    (root / "food-101" / "meta").mkdir()
    text = '{"pie": ["pie/1"], "soup": ["soup/1"]}'
    (root / "food-101" / "meta" / "test.json").write_text(text)


def write_gtsrb(root: Path, _: pytest.MonkeyPatch) -> None:
    rows = ["Filename;ClassId"]
    for sign in range(43):
        name = f"{sign:05d}.ppm"
        level = 150 if sign else 50
        photograph(root / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / name, level)
        rows.append(f"{name};{sign}")
    (root / "gtsrb" / "GT-final_test.csv").write_text("\n".join(rows))


def write_places(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import Places365

    for i in range(2):
        photograph(root / "val_256" / f"{i}.jpg", 50 + 100 * i)
    texts = {"c.txt": "/a/airfield 0\n/b/barn 1\n", "v.txt": "0.jpg 0\n1.jpg 1\n"}
    for name, text in texts.items():
        (root / name).write_text(text)
    md5 = {name: hashlib.md5(text.encode()).hexdigest() for name, text in texts.items()}
    monkeypatch.setattr(Places365, "_CATEGORIES_META", ("c.txt", md5["c.txt"]))
    monkeypatch.setattr(Places365, "_FILE_LIST_META", {"val": ("v.txt", md5["v.txt"])})


@pytest.mark.parametrize(
    ("name", "write", "classes"),
    [
        ("DTD", write_dtd, ("banded", "woven")),
        ("Food101", write_food101, ("pie", "soup")),
        ("GTSRB", write_gtsrb, tuple(map(str, range(43)))),
        ("Places365", write_places, ("/a/airfield", "/b/barn")),
    ],
)
def test_sets_of_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Any, classes: Any
) -> None:
    write(tmp_path, monkeypatch)
    loaded = read(name, tmp_path, shape=(None, 16))
    assert loaded.image_shape == (3, 16, 16)
    assert loaded.classes == classes
    assert loaded.labels.tolist() == list(range(len(classes)))
    levels = loaded.stored().float().mean(dim=(1, 2, 3))
    assert (levels[:2] - torch.tensor([50.0, 150])).abs().max() < 2
    disk = read(name, tmp_path, shape=(3, 16), keep="disk")
    assert not isinstance(disk, ImageSet)
    assert torch.equal(disk.stored(), loaded.stored())


def test_the_whole_of_dtd_is_its_three_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dtd(tmp_path, monkeypatch)
    for keep in ("memory", "disk"):
        whole = read("DTD", tmp_path, shape=(3, 16), split="all", keep=keep)
        assert whole.labels.tolist() == [1, 0, 1, 0, 0, 1]  # train, val, test
        parts = [read("DTD", tmp_path, shape=(3, 16), split=split) for split in ("train", "test")]
        assert torch.equal(whole.stored()[[0, 1, 4, 5]], torch.cat([p.stored() for p in parts]))
    one, whole = (
        TorchvisionSource(dataset="DTD", root=tmp_path, split=split) for split in ("test", "all")
    )
    assert one.holds() < whole.holds()
    with pytest.raises(ValidationError, match="split all for DTD alone, but got SVHN"):
        TorchvisionSource(dataset="SVHN", root=tmp_path, split="all")


def test_photographs_of_other_sizes_or_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_food101(tmp_path, monkeypatch)
    broken = tmp_path / "food-101" / "images" / "soup" / "1.jpg"
    Image.fromarray(np.zeros((50, 30, 3), np.uint8)).save(broken)
    with pytest.raises(DataError, match=r"data\.id\.root: expected images of one size"):
        read("Food101", tmp_path)
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DataError, match=r"data\.id\.root: expected a complete, .*soup.*1\.jpg"):
        read("Food101", tmp_path, shape=(None, 16), labelled=False)


def test_what_only_photographs_can(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    for option, said in (({"keep": "disk"}, "keep: disk"), ({"crop": 0.5}, "crop: 0.5")):
        with pytest.raises(DataError, match=rf"data\.id: .*only with sets of photogr.*{said}"):
            read("MNIST", tmp_path, **option)
