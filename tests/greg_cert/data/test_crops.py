import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from greg_cert.data.files.decode import decode_image
from greg_cert.data.sources.crops import area_crops, random_crops
from greg_cert.data.sources.pictures import (
    PhotographsSource,
    TextSource,
    TexturesSource,
    bundled_file,
)


def picture(height: int, width: int, channels: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (channels, height, width)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def test_a_crop_at_full_resolution_is_the_window_itself() -> None:
    source = picture(20, 30, 3)
    top, left = torch.tensor([0, 7, 12]), torch.tensor([0, 11, 22])
    crops = area_crops(source, top, left, torch.tensor([8, 8, 8]), 8)
    for crop, i, j in zip(crops, top.tolist(), left.tolist(), strict=True):
        assert torch.equal(crop, source[:, i : i + 8, j : j + 8].double())


@pytest.mark.parametrize("side", [5, 7, 12, 13])
def test_boxes_of_part_pixels_are_weighed_by_their_area(side: int) -> None:
    size = 6
    source = picture(13, 13)
    crop = area_crops(source, torch.tensor([0]), torch.tensor([0]), torch.tensor([side]), size)
    fine = source[:, :side, :side].double().repeat_interleave(size, 1).repeat_interleave(size, 2)
    torch.testing.assert_close(crop[0], adaptive_avg_pool2d(fine, size))


def test_every_random_crop_lies_in_its_picture() -> None:
    source = picture(9, 12)  # little enough to know every window, flipped or not
    crops = random_crops([source], n=200, size=9, channels=1, seed=0)
    windows = {
        window.flip(flip).numpy().tobytes()
        for left in range(4)
        for window in [source[0, :, left : left + 9]]
        for flip in ([], [0], [1], [0, 1])
    }
    drawn = {crop.numpy().tobytes() for crop in crops}
    assert drawn <= windows
    assert len(drawn) > 12  # all four flips of at least some windows


def test_crops_are_set_by_the_seed_alone() -> None:
    sources = [picture(40, 50, 3), picture(30, 30, 1, seed=1)]
    first = random_crops(sources, n=50, size=8, channels=3, seed=1)
    torch.manual_seed(99)
    assert torch.equal(random_crops(sources, n=50, size=8, channels=3, seed=1), first)
    assert not torch.equal(random_crops(sources, n=50, size=8, channels=3, seed=2), first)
    assert first.dtype == torch.uint8
    assert first.shape == (50, 3, 8, 8)


def test_flat_parts_are_left_out_and_flat_pictures_refused() -> None:
    half = picture(64, 64)
    half[:, :, :32] = 128
    crops = random_crops([half], n=300, size=8, channels=1, seed=0)
    assert crops.float().flatten(1).std(dim=1).min() >= 255 * 0.02
    with pytest.raises(ValueError, match="0 of 5 crops"):
        random_crops(
            [torch.full((1, 64, 64), 128, dtype=torch.uint8)], n=5, size=8, channels=1, seed=0
        )


def test_scales_are_log_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greg_cert.data.sources.crops._MIN_CONTRAST", 0)
    # A ramp of slope 1 shows its crop's side: the mean step between neighbours is side / size.
    ramp = torch.arange(256, dtype=torch.uint8).expand(1, 256, 256).contiguous()
    crops = random_crops([ramp], n=4000, size=8, channels=1, seed=0).double()
    side = (crops[..., -1] - crops[..., 0]).mean(dim=(1, 2)).abs() * 8 / 7
    below = [(side < s).double().mean().item() for s in (16, 32, 64, 128)]
    assert below == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=0.04)


def test_the_bundled_pictures_are_all_there_and_in_one_source_each() -> None:
    groups = [source().holds() for source in (PhotographsSource, TexturesSource, TextSource)]
    assert [len(group) for group in groups] == [16, 3, 2]
    assert len(frozenset().union(*groups)) == 21
    for name in frozenset().union(*groups):
        picture = decode_image(bundled_file(name, field="data.aux"), field="data.aux")
        assert picture.dtype == torch.uint8
