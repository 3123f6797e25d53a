from __future__ import annotations

import subprocess
import sys

import pytest

from greg_cert.detectors.catalogue import DETECTORS
from greg_cert.detectors.names import check_options, parse_detector
from greg_cert.errors import UsageError


@pytest.mark.parametrize("name", DETECTORS)
def test_a_name_alone_sets_no_option(name: str) -> None:
    assert parse_detector(name) == (name, {})
    assert parse_detector(f" {name.upper()} ") == (name, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ash:percentile=0.8", ("ash", {"percentile": 0.8})),
        ("ash-s: percentile = 0", ("ash", {"percentile": 0.0})),
        ("gen:gamma=0.01, top=10", ("gen", {"gamma": 0.01, "top": 10})),
        ("knn:k=5", ("knn", {"k": 5})),
        ("energy:temperature=2", ("ebo", {"temperature": 2.0})),
        ("max_logit", ("mls", {})),
        ("max_softmax", ("msp", {})),
    ],
)
def test_options_are_read(text: str, expected: tuple[str, dict[str, float]]) -> None:
    name, options = parse_detector(text)
    assert (name, options) == expected
    assert {k: type(v) for k, v in options.items()} == {k: type(v) for k, v in expected[1].items()}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("vimm", r"did you mean 'vim'\?.*got 'vimm'"),
        ("", "got ''"),
        ("ash:percentil=0.9", r"percentile \(did you mean 'percentile'\?\), but got 'percentil'"),
        ("msp:k=3", "expected no option, but got 'k'"),
        ("knn:k=0", "expected k to be an integer >= 1, but got 0"),
        ("knn:k=2.5", "expected k to be an integer >= 1, but got 2.5"),
        ("knn:k=many", "expected k to be a number, but got 'many'"),
        ("knn:k=inf", "expected k to be an integer >= 1, but got inf"),
        ("ash:percentile=1", r"expected percentile to be a number in \[0, 1\), but got 1.0"),
        ("ash:percentile=90", r"in \[0, 1\), but got 90.0"),
        ("react:percentile=nan", r"in \[0, 1\), but got nan"),
        ("odin:eps=-0.1", "expected eps to be a finite number >= 0, but got -0.1"),
        ("ebo:temperature=0", "expected temperature to be a finite number > 0, but got 0.0"),
        ("knn:", "expected option=value pairs after ':', but got ''"),
        ("knn:k", "but got 'k'"),
        ("knn:k=1,k=2", "expected k once"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(text: str, part: str) -> None:
    with pytest.raises(UsageError, match=part) as caught:
        parse_detector(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [True, "3", [3]])
def test_values_of_another_kind_are_refused(value: object) -> None:
    with pytest.raises(UsageError, match="expected k to be an integer"):
        check_options("knn", {"k": value})


def test_none_is_the_same_as_nothing() -> None:
    assert check_options("knn", {"k": None}) == {}


def test_published_defaults_pass_their_own_check() -> None:
    for name, info in DETECTORS.items():
        given = {k: v for k, v in info.defaults.items() if v is not None}
        assert check_options(name, given) == given
        assert all(option.rule for option in info.options)


def test_names_are_judged_without_torch() -> None:
    code = (
        "import sys; from greg_cert.detectors import DETECTORS, parse_detector; "
        "parse_detector('ash:percentile=0.9'); "
        "assert not {'torch', 'numpy', 'pytorch_ood'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
