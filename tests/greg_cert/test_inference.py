import weakref

import pytest
import torch
from torch import nn

from greg_cert.data import ImageSet
from greg_cert.detectors import Penultimate, build_detector
from greg_cert.runs import inference
from greg_cert.runs.inference import gathered, logits_of


class Watched(nn.Module):
    """A linear network that counts which of its earlier outputs are still alive at each batch."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 3)
        self.outputs, self.alive = [], []

    def __deepcopy__(self, memo):
        return self

    def forward(self, x):
        self.alive.append(sum(found() is not None for found in self.outputs))
        found = self.head(x.flatten(1))
        self.outputs.append(weakref.ref(found))
        return found


@pytest.fixture
def images(monkeypatch):
    monkeypatch.setattr(inference, "_PIXELS", 4 * 4 * 3)  # batches of three
    pixels = torch.rand(11, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return ImageSet("some", pixels)


def of_features(model, images):
    return Penultimate(model).outputs_of(images).logits


def of_logits(model, images):
    return Penultimate(model).outputs_of(images, features=False).logits


@pytest.mark.parametrize("read", [logits_of, of_logits, of_features])
def test_no_output_of_a_batch_outlives_it(read, images):
    # What is small and stays keeps the heap from shrinking: 600 MB for 100,000 images of 28×28.
    model = Watched()
    found = read(model, images)
    assert model.alive == [0, 0, 0, 0]
    expected = model.head(images.pixels().double().flatten(1))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_scores_of_a_set_are_those_of_its_batches(images):
    detector = build_detector("energy", Watched())
    expected = torch.cat([detector(x) for x in images.pixels().split(3)])
    assert torch.equal(detector.scores(images), expected)


def test_gathered_is_what_cat_gives():
    parts = [(torch.rand(n, 2), torch.arange(n)) for n in (3, 3, 1)]
    one, other = gathered(iter(parts), 7)
    assert torch.equal(one, torch.cat([part[0] for part in parts]))
    assert torch.equal(other, torch.cat([part[1] for part in parts]))
