"""Whoever adds an entry of a registry says whose it is, and tests it by name."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

from greg_cert.certificates.methods import STATUS, TABLE
from greg_cert.data.sources.table import SOURCES
from greg_cert.detectors import DETECTORS
from greg_cert.models.names import MODELS
from greg_cert.models.onnx.layers import HANDLERS
from greg_cert.outlier_losses import OUTLIER_LOSSES
from greg_cert.scores import SCORES

TESTS = Path(__file__).parents[1]
SOURCE = re.compile(r"\b(19|20)\d\d\b|https?://")  # a year of publication, or an address
YEAR = re.compile(r"\b(19|20)\d\d\b")
OWN = {"best"}  # a ladder of the others
KINDS = {source.model_fields["source"].default: source for source in SOURCES}


def words(*places: str) -> set[str]:
    """Texts and words of names in the tests of some folders or files."""
    found: set[str] = set()
    for place in places:
        path = TESTS / place
        for file in sorted(path.rglob("test_*.py")) if path.is_dir() else [path]:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found |= {node.value, *re.findall(r"[\w-]+", node.value)}
                elif isinstance(node, ast.FunctionDef):
                    found |= {node.name, *node.name.split("_")}
                elif isinstance(node, ast.Name):
                    found.add(node.id)
    return found


def named_in(*files: str) -> set[str]:
    """Words of the tests' names, and texts among their parameters."""
    found: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse((TESTS / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                inner = (n for d in node.decorator_list for n in ast.walk(d))
                values = (n.value for n in inner if isinstance(n, ast.Constant))
                found |= {*node.name.split("_"), *(v for v in values if isinstance(v, str))}
    return found


OF_METHODS = words("verify")
OF_SCORES = words("greg_cert/test_scores.py", "verify/test_scores.py")
OF_LOSSES = words("train")
OF_SOURCES = words("greg_cert/data")
OF_DETECTORS = named_in(
    *(str(p.relative_to(TESTS)) for p in (TESTS / "greg_cert/detectors").glob("test_*.py"))
)
OF_MODELS = named_in("greg_cert/test_models.py", "greg_cert/test_weights.py")
OF_ONNX = named_in("greg_cert/test_onnx.py")


@pytest.mark.parametrize("method", [m for m in TABLE if m.code], ids=lambda m: m.name)
def test_a_method_has_settings_a_source_and_a_test(method) -> None:  # type: ignore[no-untyped-def]
    module, _, name = method.code.partition(":")
    told = str(inspect.getdoc(getattr(import_module(module), name)))
    source = told.partition("Source:")[2]
    assert YEAR.search(source) or method.name in OWN
    assert method.title
    assert method.status == STATUS[method.name]
    assert method.name in OF_METHODS


@pytest.mark.parametrize("name", SCORES)
def test_a_score_has_a_value_a_source_and_a_test(name: str) -> None:
    assert YEAR.search(str(inspect.getdoc(SCORES[name].value)).partition("Source:")[2])
    assert name in OF_SCORES


@pytest.mark.parametrize("name", OUTLIER_LOSSES)
def test_a_loss_has_a_source_and_a_test(name: str) -> None:
    assert YEAR.search(OUTLIER_LOSSES[name].source)
    assert name in OF_LOSSES


@pytest.mark.parametrize("name", KINDS)
def test_a_source_says_what_it_is_and_has_a_test(name: str) -> None:
    assert inspect.getdoc(KINDS[name])
    assert KINDS[name].__doc__ != inspect.getdoc(KINDS[name].__mro__[1])
    assert name in OF_SOURCES


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_has_code_a_source_and_a_test(name: str) -> None:
    info = DETECTORS[name]
    assert inspect.getdoc(info.method)
    assert SOURCE.search(info.source)
    assert name in OF_DETECTORS
    expected = {option.name for option in info.options}
    found = inspect.signature(info.method).parameters.values()
    assert {p.name for p in found if p.kind is p.KEYWORD_ONLY} == expected


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_code_a_source_and_a_test(name: str) -> None:
    module, _, function = MODELS[name].body.partition(":")
    told = inspect.getdoc(getattr(import_module(f"greg_cert.models.{module}"), function))
    assert SOURCE.search(str(told).partition("Source:")[2])
    assert name in OF_MODELS


@pytest.mark.parametrize("name", HANDLERS)
def test_an_onnx_operation_has_a_test(name: str) -> None:
    assert name in OF_ONNX
