"""What runs is what is bounded, or it is refused: hooks, replaced methods, steps in place, no_grad.

Each model here does something that its layers do not say. Where it is not refused, its certificates
are attacked through the function that it really computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import climb
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from greg_cert.errors import UnsupportedModelError
from greg_cert.scores import energy
from greg_cert.verify import attack_radius, certify, gradient_norm, lipschitz_bound, score_bound
from greg_cert.verify.graph.trace import trace_model

SHAPE = (1, 5, 5)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 0) -> nn.Sequential:
    """Flatten, linear, ReLU, linear, of random weights; the last is steep."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 12), nn.ReLU(), nn.Linear(12, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=seeded(seed)) * (0.5 if p.ndim > 1 else 0.1))
    return model.eval()


def samples(n: int = 4) -> Tensor:
    return torch.rand(n, *SHAPE, generator=seeded(9))


def along_a_row(model: nn.Sequential) -> tuple[Tensor, float]:
    """A sample that drives one neuron up, and 0.8 of what it reaches there."""
    row = model[1].weight[0].detach()
    x = 0.5 + 0.5 * row / row.abs().max()
    reached = float(model[1](x.unsqueeze(0)).detach()[0, 0])
    return x.reshape(1, *SHAPE), 0.8 * reached


def hooked(where: str, kind: str) -> Callable[[], tuple[nn.Module, Tensor]]:
    """ReAct as a hook: what a layer gives is capped, where random probes hardly ever are."""

    def build() -> tuple[nn.Module, Tensor]:
        model = network()
        x, cap = along_a_row(model)
        layer = {"relu": model[2], "head": model[3], "model": model}[where]
        if kind == "forward":
            layer.register_forward_hook(lambda m, i, o: o.clamp(max=cap))
        elif kind == "before":
            layer.register_forward_pre_hook(lambda m, i: (i[0].clamp(max=cap),))
        elif kind == "backward":
            layer.register_full_backward_hook(lambda m, i, o: tuple(g * 0 for g in i))
        else:
            layer.register_full_backward_pre_hook(lambda m, o: tuple(g * 0 for g in o))
        return model, x

    return build


def replaced_forward() -> tuple[nn.Module, Tensor]:
    model = network()
    x, cap = along_a_row(model)
    plain = model[2].forward
    model[2].forward = lambda h: plain(h).clamp(max=cap)  # type: ignore[method-assign]
    return model, x


def replaced_forward_of_the_model() -> tuple[nn.Module, Tensor]:
    model = network()
    x, cap = along_a_row(model)
    plain = model.forward
    model.forward = lambda x: plain(x.clamp(max=cap))  # type: ignore[method-assign, assignment]
    return model, x


class Capped(nn.Module):
    """A network with a cap between its layers, applied in one of several ways."""

    def __init__(self, step: Callable[[Tensor, float], Any]) -> None:
        super().__init__()
        self.body = network()
        self.x, self.cap = along_a_row(self.body)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        h = self.body[2](self.body[1](self.body[0](x)))
        self.step(h, self.cap)  # the result is dropped
        out: Tensor = self.body[3](h)
        return out


def capped(step: Callable[[Tensor, float], Any]) -> Callable[[], tuple[nn.Module, Tensor]]:
    def build() -> tuple[nn.Module, Tensor]:
        model = Capped(step)
        return model.eval(), model.x

    return build


class Loud(nn.ReLU):
    """Calls itself its own way."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs).clamp(max=0.3)


def called_its_own_way() -> tuple[nn.Module, Tensor]:
    model = network()
    model[2] = Loud()
    return model, samples(1)


class OwnConvolution(nn.Conv2d):
    """Keeps forward and replaces what it calls."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight, bias).cos()


def own_convolution(instance: bool) -> Callable[[], tuple[nn.Module, Tensor]]:
    def build() -> tuple[nn.Module, Tensor]:
        conv = nn.Conv2d(1, 2, 3) if instance else OwnConvolution(1, 2, 3)
        if instance:
            plain = conv._conv_forward
            conv._conv_forward = lambda *a: plain(*a).cos()  # type: ignore[method-assign]
        model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))
        return model.eval(), samples(1)

    return build


class ReadsTheOldValue(nn.Module):
    """Reads a tensor, or a view of it, again after a step in place."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.how = network(), how

    def forward(self, x: Tensor) -> Tensor:
        h = self.body[1](x.flatten(1))
        if self.how == "operand":
            out = F.relu_(h) + h
        elif self.how == "view":
            v = h.view(-1, 12)
            F.relu(v, inplace=True)
            out = h
        elif self.how == "base":
            v = h.flatten(1)
            h += 1.0
            out = v
        elif self.how == "module":
            nn.functional.hardtanh(h, 0.0, 0.2, inplace=True)
            out = h
        else:
            x.mul_(0.5)
            out = self.body[1](x.flatten(1))
        logits: Tensor = self.body[3](out)
        return logits


def reads(how: str) -> Callable[[], tuple[nn.Module, Tensor]]:
    return lambda: (ReadsTheOldValue(how).eval(), samples(2))


class Blind(nn.Module):
    """Parts of forward without gradients."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.side, self.how = network(), network(1), how

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor
        if self.how == "part":
            with torch.no_grad():
                extra = self.side(x)
            logits = self.body(x) + extra
        elif self.how == "backbone":
            with torch.no_grad():
                h = self.body[2](self.body[1](self.body[0](x)))
            logits = self.body[3](h)
        elif self.how == "inference mode":
            with torch.inference_mode():
                extra = self.side(x)
            logits = self.body(x) + extra.clone()
        elif self.how == "whole":
            with torch.no_grad():
                logits = self.body(x)
        else:
            logits = self.body(x) + self.side(x).detach()
        return logits


class BlindForward(Blind):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


def blind(how: str) -> Callable[[], tuple[nn.Module, Tensor]]:
    kind = BlindForward if how == "decorated" else Blind
    return lambda: (kind(how).eval(), samples(3))


class WithoutGradientsOnly(nn.Module):
    """Caps where no gradient is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return h if torch.is_grad_enabled() else h * 1.5


REFUSED: dict[str, tuple[Callable[[], tuple[nn.Module, Tensor]], str]] = {
    "hook on a layer": (hooked("relu", "forward"), "'2'.*forward hook"),
    "hook before a layer": (hooked("head", "before"), "'3'.*forward pre hook"),
    "hook on the model": (hooked("model", "forward"), "the model itself.*forward hook"),
    "backward hook": (hooked("relu", "backward"), "'2'.*backward hook"),
    "hook before backward": (hooked("model", "pre-backward"), "backward pre hook"),
    "replaced forward": (replaced_forward, "'2'.*forward of its own"),
    "replaced forward of the model": (replaced_forward_of_the_model, "itself.*forward of its own"),
    "own __call__": (called_its_own_way, "'2'.*__call__"),
    "own _conv_forward": (own_convolution(False), "cos"),
    "own _conv_forward of an instance": (own_convolution(True), "cos"),
    "hardtanh_, dropped": (capped(lambda h, c: F.hardtanh_(h, -c, c)), "body.3.*in place"),
    "inplace=True, dropped": (capped(lambda h, c: F.hardtanh(h, -c, c, inplace=True)), "in place"),
    "clamp_, dropped": (capped(lambda h, c: h.clamp_(max=c)), "body.3.*in place"),
    "clamp, out=": (capped(lambda h, c: torch.clamp(h, max=c, out=h)), "in place"),
    "method sub_, dropped": (capped(lambda h, c: h.sub_(c)), "body.3.*in place"),
    "relu_ of a difference": (capped(lambda h, c: F.relu_(h.sub_(c))), "in place"),
    "assignment": (capped(lambda h, c: h.__setitem__(h > c, c)), "gt"),  # type: ignore[func-returns-value]
    "out=": (capped(lambda h, c: torch.add(h, 1.0, out=h)), "out"),
    "copy_": (capped(lambda h, c: h.copy_(h * 0.5)), "copy_"),
    "operand read again": (reads("operand"), "relu_.*in place|in place"),
    "base of a view": (reads("view"), "in place"),
    "view of a base": (reads("base"), "in place"),
    "hardtanh in place": (reads("module"), "in place"),
    "input changed": (reads("input"), "in place"),
    "no_grad in part": (blind("part"), "gradients are not"),
    "no_grad backbone": (blind("backbone"), "no gradient"),
    "no_grad whole": (blind("whole"), "no gradient"),
    "no_grad decorator": (blind("decorated"), "no gradient"),
    "inference mode in part": (blind("inference mode"), "clone|gradients are not"),
    "detached part": (blind("detached"), "detach"),
    "depends on gradient mode": (lambda: (WithoutGradientsOnly().eval(), samples(2)), "differs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_steps_that_the_graph_would_not_have_are_refused(case: str) -> None:
    build, why = REFUSED[case]
    model, x = build()
    with torch.no_grad():
        gamma = float(energy(model(x.clone())).max()) + 0.2
    with pytest.raises(UnsupportedModelError, match=why):
        certify(model, x, gamma, max_radius=2.0)
    with pytest.raises(UnsupportedModelError, match=why):
        lipschitz_bound(model, x, 0.1)
    with pytest.raises(UnsupportedModelError, match=why):
        score_bound(model, x, 0.1)


BLIND = [case for case in REFUSED if "no_grad" in case or "inference" in case or "detached" in case]


@pytest.mark.parametrize("case", [*BLIND, "backward hook"])
def test_slopes_and_attacks_do_not_go_by_gradients_that_are_missing(case: str) -> None:
    model, x = REFUSED[case][0]()
    with pytest.raises(UnsupportedModelError, match="gradient"):
        attack_radius(model, x, 0.0)
    with pytest.raises(UnsupportedModelError, match="gradient"):
        gradient_norm(model, x)
    with pytest.raises(UnsupportedModelError, match="gradient"):
        certify(model, x, 0.0, method="smoothing")


def test_a_hook_is_part_of_the_model_where_nothing_is_traced() -> None:
    model, x = REFUSED["hook on a layer"][0]()
    plain = network()
    assert not torch.allclose(gradient_norm(model, x), gradient_norm(plain, x))


def test_hooks_for_all_modules_are_refused() -> None:
    handle = torch.nn.modules.module.register_module_forward_hook(lambda m, i, o: None)
    try:
        with pytest.raises(UnsupportedModelError, match="hook for all modules"):
            trace_model(network(), SHAPE)
    finally:
        handle.remove()
    trace_model(network(), SHAPE)


def test_replaced_functions_of_torch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = F.relu
    with monkeypatch.context() as patch:
        patch.setattr(F, "relu", lambda h, inplace=False: plain(h).clamp(max=1.0))
        with pytest.raises(UnsupportedModelError, match=r"functional\.relu was replaced"):
            trace_model(network(), SHAPE)
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "__call__", lambda self, *a: self.forward(*a))
        with pytest.raises(UnsupportedModelError, match="__call__ was replaced"):
            trace_model(network(), SHAPE)


class Rare(nn.Module):
    """Its logits are raised inside a ball, where no random probe comes; the graph's are not."""

    def __init__(self, centre: Tensor, reach: float, by: float = 1.0) -> None:
        super().__init__()
        self.body, self.centre, self.reach, self.by = network(), centre.double(), reach, by

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return self.shifted(x, logits) if isinstance(x, Tensor) else logits  # tracing: a proxy

    def shifted(self, x: Tensor, logits: Tensor) -> Tensor:
        return torch.where(self.near(x), logits + self.by, logits)

    def near(self, x: Tensor) -> Tensor:
        return ((x - self.centre).flatten(1).norm(dim=1) < self.reach).unsqueeze(1)


class Elsewhere(Rare):
    """Its logits are raised outside of a ball, but for the random probes; the graph's are not."""

    def shifted(self, x: Tensor, logits: Tensor) -> Tensor:
        far = (x - self.centre).flatten(1).norm(dim=1, keepdim=True) > 1.0
        return torch.where(self.near(x) | far, logits, logits + self.by)


def test_model_and_graph_are_compared_at_the_samples() -> None:
    x = samples(3)
    model = Rare(x[1:2], 1e-3)
    with pytest.raises(UnsupportedModelError, match=r"at the samples \(row 1\)"):
        certify(model, x, 5.0)
    with pytest.raises(UnsupportedModelError, match=r"at the samples \(row 1\)"):
        lipschitz_bound(model, x, 0.1)


def test_model_and_graph_are_compared_where_attacks_end() -> None:
    x = samples(1)
    plain = network()
    score = float(energy(plain.double()(x.double())).detach())
    gamma = score + 0.3
    found = attack_radius(network(), x, gamma, max_radius=3.0)
    assert math.isfinite(float(found))
    # All that lies further away than most of the way to the boundary is another function.
    model = Elsewhere(x, 0.5 * float(found), -0.5)
    with pytest.raises(UnsupportedModelError, match=r"at the (end of an attack|surface)"):
        certify(model, x, gamma, max_radius=3.0)


def test_model_and_graph_are_compared_on_the_surface_of_proven_balls() -> None:
    x = samples(1)
    gamma = float(energy(network().double()(x.double())).detach()) + 0.3
    radius = float(certify(network(), x, gamma, max_radius=3.0).radius_certified)
    # Far out its scores are so low that no attack ever ends there.
    with pytest.raises(UnsupportedModelError, match="surface of a proven ball"):
        certify(Elsewhere(x, 0.99 * radius, 50.0), x, gamma, max_radius=3.0)


# Reparametrisations set weights and nothing else; they are taken as they are.


def changed(
    i: int, change: Callable[[nn.Module], nn.Module]
) -> Callable[[nn.Sequential], nn.Module]:
    """Puts what `change` gives of layer i in its place."""

    def build(model: nn.Sequential) -> nn.Module:
        model[i] = change(model[i])
        return model

    return build


def pruned(model: nn.Sequential) -> nn.Sequential:
    prune.l1_unstructured(model[1], "weight", 0.4)
    prune.random_unstructured(model[3], "bias", 1)
    return model


def trained_while_pruned(model: nn.Sequential) -> nn.Sequential:
    """With a weight of an old graph on the layer, as after an optimiser's step."""
    pruned(model).train()(samples()).sum().backward()
    return model


class Named(nn.ReLU):
    def describe(self) -> str:
        return "a ReLU"


TAKEN: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "weight norm": changed(1, parametrizations.weight_norm),
    "spectral norm": changed(1, parametrizations.spectral_norm),
    "old spectral norm": changed(1, nn.utils.spectral_norm),
    "pruned": pruned,
    "trained while pruned": trained_while_pruned,
    "a subclass": changed(2, lambda layer: Named()),
    "in place, but used": changed(2, lambda layer: nn.ReLU(inplace=True)),
    "a graph module": torch.fx.symbolic_trace,
}


@pytest.mark.parametrize("norm", [2.0, math.inf])
@pytest.mark.parametrize("case", TAKEN)
def test_what_only_sets_weights_or_is_used_is_certified_and_holds(case: str, norm: float) -> None:
    torch.manual_seed(0)  # spectral norm begins with a random vector, and weights are of its size
    model = TAKEN[case](network()).eval()
    x = samples()
    logits = model(x).detach().double()
    gamma = float(energy(logits).max()) + 0.3
    found = certify(
        model, x, gamma, norm=norm, max_radius=2.0, method="crown,lipschitz", rounds=4,
        cut_rounds=1, attack_steps=10, attack_restarts=1, attack_polish=5,
    )  # fmt: skip
    assert (found.radius_certified > 0).all()

    def score(points: Tensor) -> Tensor:  # in float32, by the model as the user has it
        return energy(model(points.float())).double()

    worst = score(climb(score, x.double(), found.radius_certified, norm))
    assert (worst <= gamma + 1e-4).all()
    assert (found.radius_attack >= found.radius_certified).all()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_old_weight_norm_is_taken() -> None:
    model = network()
    expected = certify(model, samples(), 5.0, attack=False).radius_certified
    model[1] = torch.nn.utils.weight_norm(model[1])
    found = certify(model, samples(), 5.0, attack=False).radius_certified
    assert torch.allclose(found, expected, rtol=1e-4)


def test_a_model_is_certified_under_inference_mode_as_well() -> None:
    x = samples()
    expected = certify(network(), x, 5.0)
    with torch.inference_mode():
        found = certify(network(), samples(), 5.0)
    assert torch.allclose(found.radius_certified, expected.radius_certified)
    assert torch.allclose(found.gradient_norm, expected.gradient_norm)


# What stands around a model is refused, and what to pass instead is said.


WRAPPED: dict[str, tuple[Callable[[], Any], str]] = {
    "DataParallel": (lambda: nn.DataParallel(network()), r"the model is a DataParallel.*\.module"),
    "inside": (
        lambda: nn.Sequential(nn.Identity(), nn.DataParallel(network())),
        r"layer '1' is a DataParallel.*\.module",
    ),
    "averaged": (lambda: torch.optim.swa_utils.AveragedModel(network()), r"\.module"),
    "compiled": (lambda: torch.compile(network()), r"\._orig_mod"),
    "scripted": (lambda: torch.jit.script(network()), "scripted or traced"),  # type: ignore[no-untyped-call]
    "traced": (lambda: torch.jit.trace(network(), samples()), "scripted or traced"),  # type: ignore[no-untyped-call]
    "exported": (lambda: torch.export.export(network(), (samples(2),)).module(), "exported"),
    "exported program": (lambda: torch.export.export(network(), (samples(2),)), "exported"),
    "no module": (lambda: lambda x: x, r"torch\.nn\.Module, but got function"),
    "a state dict": (lambda: network().state_dict(), "but got OrderedDict"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("case", WRAPPED)
def test_wrappers_are_named_with_what_to_pass_instead(case: str) -> None:
    build, why = WRAPPED[case]
    model = build()
    for call in (
        lambda: certify(model, samples(), 5.0),
        lambda: certify(model, samples(), 5.0, method="smoothing"),
        lambda: attack_radius(model, samples(), 5.0),
        lambda: gradient_norm(model, samples()),
        lambda: lipschitz_bound(model, samples(), 0.1),
        lambda: score_bound(model, samples(), 0.1),
    ):
        with pytest.raises(UnsupportedModelError, match=why):
            call()
