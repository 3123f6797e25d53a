"""What the README and the pages tell people to run, runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import typer
import yaml

from greg_cert.cli import app
from greg_cert.config import parse_config
from greg_cert.config.own_model import OwnModelConfig

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_evaluator_example(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    exec(compile(EXAMPLES[0], "README.md", "exec"), {})
    accuracy, _, table = capsys.readouterr().out.partition("\n")
    assert 0 <= float(accuracy) <= 1
    assert "fpr95_ood_recall" in table
    assert "noise" in table


def test_the_detector_example(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    found: dict[str, object] = {}
    exec(compile(EXAMPLES[1], "README.md", "exec"), found)
    scores = found["scores"]
    assert isinstance(scores, torch.Tensor)
    assert scores.shape == (8,)
    assert scores.isfinite().all()
    assert "tensor" in capsys.readouterr().out


def test_the_certificate_example(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(EXAMPLES[2], "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "radius_certified" in shown
    assert len(shown.splitlines()) == 9  # a header and eight samples
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_and_links_that_pages_name_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for config in re.findall(r"configs/\w+\.yaml", text):
        assert (ROOT / config).is_file(), config
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", text):
        other = page if not target else page.parent / target
        heads = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), flags=re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
        assert anchor in slugs, (target, anchor)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_options_of_commands_that_pages_show_exist(page: Path) -> None:
    commands = typer.main.get_command(app)
    for line in re.findall(r"^\s*(greg-cert .*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        words = shlex.split(line, comments=True)[1:]
        command = commands
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
        known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
        used = {word for word in words if word.startswith("--")}
        assert used <= known | {"--help", "--install-completion"}, (line, used - known)


def test_configurations_that_pages_show_are_valid() -> None:
    seen = 0
    for page in PAGES:
        for text in re.findall(r"```yaml\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL):
            raw = yaml.safe_load(text)
            if "factory" in raw.get("model", {}) and "train" not in raw:
                OwnModelConfig.model_validate(raw)
            elif "data" in raw:
                parse_config(raw)
            else:
                continue
            seen += 1
    assert seen >= 2


def _commands(group: object, name: str = "greg-cert") -> list[tuple[str, object]]:
    inner = getattr(group, "commands", None)
    if inner is None:
        return [(name, group)]
    return [pair for key, one in inner.items() for pair in _commands(one, f"{name} {key}")]


def test_every_command_has_an_example_of_itself_json_and_quiet() -> None:
    found = _commands(typer.main.get_command(app))
    assert len(found) == 12
    for name, command in found:
        text = command.help  # type: ignore[attr-defined]
        options = {o for p in command.params for o in p.opts}  # type: ignore[attr-defined]
        assert f"Example: {name} " in text, name
        assert {"--json", "--quiet"} <= options, name
        for p in command.params:  # type: ignore[attr-defined]
            assert getattr(p, "help", None), (name, p.name)
