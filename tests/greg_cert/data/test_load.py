from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from greg_cert.data import DataConfig, DataSplits, ImageSet, load_data
from greg_cert.data.duplicates import without_shared
from greg_cert.data.sources.base import Request
from greg_cert.data.sources.faces import FacesSource
from greg_cert.errors import DataError

RNG = np.random.default_rng(0)
OOD = ("textures", "text", "faces", "uniform", "gaussian")


def load(**parts: Any) -> DataSplits:
    return load_data(DataConfig.model_validate({"id": {"source": "digits"}, **parts}))


@pytest.fixture(scope="module")
def digits() -> DataSplits:
    return load(aux={"source": "photographs", "n": 800}, ood=[{"source": s} for s in OOD])


def test_digits_are_scikit_learns(digits: DataSplits) -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    for name in ("train", "calibration", "test"):
        part, where = getattr(digits, name), digits.indices[name]
        assert np.array_equal(part.images.reshape(len(part), 64).numpy() * 16, images[where])
        assert np.array_equal(part.labels.numpy(), labels[where])
    everything = torch.cat(list(digits.indices.values())).sort().values
    assert torch.equal(everything, torch.arange(1797))
    assert (digits.num_classes, digits.channels, digits.image_size) == (10, 1, 8)


def test_mean_and_std_are_those_of_the_train_split(digits: DataSplits) -> None:
    pixels = digits.train.pixels().double()
    assert digits.mean == pytest.approx([pixels.mean().item()], rel=1e-9)
    assert digits.std == pytest.approx([pixels.std(correction=0).item()], rel=1e-9)


def test_outliers_have_the_digits_size_and_unit_range(digits: DataSplits) -> None:
    assert digits.aux is not None
    assert len(digits.aux) == 800
    sizes = {name: len(images) for name, images in digits.ood.items()}
    assert sizes == {"textures": 500, "text": 500, "faces": 100, "uniform": 500, "gaussian": 500}
    for images in (digits.aux, *digits.ood.values()):
        pixels = images.pixels()
        assert pixels.shape[1:] == (1, 8, 8)
        assert pixels.dtype == torch.float32
        assert pixels.min() >= 0
        assert pixels.max() <= 1
        assert images.labels is None
    noise = digits.ood["uniform"].pixels()
    assert noise.mean().item() == pytest.approx(0.5, abs=0.01)
    assert noise.std().item() == pytest.approx(12**-0.5, abs=0.01)
    # Clipping at two deviations takes the deviation of 0.25 down to 0.25 * 0.9594.
    assert digits.ood["gaussian"].pixels().std().item() == pytest.approx(0.2399, abs=0.005)


def test_the_same_config_gives_the_same_fingerprints(digits: DataSplits) -> None:
    again = load(aux={"source": "photographs", "n": 800}, ood=[{"source": s} for s in OOD])
    prints = digits.fingerprints()
    assert again.fingerprints() == prints
    assert set(prints) == {"train", "calibration", "test", "aux", *(f"ood/{s}" for s in OOD)}
    assert len(set(prints.values())) == len(prints)
    other = load(seed=1).fingerprints()
    assert all(other[name] != prints[name] for name in ("train", "calibration", "test"))


def test_size_and_channels_on_request() -> None:
    parts = load(image_size=12, channels=3, ood=[{"source": "faces"}, {"source": "text", "n": 7}])
    for images in (parts.train, parts.test, *parts.ood.values()):
        assert images.images.shape[1:] == (3, 12, 12)
    assert len(parts.mean) == len(parts.std) == 3
    assert len(parts.ood["text"]) == 7


def test_only_the_half_of_lfw_subset_that_shows_faces_is_used() -> None:
    patches = FacesSource().load(Request("data.id", "ood", 1, 25)).stored()
    assert patches.shape == (100, 1, 25, 25)
    # Each resembles the mean face: its correlation with it is high for faces, and no face is odd.
    flat = patches.flatten(1)
    centred = flat - flat.mean(dim=1, keepdim=True)
    mean = centred.mean(dim=0)
    likeness = torch.nn.functional.cosine_similarity(centred, mean[None])
    assert likeness.mean() > 0.5
    assert (likeness > 0).sum() >= 95


def test_limits_apply_to_every_kind_of_source() -> None:
    parts = load(
        id={"source": "digits", "limit": 400},
        aux={"source": "gaussian", "n": 90, "limit": 70},
        ood=[{"source": "faces", "limit": 10}, {"source": "textures", "n": 30, "limit": 20}],
    )
    assert len(parts.train) + len(parts.calibration) + len(parts.test) == 400
    assert parts.aux is not None
    assert [len(parts.aux), *map(len, parts.ood.values())] == [70, 10, 20]
    with pytest.raises(DataError, match=r"^data\.id\.limit: expected .*all 10 classes"):
        load(id={"source": "digits", "limit": 9})


def images(n: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return RNG.integers(0, 256, (n, 8, 8), dtype=np.uint8)


def write(path: Path, pixels: np.ndarray[Any, Any], classes: int = 2) -> dict[str, str]:
    np.savez(path, images=pixels, labels=np.arange(len(pixels)) % classes)
    return {"source": "array", "path": str(path)}


def test_a_test_set_of_its_own_is_tested_on_whole(tmp_path: Path) -> None:
    train, test = images(40), images(10)
    parts = load(
        id=write(tmp_path / "a.npz", train),
        id_test=write(tmp_path / "b.npz", test),
        calibration=0.25,
    )
    assert np.array_equal(parts.test.images.numpy()[:, 0], test)
    assert (len(parts.train), len(parts.calibration)) == (30, 10)
    both = torch.cat([parts.indices["train"], parts.indices["calibration"]]).sort().values
    assert torch.equal(both, torch.arange(40))
    assert torch.equal(parts.indices["test"], torch.arange(10))


def test_test_images_among_the_training_images(tmp_path: Path) -> None:
    train, test = images(40), images(10)
    train[[3, 8]] = test[[1, 2]]
    train[5] = test[5] = 7  # constant images are no evidence
    sources = {"id": write(tmp_path / "a.npz", train), "id_test": write(tmp_path / "b.npz", test)}
    with pytest.raises(
        DataError, match=r"^data\.id: .* data\.id_test, but got 2 of 40 of 'a' .* 'b'"
    ):
        load(**sources)
    parts = load(**sources, shared="drop")
    both = torch.cat([parts.indices["train"], parts.indices["calibration"]]).sort().values
    assert both.tolist() == [i for i in range(40) if i not in (3, 8)]
    where = parts.indices["train"]
    assert np.array_equal(parts.train.images.numpy()[:, 0], train[where])
    whole = write(tmp_path / "c.npz", images(10))
    with pytest.raises(DataError, match=r"^data\.id: .*data\.id_test, but got 10 of 10"):
        load(id=whole, id_test=whole, shared="drop")


def shared(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Which of the images are dropped for one of the others, beside one that never is."""
    kept = torch.arange(images[0].numel()).reshape(1, *images[0].shape) + 100
    sets = ImageSet("a", torch.cat([images, kept.to(images.dtype)])), ImageSet("b", others)
    left = without_shared(*sets, fields=("a", "b"), policy="drop")
    return ~torch.isin(torch.arange(len(images)), left)


def test_shared_images_agree_with_comparing_every_pair() -> None:
    first = torch.randint(
        2, (200, 1, 2, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    second = first[:20]
    constant = (first.flatten(1) == first.flatten(1)[:, :1]).all(dim=1)
    equal = (first[:, None] == second[None]).flatten(2).all(dim=2).any(dim=1)
    assert constant.any()
    assert torch.equal(shared(first, second), equal & ~constant)


def test_floats_are_compared_at_the_nearest_grey_level() -> None:
    levels = torch.from_numpy(images(5))[:, None]
    assert shared(levels, (levels / 255 - 1e-3).clamp(min=0)).all()
    assert not shared(levels, (levels / 255 - 3e-3).clamp(min=0)).any()


def test_a_test_set_with_other_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.id_test: expected all 2 classes .* got 3"):
        load(
            id=write(tmp_path / "a.npz", images(40)),
            id_test=write(tmp_path / "b.npz", images(12), classes=3),
        )


def test_images_without_any_variation(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.id: .*vary in every channel, .*constant at 0"):
        load(id=write(tmp_path / "a.npz", images(40) * 0))


def test_errors_carry_the_path_of_their_field(tmp_path: Path) -> None:
    nowhere = {"source": "array", "path": tmp_path / "nowhere.npz"}
    for parts, field in (
        ({"id": nowhere}, "data.id"),
        ({"id_test": nowhere}, "data.id_test"),
        ({"aux": nowhere}, "data.aux"),
        ({"ood": [{"source": "faces"}, nowhere]}, "data.ood[1]"),
    ):
        with pytest.raises(DataError) as error:
            load(**parts)
        assert str(error.value).startswith(f"{field}.path: expected ")
        assert "nowhere.npz" in str(error.value)
