"""Windows against whole maps: the same bounds by another route, and row lengths by autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from greg_cert.verify.bounds import native_engine, window_plan
from greg_cert.verify.bounds.affine_rows import AffineRows
from greg_cert.verify.bounds.native_engine import NativeEngine
from greg_cert.verify.bounds.region import Cut, Region
from greg_cert.verify.bounds.window_plan import WindowPlan
from greg_cert.verify.graph.ops import Conv, Graph, forward_all
from greg_cert.verify.graph.trace import trace_model
from tests.problems import randomise
from tests.random_networks import Side, Sum

SHAPE = (2, 11, 11)


def _stem() -> list[nn.Module]:
    return [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU()]


def _chain() -> list[nn.Module]:
    return [
        nn.Conv2d(2, 4, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(4, 3, (2, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
        nn.LeakyReLU(0.2),
        nn.Conv2d(3, 4, 3, stride=2),
        nn.ReLU(),
    ]


def _residual() -> list[nn.Module]:
    # Windows of 3, 5 and 1 pixels meet, in steps of two.
    branch = nn.Sequential(
        nn.Conv2d(3, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1)
    )
    return [*_stem(), Sum(branch, nn.Conv2d(3, 3, 1, stride=2)), nn.ReLU()]


def _inner_sum() -> list[nn.Module]:
    # A sum inside, whose windows pass the border; one of its sides adds a bias there.
    inner = Sum(nn.Conv2d(3, 3, 1), nn.Identity())
    return [*_stem(), inner, nn.Conv2d(3, 2, 3, padding=1), nn.ReLU()]


def _steps() -> list[nn.Module]:
    # Windows that move at different steps cannot be one window.
    return [*_stem(), Sum(nn.Conv2d(3, 3, 6), nn.Conv2d(3, 3, 1, stride=2)), nn.ReLU()]


def _concatenated() -> list[nn.Module]:
    inner = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.Tanh())
    layers = [nn.Conv2d(2, 3, 2), nn.ELU(), Side(inner), nn.AvgPool2d(2)]
    return [*layers, nn.Conv2d(5, 2, 2, padding=1), nn.Sigmoid()]


def _deep() -> list[nn.Module]:
    # The windows of the last layers are as large as the maps of the first.
    layers: list[nn.Module] = []
    for channels in (2, 2, 3, 2):
        layers += [nn.Conv2d(channels, 3 if channels == 2 and len(layers) > 1 else 2, 3, padding=1)]
        layers += [nn.ReLU()]
    return layers


NETWORKS = {
    "chain": _chain,
    "residual": _residual,
    "inner sum": _inner_sum,
    "steps": _steps,
    "concat": _concatenated,
    "deep": _deep,
}


ENDS = {("deep", 3), ("steps", 1), ("residual", 2)}  # activations whose windows grow too large


@pytest.fixture(autouse=True)
def small_maps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_plan, "_SMALL", 0)


def _graph(name: str) -> Graph:
    body = nn.Sequential(*NETWORKS[name](), nn.Flatten())
    features = body(torch.zeros(1, *SHAPE)).shape[1]
    model = nn.Sequential(body, nn.Linear(features, 3)).double()
    randomise(model, torch.Generator().manual_seed(len(name)))
    return trace_model(model, SHAPE)


def _region(norm: float, *, cut: bool) -> Region:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(3, *SHAPE, generator=generator, dtype=torch.float64)
    radii = torch.tensor([0.3, 0.1, 0.5], dtype=torch.float64) / (1 if norm == 2.0 else 10)
    normal = torch.randn(3, x[0].numel(), generator=generator, dtype=torch.float64)
    normal = normal / normal.norm(dim=1, keepdim=True)
    return Region(x, radii, norm, Cut(normal, radii * 0.3) if cut else None)


def _bounds(
    graph: Graph, region: Region, memory: int | None = None
) -> dict[int, tuple[Tensor, ...]]:
    engine = NativeEngine(graph, memory)
    return dict(engine.relax_region(region).preactivations)


@pytest.mark.parametrize(("norm", "cut"), [(2.0, False), (2.0, True), (math.inf, False)])
@pytest.mark.parametrize("name", NETWORKS)
def test_windows_give_what_whole_maps_give(
    name: str, norm: float, cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, region = _graph(name), _region(norm, cut=cut)
    found = [_bounds(graph, region), _bounds(graph, region, 10**5)]
    monkeypatch.setattr(window_plan, "_SPREAD", 0)
    found.append(_bounds(graph, region))
    monkeypatch.setattr(native_engine.WindowPlan, "of", lambda *_: None)
    expected = _bounds(graph, region)
    for bounds in found:
        assert bounds.keys() == expected.keys()
        for i in bounds:
            torch.testing.assert_close(bounds[i], expected[i], rtol=1e-9, atol=1e-9)


def test_windows_are_there_and_end_where_they_are_as_large_as_the_map() -> None:
    def plans(name: str) -> list[WindowPlan | None]:
        graph = _graph(name)
        return [WindowPlan.of(graph, graph.nodes[i].inputs[0]) for i in graph.activations]

    for name in NETWORKS:
        found = plans(name)
        assert all(plan is not None for plan in found)
        ends = [plan is not None and None in plan.frames.values() for plan in found]
        assert ends == [(name, i) in ENDS for i in range(len(ends))]


def test_small_maps_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = _graph("chain")
    widest = max(math.prod(node.shape) for node in graph.nodes)
    for small, expected in ((widest - 1, True), (widest, False)):
        monkeypatch.setattr(window_plan, "_SMALL", small)
        assert (WindowPlan.of(graph, 5) is not None) == expected


def test_a_window_is_what_a_neuron_depends_on() -> None:
    graph = _graph("chain")
    target = graph.nodes[graph.activations[-1]].inputs[0]
    plan = WindowPlan(graph, target)
    frame = plan.frames[0]
    assert frame is not None
    x = torch.rand(1, *SHAPE, dtype=torch.float64, requires_grad=True)
    value = forward_all(graph, x)[target]
    y, column = 1, 1
    (gradient,) = torch.autograd.grad(value[0, :, y, column].sum(), x)
    seen = gradient[0].abs().sum(0).nonzero()
    for axis, place in enumerate((y, column)):
        begin = frame.step[axis] * place + frame.first[axis]
        assert begin <= int(seen[:, axis].min())
        assert int(seen[:, axis].max()) < begin + frame.size[axis]


@pytest.mark.parametrize("norm", [2.0, math.inf])
def test_lengths_of_first_rows_are_those_of_the_jacobian(norm: float) -> None:
    graph = _graph("chain")
    assert isinstance(graph.nodes[1].op, Conv)
    x = torch.rand(1, *SHAPE, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: forward_all(graph, v)[1].flatten(), x)
    expected = jacobian.flatten(1).norm(dim=1, p=2.0 if norm == 2.0 else 1.0)
    region = Region(x, torch.ones(1, dtype=torch.float64), norm)
    low, high = AffineRows(graph, 500).bounds(1, region, None)
    torch.testing.assert_close((high - low)[0] / 2, expected)
