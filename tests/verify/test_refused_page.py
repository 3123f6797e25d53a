"""docs/refused.md: what it calls refused is refused; what it says to take instead is bounded."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from greg_cert.errors import UnsupportedModelError
from greg_cert.verify.graph.calls import _INSTEAD
from greg_cert.verify.graph.trace import trace_model

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "refused.md").read_text(encoding="utf-8")
LAYERS, MESSAGES = PAGE.partition("## By what the message says")[::2]
LINES = re.findall(r"^\| `(.+?)`.* \| `(.+?)` \|$", LAYERS, flags=re.MULTILINE)


class Network(nn.Module):
    """A convolution, what an expression of the page is, and a linear layer."""

    def __init__(self, expression: str) -> None:
        super().__init__()
        known = {"nn": nn, "torch": torch}
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        layer = expression.startswith("nn.") and "(z" not in expression
        self.middle = eval(expression if layer else f"lambda z: {expression}", known)
        with torch.no_grad():
            features = self.middle(self.first(torch.rand(2, 1, 4, 4)))
        self.last = nn.Linear(features[0].numel(), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)).flatten(1))


@pytest.mark.parametrize("expression", [refused for refused, _ in LINES])
def test_the_first_column_is_refused(expression: str) -> None:
    with pytest.raises(UnsupportedModelError, match="A way on"):
        trace_model(Network(expression).eval(), (1, 4, 4))


@pytest.mark.parametrize("expression", sorted({instead for _, instead in LINES}))
def test_the_last_column_is_bounded(expression: str) -> None:
    assert trace_model(Network(expression).eval(), (1, 4, 4)).num_classes == 3


def test_the_page_has_all_layers_for_which_messages_know_another() -> None:
    assert len(LINES) == LAYERS.count("\n| `")
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", LAYERS))))
    assert set(_INSTEAD) <= words, set(_INSTEAD) - words


def test_messages_on_the_page_are_those_of_the_code() -> None:
    said = " ".join(
        node.value
        for room in ("verify", "greg_cert")
        for file in sorted((ROOT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    quoted = re.findall(r"“(.+?)”", MESSAGES)
    assert len(quoted) > 10
    parts = [part.strip() for text in quoted for part in text.split("…")]
    assert [part for part in parts if part not in said] == []
