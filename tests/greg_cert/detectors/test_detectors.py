"""All detectors by name, on one small network."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from greg_cert.data import DataConfig, DataSplits, load_data
from greg_cert.data.files.on_disk import ArrayImages
from greg_cert.detectors import DETECTORS, Detector, Outputs, Penultimate, build_detector
from greg_cert.errors import UsageError
from greg_cert.metrics import auroc
from greg_cert.models import build_model

FITTED = [name for name, info in DETECTORS.items() if info.fitted]
ON_OUTPUTS = [name for name, info in DETECTORS.items() if info.needs != "network"]


@pytest.fixture(scope="module")
def splits() -> DataSplits:
    return load_data(
        DataConfig.model_validate(
            {
                "id": {"source": "digits", "limit": 500},
                "ood": [{"source": "uniform", "n": 60, "seed": 1}],
            }
        )
    )


@pytest.fixture(scope="module")
def model(splits: DataSplits) -> nn.Module:
    """A `cnn_small` after forty steps."""
    generator = torch.Generator().manual_seed(0)
    made = build_model(
        "cnn_small",
        num_classes=10,
        in_channels=1,
        image_size=splits.image_size,
        mean=splits.mean,
        std=splits.std,
    )
    with torch.no_grad():
        for p in made.parameters():
            size = 2 / p[0].numel() if p.ndim > 1 else 0.0
            p.copy_(size**0.5 * torch.randn(p.shape, generator=generator))
    optimiser = torch.optim.SGD(made.parameters(), lr=0.05, momentum=0.9)
    labels = splits.train.labels
    for _ in range(40):
        picked = torch.randint(len(splits.train), (64,), generator=generator)
        loss = F.cross_entropy(made(splits.train.pixels(picked)), labels[picked])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return made


@pytest.fixture(scope="module")
def built(model: nn.Module, splits: DataSplits) -> dict[str, Detector]:
    network = Penultimate(model)
    return {n: build_detector(n, network).fit(splits.train) for n in DETECTORS}


@pytest.mark.parametrize("name", DETECTORS)
def test_scores_are_finite_and_tell_noise_from_digits(
    name: str, built: dict[str, Detector], splits: DataSplits
) -> None:
    detector = built[name]
    inside, outside = detector.scores(splits.test), detector.scores(splits.ood["uniform"])
    for scores, images in ((inside, splits.test), (outside, splits.ood["uniform"])):
        assert scores.shape == (len(images),)
        assert scores.dtype == torch.float64
        assert scores.device.type == "cpu"
        assert scores.isfinite().all()
        assert not scores.requires_grad
    assert len(inside.unique()) > len(inside) // 2
    assert auroc(inside, outside) > (0.5 if name in ("openmax", "weiper") else 0.7)
    assert None not in detector.options.values()


@pytest.mark.parametrize("name", DETECTORS)
def test_a_score_is_of_its_image_alone(
    name: str, built: dict[str, Detector], splits: DataSplits
) -> None:
    x = torch.cat([splits.test.pixels(slice(12)), splits.ood["uniform"].pixels(slice(6))])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    scores = built[name](x)
    close = {"rtol": 1e-6, "atol": 1e-7}
    torch.testing.assert_close(built[name](x[order]), scores[order], **close)
    torch.testing.assert_close(torch.cat([built[name](row[None]) for row in x]), scores, **close)
    torch.testing.assert_close(built[name].scores(x), scores, **close)


@pytest.mark.parametrize("name", DETECTORS)
def test_one_run_of_the_network_serves_all_and_nothing_else_changes(
    name: str, model: nn.Module, built: dict[str, Detector], splits: DataSplits
) -> None:
    before = copy.deepcopy(model.state_dict())
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    detector, network = build_detector(name, model), built[name].network
    if name in ON_OUTPUTS:
        detector.fit_outputs(network.outputs_of(splits.train), splits.train.labels)
        detector.network.outputs(splits.test.pixels([0]))
        scores = detector.scores_of_outputs(network.outputs_of(splits.test))
    else:
        scores = detector.fit(splits.train).scores(splits.test)
    torch.testing.assert_close(scores, built[name].scores(splits.test), rtol=1e-6, atol=1e-7)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), str(np.random.get_state()))  # noqa: NPY002
    assert model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", FITTED)
def test_tensors_with_labels_fit_as_sets_do(
    name: str, model: nn.Module, built: dict[str, Detector], splits: DataSplits
) -> None:
    detector = build_detector(name, model)
    assert detector.requires_fit
    for ask in (detector, detector.scores):
        with pytest.raises(UsageError, match=r"expected fit\(\) before scores"):
            ask(splits.test.pixels([0, 1]))
    pixels, scores = splits.train.pixels(), built[name].scores(splits.test)
    detector.fit(pixels, splits.train.labels)
    torch.testing.assert_close(detector.scores(splits.test), scores, rtol=1e-9, atol=1e-9)
    if DETECTORS[name].labelled:
        with pytest.raises(UsageError, match="expected labels of the training data, but got none"):
            detector.fit(pixels)
    else:  # and ignores them
        detector.fit(pixels)
        torch.testing.assert_close(detector.scores(splits.test), scores, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda y: y[:-1], r"expected integer labels of shape \(\d+,\)"),
        (lambda y: y.double(), "expected integer labels"),
        (lambda y: y - 1, r"expected labels in 0 ... 9, but got -1 ... 8"),
        (lambda y: y + 1, r"expected labels in 0 ... 9, but got 1 ... 10"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    change: object, part: str, model: nn.Module, splits: DataSplits
) -> None:
    labels = change(splits.train.labels)  # type: ignore[operator]
    with pytest.raises(UsageError, match=part):
        build_detector("mds", model).fit(splits.train.pixels(), labels)


def test_sets_that_stay_on_disk_give_the_same(
    built: dict[str, Detector], splits: DataSplits
) -> None:
    test, rows = splits.test, np.arange(len(splits.test))
    disk = ArrayImages("disk", "data", test.stored().numpy(), rows, test.image_shape, test.labels)
    for name in ("msp", "knn", "odin"):
        assert torch.equal(built[name].scores(disk), built[name].scores(test))


def few(splits: DataSplits, count: int) -> tuple[Tensor, Tensor]:
    labels = splits.train.labels
    return splits.train.pixels(slice(count)), labels[:count]


@pytest.mark.parametrize("name", FITTED)
def test_a_handful_of_training_images_gives_finite_scores(
    name: str, model: nn.Module, splits: DataSplits
) -> None:
    for count in (1, 3, 15):
        detector = build_detector(name, model).fit(*few(splits, count))
        assert detector.scores(splits.test).isfinite().all()


def test_options_reach_the_method(model: nn.Module, splits: DataSplits) -> None:
    detector = build_detector("knn:k=3", model)
    assert detector.options == {"k": 3}
    detector = build_detector("gen:gamma=0.5,top=2", model, top=4)
    assert detector.options == {"gamma": 0.5, "top": 4}
    with pytest.raises(UsageError, match="expected k <= 3"):
        build_detector("knn", model, k=4).fit(*few(splits, 3))
    with pytest.raises(UsageError, match="expected no option, but got 'k'"):
        build_detector("msp", model, k=3)
    plain, other = (build_detector("ash", model, percentile=p) for p in (None, 0.3))
    x = splits.test.pixels(slice(5))
    assert not torch.equal(plain(x), other(x))
    assert plain.options == {"percentile": 0.9}


def test_outputs_without_features_and_odin_without_images_are_refused(
    model: nn.Module, splits: DataSplits
) -> None:
    network = Penultimate(model)
    outputs = network.outputs(splits.test.pixels([0]), features=False)
    with pytest.raises(UsageError, match="detector ash: expected outputs with features"):
        build_detector("ash", network).scores_of_outputs(outputs)
    with pytest.raises(UsageError, match="detector odin: expected images"):
        build_detector("odin", network).scores_of_outputs(outputs)


@pytest.mark.parametrize("name", ON_OUTPUTS)
def test_features_and_logits_that_are_not_finite(
    name: str, built: dict[str, Detector], splits: DataSplits, model: nn.Module
) -> None:
    """Fitted on, or scored: without a check KNN raises scikit-learn's error, others give NaN."""
    network, labels = Penultimate(model), splits.train.labels
    train = network.outputs_of(splits.train)
    line = rf"^detector {name}: expected finite (features|logits), .* for image 5 of {len(labels)}"
    for value in (torch.nan, torch.inf):
        bad = Outputs(train.logits.clone(), train.features.clone())
        bad.logits[5, 2] = bad.features[5, 3] = value
        if name in FITTED:
            with pytest.raises(UsageError, match=line):
                build_detector(name, network).fit_outputs(bad, labels)
        with pytest.raises(UsageError, match=line):
            built[name].scores_of_outputs(bad)
