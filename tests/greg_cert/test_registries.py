"""Whoever adds a detector, a model or an ONNX operation says whose it is, and tests it by name."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from greg_cert.detectors import DETECTORS
from greg_cert.models.names import MODELS
from greg_cert.models.onnx.layers import HANDLERS

HERE = Path(__file__).parent
SOURCE = re.compile(r"\b(19|20)\d\d\b|https?://")  # a year of publication, or an address


def named_in(*files: str) -> set[str]:
    """Words of the tests' names, and texts among their parameters."""
    found: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse((HERE / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found |= {*node.name.split("_")}
                found |= {text for d in node.decorator_list for text in texts(d)}
    return found


def texts(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value


DETECTOR_TESTS = named_in(
    *(f"detectors/test_{n}.py" for n in ("feature_methods", "line", "logit_methods", "penultimate"))
)
MODEL_TESTS = named_in("test_models.py", "test_weights.py")
ONNX_TESTS = named_in("test_onnx.py")


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_has_code_a_source_and_a_test(name: str) -> None:
    info = DETECTORS[name]
    assert inspect.getdoc(info.method)
    assert SOURCE.search(info.source)
    assert name in DETECTOR_TESTS
    expected = {option.name for option in info.options}
    found = inspect.signature(info.method).parameters.values()
    assert {p.name for p in found if p.kind is p.KEYWORD_ONLY} == expected


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_code_a_source_and_a_test(name: str) -> None:
    module, _, function = MODELS[name].body.partition(":")
    told = inspect.getdoc(getattr(import_module(f"greg_cert.models.{module}"), function))
    assert SOURCE.search(str(told).partition("Source:")[2])
    assert name in MODEL_TESTS


@pytest.mark.parametrize("name", HANDLERS)
def test_an_onnx_operation_has_a_test(name: str) -> None:
    assert name in ONNX_TESTS
