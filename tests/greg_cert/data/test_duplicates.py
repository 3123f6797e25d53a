"""Copies of images in sets that must have none in common, however they were saved."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from picture_files import picture, read
from PIL import Image

from greg_cert.data import DataConfig, DataSplits, load_data
from greg_cert.data.duplicates import shared_files
from greg_cert.data.files.encoded import BEGIN, Files
from greg_cert.errors import DataError
from greg_cert.runs.subjects import OtherOod, open_subject

KEEPS = ["memory", "disk"]


def random_pictures(n: int) -> list[Image.Image]:
    return [Image.fromarray(picture(12, 12, 3)) for _ in range(n)]


def save(folder: Path, pictures: list[Image.Image], kind: str = "png", first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, one in enumerate(pictures, first):
        one.save(folder / f"{i}.{kind}", lossless=True)  # of WebP
    return folder


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """An ID set: two classes of 20 pictures each."""
    for name in ("ant", "bee"):
        save(tmp_path / "id" / name, random_pictures(20))
    return tmp_path / "id"


def load(known: Path, keep: str = "memory", shared: str = "refuse", **more: Any) -> DataSplits:
    """Arrays or folders by their paths; `keep` of the ID set and, after a slash, of the others."""
    keep, _, other = keep.partition("/")

    def source(path: Path, keep: str = other or keep) -> dict[str, Any]:
        kind = "array" if path.suffix == ".npy" else "folder"
        return {"source": kind, "path": path, "keep": keep}

    parts = {k: [*map(source, v)] if k == "ood" else source(v) for k, v in more.items()}
    shape = {"image_size": 12, "channels": 3, "shared": shared}
    return load_data(DataConfig.model_validate({"id": source(known, keep), **shape, **parts}))


def pictures_of(folder: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*/*.png"))]


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("how", ["bytes", "bmp", "webp", "other order", "array"])
def test_an_ood_set_of_copies_of_id_images(
    known: Path, tmp_path: Path, keep: str, how: str
) -> None:
    """All of them, so that each split has a copy there; the same bytes, or only the same pixels."""
    other = tmp_path / ("ood.npy" if how == "array" else "ood")
    pictures = pictures_of(known)
    if how == "array":
        np.save(other, np.stack([np.array(picture) for picture in pictures]) / 255.0)
    elif how == "bytes":
        other.mkdir()
        for i, path in enumerate(sorted(known.glob("*/*.png"))):
            shutil.copy(path, other / f"{i}.png")
    elif how == "other order":
        save(other, pictures[::-1])
    else:
        save(other, pictures, how)
    with pytest.raises(DataError, match=r"^data\.ood\[0\]: expected no image .* in data\.id,"):
        load(known, keep, ood=[other])


@pytest.mark.parametrize("keep", [*KEEPS, "memory/disk", "disk/memory"])
@pytest.mark.parametrize("kind", ["png", "bmp"])
def test_a_few_copies_are_found_and_dropped(
    known: Path, tmp_path: Path, keep: str, kind: str
) -> None:
    """ID images in an OOD set, OOD and ID images in the auxiliary one; the splits stay whole."""
    originals = pictures_of(known)
    outliers = random_pictures(10)
    ood = save(save(tmp_path / "ood", outliers), originals[:2], kind, 50)
    aux = save(save(tmp_path / "aux", random_pictures(10)), originals[-3:], kind, 50)
    with pytest.raises(DataError, match=r"^data\.ood\[0\]: .*\. Set data\.shared to drop"):
        load(known, keep, ood=[ood])
    with pytest.raises(DataError, match=r"^data\.aux: .* also in data\.id, but got "):
        load(known, keep, aux=aux)
    parts = load(known, keep, ood=[ood], aux=aux, shared="drop")
    assert (len(parts.ood["ood"]), len(parts.aux or ())) == (10, 10)
    assert parts.fingerprints()["train"] == load(known, keep).fingerprints()["train"]
    save(aux, outliers[:4], kind, 90)
    assert len(load(known, keep, ood=[ood], aux=aux, shared="drop").aux or ()) == 10
    shutil.rmtree(ood)
    save(ood, outliers)
    shutil.rmtree(aux)
    save(save(aux, random_pictures(10)), outliers[:4], kind, 90)
    with pytest.raises(DataError, match=r"^data\.aux: .* also in data\.ood\[0\], but got 4 of 14 "):
        load(known, keep, ood=[ood], aux=aux)


@pytest.mark.parametrize("keep", KEEPS)
def test_a_test_set_of_its_own_is_kept_from_outliers(
    known: Path, tmp_path: Path, keep: str
) -> None:
    test = tmp_path / "test"
    for name in ("ant", "bee"):
        save(test / name, random_pictures(3))
    ood = save(tmp_path / "ood", [*random_pictures(5), pictures_of(test)[0]], "bmp")
    with pytest.raises(DataError, match=r"^data\.ood\[0\]: .* in data\.id_test, but got 1 of 6 "):
        load(known, keep, id_test=test, ood=[ood])
    save(test / "bee", pictures_of(known)[:1], "bmp", 70)
    with pytest.raises(DataError, match=r"^data\.id: .* in data\.id_test, but got 1 of 40 "):
        load(known, keep, id_test=test)


@pytest.mark.parametrize("keep", KEEPS)
def test_copies_within_the_id_set_do_not_fall_into_two_splits(known: Path, keep: str) -> None:
    """Under another name, and under another label too."""
    for i, one in enumerate(pictures_of(known)[:20]):
        one.save(known / ("ant" if i % 2 else "bee") / f"copy{i}.png")
    line = r"^data\.id: expected no image that is also in its (test|calibration) split, but got "
    with pytest.raises(DataError, match=line):
        load(known, keep)
    parts = load(known, keep, shared="drop")
    sets = [
        {image.numpy().tobytes() for image in images.stored()}
        for images in (parts.train, parts.calibration, parts.test)
    ]
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]
    for name in ("train", "calibration", "test"):
        assert len(parts.indices[name]) == len(getattr(parts, name))
    whole = read(known)
    assert torch.equal(whole.stored(parts.indices["train"]), parts.train.stored())


def test_the_same_file_in_another_crop_is_the_same(known: Path, tmp_path: Path) -> None:
    other = tmp_path / "ood"
    other.mkdir()
    shutil.copy(known / "ant" / "3.png", other / "a.png")
    save(other, random_pictures(3))
    source = {"source": "folder", "path": other, "crop": 0.5}
    config = {"id": {"source": "folder", "path": known}, "image_size": 12, "ood": [source]}
    with pytest.raises(DataError, match=r"^data\.ood\[0\]: .*, but got 1 of 4 "):
        load_data(DataConfig.model_validate(config))


def test_only_files_that_begin_alike_are_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = random_pictures(1)[0].resize((60, 60))
    for i in range(4):
        save(tmp_path / "a", [long], "bmp", i)
        content = bytearray((tmp_path / "a" / f"{i}.bmp").read_bytes())
        assert len(content) > BEGIN
        content[-1 if i == 1 else 60] ^= i
        (tmp_path / "a" / f"{i}.bmp").write_bytes(content)
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a" / "0.bmp", tmp_path / "b" / "0.bmp")
    options: Any = {"labelled": False, "channels": 3, "size": 12, "keep": "disk"}
    a, b = (read(tmp_path / n, **options) for n in "ab")
    whole: list[int] = []
    original = Files.read

    def noted(self: Files, row: int, most: int) -> bytes:
        if most < 0 and self is a.files:
            whole.append(row)
        return original(self, row, most)

    monkeypatch.setattr(Files, "read", noted)
    assert shared_files(a, b).tolist() == [True, False, False, False]
    assert sorted(whole) == [0, 1]  # of which 1 differs at its end


def test_other_ood_sets_of_a_model_are_compared_too(known: Path, tmp_path: Path) -> None:
    """As `verify --set data.ood=...` and `evaluate` read them."""
    other = save(tmp_path / "ood", pictures_of(known)[:3], "bmp")
    described = tmp_path / "m.yaml"
    described.write_text(
        f"data: {{id: {{source: folder, path: {known}}}}}\n"
        "model: {factory: 'torch.nn:Identity'}\n"
    )
    subject = open_subject(described, [f"data.ood=[{{source: folder, path: {other}}}]"])
    assert isinstance(subject, OtherOod)
    with pytest.raises(DataError, match=r"^data\.ood\[0\]: .* also in data\.id, but got "):
        subject.load_data()
