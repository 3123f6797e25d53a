"""Keys that stand twice, in every text that is read as YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from greg_cert.config import load_any, load_config, load_own_model
from greg_cert.config.overrides import parse_override
from greg_cert.config.yaml_text import DuplicateKey, load_yaml
from greg_cert.errors import ConfigError, RunError
from greg_cert.runs.records import RunFolder

EXPERIMENT = """\
data: {id: {source: digits}, ood: [{source: uniform, n: 20}]}
model: {name: mlp}
train:
  stages: [{method: ce, epochs: 1, lr: 0.1}]
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "the key a twice, in lines 1 and 3"),
        ("a:\n  b: {c: 1,\n    c: 1}\n", "the key a.b.c twice, in lines 2 and 3"),
        ("a: {x: 1}\nb: 1\n\na:\n  y: 2\n", "the key a twice, in lines 1 and 4"),  # a whole section
        ("s: [{n: 1}, {n: 1, m: 2, n: 3}]", "the key s[1].n twice, in line 1"),
        ('{"a": {"b": 1,\n"b": 2}}', "the key a.b twice, in lines 1 and 2"),  # JSON
        ('a: 1\n"a": 2', "the key a twice"),
        ("1: x\n0x1: y", "the key 0x1 twice"),
        ("yes: x\ntrue: y", "the key true twice"),
        ("x: &x {a: 1, a: 2}\ny: *x", "the key x.a twice"),
        ("x: &x {a: 1}\ny: {<<: *x, b: 1, b: 2}", "the key y.b twice"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n  <<: *x\n", "the key y.<< twice, in lines 3 and 4"),
    ],
)
def test_a_key_that_stands_twice(text: str, said: str) -> None:
    with pytest.raises(DuplicateKey) as error:
        load_yaml(text)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("text", "value"), [("12:30:45", "45045"), ("010", "8"), ("-1:30.5", "-90.5"), ("0_1", "1")]
)
def test_numbers_of_another_base(text: str, value: str) -> None:
    with pytest.raises(yaml.YAMLError, match=f"decimal number.* but got {text}, which is {value}"):
        load_yaml(f"a: [{text}]")
    assert load_yaml(f"a: '{text}'") == {"a": text}
    assert load_yaml("a: [0x10, 0, 0.5, 1_000, -0]") == {"a": [16, 0, 0.5, 1000, 0]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "[1, {a: 1}, {a: 1}]",
        "a: {b: 1}\nb: {b: 1}",
        '1: x\n"1": y',
        "x: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}\nz: {<<: [*x, {a: 4}], c: *x}",
        "d: 2020-01-02",
    ],
)
def test_other_yaml_is_read_as_pyyaml_reads_it(text: str) -> None:
    assert load_yaml(text) == yaml.safe_load(text)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("d: 2024-02-30", "of the kind timestamp, but got '2024-02-30', in line 1, column 4"),
        ("d: 2024-01-01 10:00:00 +99:00", "of the kind timestamp"),
        ("a: 1\nb: !!int abc", "of the kind int, but got 'abc', in line 2"),
        ("!!int ''", "of the kind int"),
        ("!!bool x", "of the kind bool"),
        ("!!timestamp x", "of the kind timestamp"),
        ("1" * 5000, "of the kind int, but got '111"),
        ("0x" + "f" * 6000, "at most 64 bits"),
        ("99999999999999999999", "at most 64 bits"),
        ("[" * 3000, "at most 50 levels"),
        ("- " * 3000, "at most 50 levels"),
        ("{a: " * 900, "at most 50 levels"),
        ("a: &a {b: *a}", "no section within itself"),
        (BOMB, "at most 100000 values"),
        (MERGE_BOMB, "at most 100000 values"),
        ('"\\0"', "without NUL"),
        ('"\\ud800"', "without NUL and surrogates"),
        ("{!!seq a: 1}", "sequence node"),
        ("a: [", "parsing a flow node"),
        ("a: !!python/object:os.x y", "constructor"),
    ],
)
def test_what_is_no_yaml_is_one_kind_of_error(text: str, said: str) -> None:
    with pytest.raises(yaml.YAMLError) as error:
        load_yaml(text)
    assert said in str(error.value)
    assert len(str(error.value)) < 400


def test_every_file_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(EXPERIMENT + "model: {name: cnn_small}\n")
    line = r"config\.yaml, but got: the key model twice, in lines 2 and 5$"
    for read in (load_config, load_any, load_own_model):
        with pytest.raises(ConfigError, match=r"^config: expected valid YAML in .*" + line):
            read(path)
    with pytest.raises(RunError, match="the key model twice, in lines 2 and 5"):
        _ = RunFolder(tmp_path).config


def test_a_value_that_is_typed() -> None:
    with pytest.raises(ConfigError, match=r"^--set data\.id: .*\(the key source twice, in line 1"):
        parse_override("data.id={source: digits, limit: 3, source: faces}")
    with pytest.raises(ConfigError, match=r'^--set data\.id: .*\(the key "?a twice, in line 1'):
        parse_override('data.id={"a": 1, "a": 2}')
    with pytest.raises(ConfigError, match="expected a value in YAML"):
        parse_override("name=2020-99-99")
    assert parse_override("data.id={source: digits, limit: 3}").value["limit"] == 3
