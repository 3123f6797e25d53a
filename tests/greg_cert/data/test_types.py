import pytest
import torch

from greg_cert.data import ImageSet
from greg_cert.errors import DataError


def grey(n: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, 1, 5, 5), generator=generator, dtype=torch.uint8)


def test_pixels_are_exact_fractions_of_255() -> None:
    images = torch.tensor([[[[0, 51], [102, 255]]]], dtype=torch.uint8)
    expected = torch.tensor([[[[0.0, 0.2], [0.4, 1.0]]]])
    torch.testing.assert_close(ImageSet("a", images).pixels(), expected)
    floats = ImageSet("a", expected)
    assert torch.equal(floats.pixels(), expected)


def test_pixels_and_subset_follow_the_order_of_the_indices() -> None:
    images = ImageSet("a", grey(), torch.arange(4), ("a", "b", "c", "d"))
    chosen = images.subset([2, 0])
    assert torch.equal(chosen.images, grey()[[2, 0]])
    assert chosen.labels is not None
    assert chosen.labels.tolist() == [2, 0]
    assert chosen.classes == images.classes
    assert torch.equal(images.pixels(torch.tensor([3])), grey()[3:].float() / 255)


def test_fingerprint_sees_pixel_label_shape_and_dtype() -> None:
    labels = torch.arange(4)
    base = ImageSet("a", grey(), labels)
    assert base.fingerprint() == ImageSet("other name", grey(), labels.clone()).fingerprint()
    one_pixel = grey()
    one_pixel[3, 0, 4, 4] ^= 1
    variants = [
        ImageSet("a", one_pixel, labels),
        ImageSet("a", grey(), labels.flip(0)),
        ImageSet("a", grey()),
        ImageSet("a", grey().reshape(4, 1, 25, 1), labels),
        ImageSet("a", grey().float() / 255, labels),
    ]
    prints = {base.fingerprint(), *(v.fingerprint() for v in variants)}
    assert len(prints) == 6


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (torch.zeros(2, 5, 5, dtype=torch.uint8), None, "(2, 5, 5)"),
        (torch.zeros(0, 1, 5, 5, dtype=torch.uint8), None, "(0, 1, 5, 5)"),
        (torch.zeros(2, 1, 5, 5, dtype=torch.int64), None, "torch.int64"),
        (torch.full((2, 1, 5, 5), 1.5), None, "1.5"),
        (torch.full((2, 1, 5, 5), float("nan")), None, "nan"),
        (grey(2), torch.zeros(3, dtype=torch.int64), "(3,)"),
        (grey(2), torch.zeros(2), "torch.float32"),
    ],
)
def test_unsound_sets_are_refused(
    images: torch.Tensor, labels: torch.Tensor | None, said: str
) -> None:
    with pytest.raises(DataError) as error:
        ImageSet("some set", images, labels)
    assert "some set" in str(error.value)
    assert said in str(error.value)
