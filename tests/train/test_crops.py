"""Resized crops against torchvision's, in memory and of picture files."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import picture_files
import pytest
import torch
from clusters import rng
from picture_files import picture, save
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import resized_crop

from greg_cert.data import ImageSet
from greg_cert.data.files.on_disk import FileImages
from greg_cert.train.feed.batches import DeviceImages
from greg_cert.train.feed.crops import draw_crops

CPU = torch.device("cpu")
theirs = partial(resized_crop, interpolation=InterpolationMode.BILINEAR, antialias=True)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (375, 500), (40, 90)])
def test_parts_are_as_large_as_torchvisions_and_lie_anywhere(height: int, width: int) -> None:
    crops = draw_crops(3000, rng(1))
    mine = torch.tensor([crops.box(i, height, width) for i in range(3000)], dtype=torch.float64)
    image = torch.zeros(1, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = torch.tensor(
            [RandomResizedCrop.get_params(image, (0.08, 1), (3 / 4, 4 / 3)) for _ in range(3000)],
            dtype=torch.float64,
        )
    for box in (mine, other):
        assert bool((box[:, :2] >= 0).all())
        assert bool((box[:, 0] + box[:, 2] <= height).all())
        assert bool((box[:, 1] + box[:, 3] <= width).all())
    at = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    sizes = (height, width, height, width)
    for mine_, theirs_, size in zip(mine.T, other.T, sizes, strict=True):
        gap = mine_.quantile(at) - theirs_.quantile(at)
        assert gap.abs().max() < 0.06 * size  # chance reaches 0.04


@pytest.mark.parametrize(
    ("size", "box"), [((10, 1000), (0, 493, 10, 13)), ((1000, 10), (493, 0, 13, 10))]
)
def test_of_a_strip_the_middle_is_taken(size: tuple[int, int], box: tuple[int, ...]) -> None:
    assert {draw_crops(5, rng()).box(i, *size) for i in range(5)} == {box}


def test_crops_in_memory_are_torchvisions_of_the_same_boxes() -> None:
    images = torch.rand(60, 3, 24, 24, generator=rng(2))
    crops = draw_crops(60, rng(3), share=0.7)
    found = crops.apply(images)
    assert 5 < int((~crops.chosen).sum()) < 35
    assert 10 < int(crops.mirrored.sum()) < 35
    for i, image in enumerate(images):
        box = crops.box(i, 24, 24)
        expected = image if box is None else theirs(image, *box, [24, 24])
        expected = expected.flip(2) if crops.mirrored[i] else expected
        torch.testing.assert_close(found[i], expected, rtol=0, atol=2e-6)
    part = crops.of(torch.tensor([7, 50]))
    torch.testing.assert_close(part.apply(images[[7, 50]]), found[[7, 50]])


def test_crops_of_files_are_taken_from_the_whole_picture(tmp_path: Path) -> None:
    pictures = [picture(60 + i, 80 - i, 3) if i % 3 else picture(60 + i, 80 - i) for i in range(20)]
    for i, pixels in enumerate(pictures):
        save(tmp_path / "a" / f"{i:02}.png", pixels)
    options = {"labelled": False, "channels": 3, "size": 16, "crop": 0.5}
    files = picture_files.read(tmp_path, keep="disk", **options)
    assert isinstance(files, FileImages)
    images, crops = DeviceImages(files, CPU), draw_crops(20, rng(4), share=0.8)
    everything = torch.arange(20)
    found = images.pixels(everything, images.read(everything, crops), crops)
    plain = picture_files.read(tmp_path, keep="memory", **options).pixels()
    whole = set()
    for i, pixels in enumerate(pictures):
        box = crops.box(i, *pixels.shape[:2])
        expected = plain[i]
        if box is not None:
            colour = torch.from_numpy(pixels).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)
            expected = theirs(colour.float().expand(3, -1, -1), *box, [16, 16]) / 255
        expected = expected.flip(2) if crops.mirrored[i] else expected
        torch.testing.assert_close(found[i], expected, rtol=0, atol=0.51 / 255)
        whole.add(box is None)
    assert whole == {True, False}
    chosen = torch.tensor([13, 2])
    assert torch.equal(images.pixels(chosen, moves=crops.of(chosen)), found[chosen])


def test_files_and_memory_give_the_same_crops_of_the_same_squares(tmp_path: Path) -> None:
    for i in range(12):
        save(tmp_path / "a" / f"{i:02}.png", picture(16, 16, 3))
    read = partial(picture_files.read, tmp_path, labelled=False, channels=3, size=16)
    crops, everything = draw_crops(12, rng(5)), torch.arange(12)
    found = [
        DeviceImages(read(keep=keep), CPU).pixels(everything, moves=crops)
        for keep in ("disk", "memory")
    ]
    assert isinstance(read(keep="memory"), ImageSet)
    torch.testing.assert_close(*found, rtol=0, atol=0.51 / 255)
