import pytest
import torch

from greg_cert.data.geometry import centre_square, conform, to_channels


def test_images_that_fit_keep_their_pixels() -> None:
    images = torch.arange(48, dtype=torch.uint8).reshape(1, 3, 4, 4)
    assert torch.equal(conform(images, channels=3, size=4), images)


def test_centre_square_cuts_both_sides_alike() -> None:
    wide = torch.arange(6).expand(1, 1, 2, 6)
    assert centre_square(wide)[0, 0, 0].tolist() == [2, 3]
    assert centre_square(wide.mT)[0, 0, :, 0].tolist() == [2, 3]


def test_luma_is_itu_r_601() -> None:
    primaries = torch.eye(3).reshape(3, 3, 1, 1)
    luma = to_channels(primaries, 1).flatten()
    torch.testing.assert_close(luma, torch.tensor([0.299, 0.587, 0.114]))
    levels = conform((primaries * 255).to(torch.uint8), channels=1, size=1)
    assert levels.flatten().tolist() == [76, 150, 29]


def test_grey_becomes_three_equal_channels() -> None:
    grey = torch.rand((2, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    assert torch.equal(conform(grey, channels=3, size=4), grey.repeat(1, 3, 1, 1))


@pytest.mark.parametrize("size", [4, 16])
def test_resizing_keeps_constants_and_ramps(size: int) -> None:
    ramp = ((torch.arange(8) + 0.5) / 8).expand(1, 1, 8, 8).contiguous()
    resized = conform(ramp, channels=1, size=size)[0, 0, size // 2]
    expected = (torch.arange(size) + 0.5) / size
    inner = slice(1, -1) if size < 8 else slice(2, -2)  # edges have nothing beyond to average
    torch.testing.assert_close(resized[inner], expected[inner])
    flat = torch.full((1, 3, 8, 8), 77, dtype=torch.uint8)
    assert bool((conform(flat, channels=1, size=size) == 77).all())


def test_shrinking_averages_rather_than_skips() -> None:
    stripes = torch.tensor([1.0, 0, 0, 0]).repeat(4).expand(1, 1, 16, 16).contiguous()
    shrunk = conform(stripes, channels=1, size=4)
    assert (shrunk - 0.25).abs().max() < 0.1  # without antialiasing every stripe is skipped


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand((5, 3, 9, 9), generator=torch.Generator().manual_seed(0))
    whole = conform(images, channels=1, size=4)
    monkeypatch.setattr("greg_cert.data.geometry._CHUNK_VALUES", 2 * 3 * 81)
    assert torch.equal(conform(images, channels=1, size=4), whole)
