from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import picture_files
import pytest
import torch
from picture_files import RNG, picture, save

from greg_cert.data import DataConfig, DataSplits, ImageSet, load_data, prefetch
from greg_cert.data.duplicates import without_shared
from greg_cert.data.files.on_disk import ArrayImages, FileImages
from greg_cert.data.sources.array import ArraySource
from greg_cert.data.sources.base import Request
from greg_cert.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("bee", "ant"):
        for i in range(30):
            shape = (40 + i, 60 - i, 3) if i % 3 else (40 + i, 60 - i)  # every third is grey
            save(tmp_path / "set" / name / f"{i}.png", picture(*shape))
    return tmp_path / "set"


read = partial(picture_files.read, channels=3, size=24)


@pytest.mark.parametrize("crop", [1.0, 0.875, "image_size"])
def test_disk_and_memory_hold_the_same_pixels(root: Path, crop: Any) -> None:
    memory, disk = (read(root, keep=keep, crop=crop) for keep in ("memory", "disk"))
    assert isinstance(memory, ImageSet)
    assert isinstance(disk, FileImages)
    assert disk.image_shape == memory.image_shape == (3, 24, 24)
    assert torch.equal(disk.stored(), memory.images)
    assert torch.equal(disk.labels, memory.labels)
    assert disk.classes == memory.classes
    for indices in ([5, 2, 59], torch.tensor([7]), slice(3, 50, 4), disk.labels == 1):
        assert torch.equal(disk.pixels(indices), memory.pixels(indices))
        part = disk.subset(indices)
        assert torch.equal(part.stored(), memory.subset(indices).images)
        assert torch.equal(part.labels, memory.subset(indices).labels)
        assert torch.equal(part.subset([0]).stored(), part.stored([0]))
    limited = read(root, keep="disk", limit=20, labelled=False)
    assert torch.equal(limited.stored(), read(root, limit=20, labelled=False).images)


def test_imagenets_crop_is_the_centre_of_the_resized_picture(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 512).round().astype(np.uint8)
    save(tmp_path / "a.png", np.tile(ramp, (256, 1)))
    found = read(tmp_path, crop=0.875, labelled=False, channels=1, size=224)
    expected = torch.from_numpy(ramp[144:368].copy())  # 512 -> 256 in the middle, 224 of that
    assert torch.equal(found.stored()[0, 0, 0], expected)


@pytest.mark.parametrize("keep", ["memory", "disk"])
def test_a_crop_of_the_image_size_is_the_centre_itself(tmp_path: Path, keep: str) -> None:
    framed = np.zeros((36, 36, 3), np.uint8)
    framed[2:34, 2:34] = inner = picture(32, 32, 3)
    save(tmp_path / "lsun" / "a" / "1.png", framed)
    found = read(tmp_path / "lsun", keep=keep, crop="image_size", size=32, labelled=False)
    assert torch.equal(found.stored()[0], torch.from_numpy(inner).permute(2, 0, 1))
    with pytest.raises(DataError, match=r"at least 40x40 beside crop: .*1\.png' of 36x36"):
        read(tmp_path / "lsun", keep=keep, crop="image_size", size=40, labelled=False).stored()


def test_a_crop_of_the_image_size_needs_that_size(root: Path) -> None:
    with pytest.raises(DataError, match=r"data\.image_size beside crop: image_size, but got none"):
        read(root, crop="image_size", size=None)


def test_auto_goes_by_the_decoded_size(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(read(root), ImageSet)
    monkeypatch.setattr("greg_cert.data.files.on_disk.MEMORY_BYTES", 60 * 3 * 24 * 24 - 1)
    assert isinstance(read(root), FileImages)
    assert isinstance(read(root, keep="memory"), ImageSet)
    assert isinstance(read(root, limit=59), ImageSet)
    with pytest.raises(DataError, match=r"^data\.id\.keep: .* no channels\. Set both, or keep"):
        read(root, channels=None, keep="disk")


def test_reading_goes_wrong_later_and_names_the_file(root: Path) -> None:
    disk = read(root, keep="disk")
    (root / "bee" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^data\.id\.path: .*bee/3\.png'"):
        disk.stored()
    assert len(disk.stored(slice(0, 30))) == 30
    (root / "bee" / "3.png").unlink()
    with pytest.raises(DataError, match=r"bee/3\.png' \(FileNotFoundError"):
        for _ in prefetch(torch.arange(60).split(10), disk.stored):
            pass


def test_fingerprints_see_names_sizes_labels_and_some_content(root: Path, tmp_path: Path) -> None:
    disk = read(root, keep="disk")
    known = {disk.fingerprint()}
    moved = root.rename(tmp_path / "elsewhere")
    assert read(moved, keep="disk").fingerprint() in known

    def new(images: FileImages) -> None:
        assert images.fingerprint() not in known
        known.add(images.fingerprint())

    new(read(moved, keep="disk", crop=0.5))
    new(read(moved, keep="disk", labelled=False))
    new(read(moved, keep="disk", limit=59))
    new(read(moved, keep="disk", classes=["bee", "ant"]))
    file = moved / "bee" / "7.png"
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)  # as long as before
    new(read(moved, keep="disk"))
    file.write_bytes(content + b"x")
    new(read(moved, keep="disk"))
    file.rename(moved / "bee" / "70.png")
    new(read(moved, keep="disk"))


def test_files_and_other_images_are_compared_by_a_sample(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = read(root, keep="disk")
    array = ImageSet("array", read(root, keep="memory").images)
    other = ImageSet("other", 255 - array.images)
    fields = ("data.aux", "data.ood[0]")
    assert len(without_shared(disk, other, fields=fields, policy="refuse")) == 60
    assert without_shared(disk, array.subset([4]), fields=fields, policy="drop").tolist() == [
        i for i in range(60) if i != 4
    ]
    monkeypatch.setattr("greg_cert.data.duplicates.SAMPLED", 40)
    for one, two in ((disk, array), (array, disk)):
        with pytest.raises(DataError, match=r"40 of 40 looked at .* Set keep: memory"):
            without_shared(one, two, fields=fields, policy="drop")


def test_a_large_array_stays_on_disk(tmp_path: Path) -> None:
    stored = RNG.integers(0, 256, (50, 10, 12, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", stored)

    def array(channels: int | None = None, size: int | None = None, **options: Any) -> Any:
        source = ArraySource.model_validate({"path": tmp_path / "a.npy", **options})
        return source.load(Request("data.aux", "aux", channels, size))

    disk, memory = array(keep="disk"), array()
    assert isinstance(disk, ArrayImages)
    assert isinstance(disk.array.base, np.memmap)
    assert disk.image_shape == (3, 10, 10)
    assert torch.equal(disk.stored(), memory.images[..., 1:11])
    assert array(1, 5, keep="disk").stored([3, 1]).shape == (2, 1, 5, 5)
    some = array(keep="disk", limit=20)
    assert torch.equal(some.stored(), array(limit=20).images[..., 1:11])
    assert torch.equal(some.subset([2]).pixels(), some.pixels([2]))
    assert (
        len({disk.fingerprint(), some.fingerprint(), array(1, 5, keep="disk").fingerprint()}) == 3
    )
    fields = ("data.aux", "data.ood[0]")
    test = ImageSet("t", memory.images[[7], :, :, 1:11])
    assert len(without_shared(disk, test, fields=fields, policy="drop")) == 49
    np.save(tmp_path / "a.npy", np.where(stored == 255, 2.0, 0.5))
    with pytest.raises(DataError, match=r"^data\.aux\.images: .* 2 in image"):
        array(keep="disk").stored()
    np.savez(tmp_path / "a.npz", images=stored)
    with pytest.raises(DataError, match=r"^data\.aux\.keep: expected a \.npy file"):
        array(path=tmp_path / "a.npz", keep="disk")


def load(root: Path, **more: Any) -> DataSplits:
    source = {"source": "folder", "path": root, "keep": "disk"}
    config = {"id": source, "image_size": 24, "channels": 3, **more}
    return load_data(DataConfig.model_validate(config))


def test_splits_of_a_set_on_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = load(root, ood=[{"source": "uniform", "n": 9}])
    pixels = parts.train.pixels().double()
    assert parts.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), abs=1e-6)
    assert len(parts.train) + len(parts.calibration) + len(parts.test) == 60
    assert load(root).fingerprints().items() <= parts.fingerprints().items()
    monkeypatch.setattr("greg_cert.data.load.MOMENTS_OF", 10)
    sampled = load(root)
    assert sampled.mean != parts.mean
    assert sampled.mean == pytest.approx(parts.mean, abs=0.05)


def test_configured_moments(root: Path) -> None:
    parts = load(root, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    assert parts.mean == (0.485, 0.456, 0.406)
    assert parts.std == (0.229, 0.224, 0.225)
    with pytest.raises(DataError, match=r"^data\.mean: expected one value a channel, 3, but got 1"):
        load(root, mean=[0.5], std=[0.5])
    for wrong in ({"mean": [0.5]}, {"mean": [0.5, 0.5], "std": [0.5, 0.5]}):
        with pytest.raises(ValueError, match="expected"):
            load(root, **wrong)
