"""What the site has beside the pages here: the files of the top folder, and the API reference."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
TOP = {"README.md": "index.md", "CONTRIBUTING.md": "", "CHANGELOG.md": "", "CITATION.cff": ""}
"""Files that stand outside of the documentation's folder, and their names in the site."""
PACKAGES = ("verify", "train", "data", "models", "detectors", "evaluation", "report", "config")
"""Packages whose `__init__` names what they offer."""
MODULES = ("scores", "metrics", "outlier_losses", "runs.subjects", "errors")
"""Modules that offer all that is public in them."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The navigation, with the reference at its end."""
    names = (*PACKAGES, *MODULES)
    reference = [{f"greg_cert.{name}": f"api/{name}.md"} for name in names]
    config.nav = [*(config.nav or []), {"Reference": reference}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages, and those that are made of files elsewhere."""
    for name, title in TOP.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        for other, page in TOP.items():
            text = text.replace(f"]({other})", f"]({page or other})")
        text = re.sub(r"\]\(docs/", "](", text)
        files.append(File.generated(config, title or name, content=text))
    for name in PACKAGES:
        offered = "\n".join(f"::: {path}\n" for path in named_in(name))
        text = f"# greg_cert.{name}\n\n{docstring(name)}\n\n{offered}"
        files.append(File.generated(config, f"api/{name}.md", content=text))
    for name in MODULES:
        options = "    options: {heading_level: 1, show_root_full_path: true}\n"
        text = f"::: greg_cert.{name}\n{options}"
        files.append(File.generated(config, f"api/{name}.md", content=text))
    return files


def _tree(package: str) -> ast.Module:
    return ast.parse((ROOT / "greg_cert" / package / "__init__.py").read_text(encoding="utf-8"))


def docstring(package: str) -> str:
    """What a package says of itself."""
    return ast.get_docstring(_tree(package)) or ""


def named_in(package: str) -> list[str]:
    """Where all that a package's `__init__` offers is defined."""
    return [
        f"{node.module}.{alias.name}"
        for node in ast.walk(_tree(package))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("greg_cert.")
        for alias in node.names
    ]
