import pytest
import torch

from greg_cert.data.splits import stratified_split
from greg_cert.errors import DataError

FRACTIONS = {"calibration": 0.15, "test": 0.35}


def labels() -> torch.Tensor:
    counts = torch.tensor([100, 41, 7])
    order = torch.randperm(148, generator=torch.Generator().manual_seed(0))
    return torch.arange(3).repeat_interleave(counts)[order]


def split(seed: int = 0) -> dict[str, torch.Tensor]:
    return stratified_split(labels(), FRACTIONS, num_classes=3, seed=seed, field="data.id")


def test_splits_are_disjoint_and_cover_the_set() -> None:
    parts = split()
    assert set(parts) == {"train", "calibration", "test"}
    everything = torch.cat(list(parts.values()))
    assert everything.sort().values.tolist() == list(range(148))
    assert all(torch.equal(part, part.sort().values) for part in parts.values())


def test_each_class_is_dealt_out_in_proportion() -> None:
    counts = {k: torch.bincount(labels()[v], minlength=3).tolist() for k, v in split().items()}
    assert counts == {"train": [50, 21, 4], "calibration": [15, 6, 1], "test": [35, 14, 2]}


def test_the_seed_alone_decides() -> None:
    first = split()
    torch.manual_seed(5)
    assert all(torch.equal(first[k], v) for k, v in split().items())
    assert not torch.equal(first["train"], split(seed=1)["train"])


@pytest.mark.parametrize(
    ("labels", "said"), [([0] * 20 + [1] * 2, "2 of class 1"), ([0] * 20, "0 of class 1")]
)
def test_a_class_too_small_for_every_split(labels: list[int], said: str) -> None:
    with pytest.raises(DataError, match=rf"^data\.id: expected enough .* {said}, which leaves "):
        stratified_split(torch.tensor(labels), FRACTIONS, num_classes=2, seed=0, field="data.id")
