"""Batches: every draw follows from its key, nothing is repeated too early, shifts are shifts."""

from __future__ import annotations

import torch

from greg_cert.data import ImageSet
from greg_cert.seeded import generator_for
from greg_cert.train.feed.batches import DeviceImages, Draw, batch_indices, draw_shifts

CPU = torch.device("cpu")


def shifted(
    images: torch.Tensor, generator: torch.Generator, *, flip: bool, share: float = 1.0
) -> torch.Tensor:
    width = images.shape[-1]
    return draw_shifts(len(images), width, generator, flip=flip, share=share).apply(images)


def test_generators_depend_on_every_part_of_the_key() -> None:
    def draw(*key: int) -> float:
        return float(torch.rand(1, generator=generator_for(CPU, *key)))

    assert draw(1, 2, 3) == draw(1, 2, 3)
    values = {draw(1, 2, 3), draw(0, 2, 3), draw(1, 0, 3), draw(1, 2, 0), draw(1, 2), draw(3, 2, 1)}
    assert len(values) == 6


def test_an_epoch_takes_every_sample_at_most_once_in_full_batches() -> None:
    batches = list(batch_indices(100, 32, generator_for(CPU, 0)))
    assert [len(b) for b in batches] == [32, 32, 32]
    assert len(set(torch.cat(batches).tolist())) == 96
    (whole,) = batch_indices(10, 32, generator_for(CPU, 0))
    assert sorted(whole.tolist()) == list(range(10))
    (exact,) = batch_indices(32, 32, generator_for(CPU, 0))
    assert len(exact) == 32


def test_a_pool_gives_each_sample_once_before_any_twice() -> None:
    draw = Draw(10, generator_for(CPU, 3))
    taken = torch.cat([draw.take(4) for _ in range(5)]).tolist()
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))
    assert sorted(Draw(3, generator_for(CPU, 3)).take(9).tolist()) == sorted([0, 1, 2] * 3)


def test_pixels_are_decoded_on_the_way() -> None:
    images = torch.arange(12, dtype=torch.uint8).reshape(3, 1, 2, 2) * 20
    found = DeviceImages(ImageSet("x", images), CPU).pixels(torch.tensor([2, 0]))
    torch.testing.assert_close(found, images[[2, 0]].float() / 255)


def test_every_shifted_image_is_a_window_of_the_padded_one_and_all_shifts_occur() -> None:
    image = torch.rand(1, 2, 8, 8)
    out = shifted(image.expand(400, -1, -1, -1), generator_for(CPU, 1), flip=False)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    windows = torch.stack([padded[0, :, r : r + 8, c : c + 8] for r in range(3) for c in range(3)])
    matches = (out.unsqueeze(1) == windows).flatten(2).all(2)
    assert bool((matches.sum(1) == 1).all())
    assert set(matches.float().argmax(1).tolist()) == set(range(9))


def test_with_flip_half_are_mirrored_and_with_a_share_the_others_are_untouched() -> None:
    image = torch.rand(1, 1, 8, 8)
    stack = image.expand(600, -1, -1, -1)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    windows = torch.stack([padded[0, :, r : r + 8, c : c + 8] for r in range(3) for c in range(3)])
    both = torch.cat([windows, windows.flip(3)])
    # Mirrored and then shifted, or shifted and then mirrored: the set of images is the same.
    out = shifted(stack, generator_for(CPU, 2), flip=True)
    matches = (out.unsqueeze(1) == both).flatten(2).all(2)
    assert bool((matches.sum(1) == 1).all())
    mirrored = float((matches.float().argmax(1) >= 9).float().mean())
    assert 0.4 < mirrored < 0.6
    some = shifted(stack, generator_for(CPU, 2), flip=True, share=0.25)
    touched = float((some != stack).flatten(1).any(1).float().mean())
    assert 0.15 < touched < 0.35


def test_some_of_the_shifts_move_those_images_as_all_would() -> None:
    images = torch.rand(9, 2, 8, 8)
    shifts = draw_shifts(9, 8, generator_for(CPU, 4), flip=True, share=0.7)
    chosen = torch.tensor([7, 0, 3])
    torch.testing.assert_close(
        shifts.of(chosen).apply(images[chosen]), shifts.apply(images)[chosen], rtol=0, atol=0
    )
