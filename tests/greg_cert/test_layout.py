"""The layout contract: packages, imports between rooms, and what library code must not do."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import reduce
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

from greg_cert.certificates import format

ROOT = Path(__file__).parents[2]
ROOMS = ("greg_cert", "train", "verify")
TOP_LEVEL = {".ci", "benchmarks", "configs", "docs", "greg_cert", "tests", "train", "verify"}


def folders(room: str) -> Iterator[tuple[str, Path]]:
    """Package name and path of every folder of a room, links not followed."""
    for path, below, _ in os.walk(ROOT / room):
        below[:] = sorted(name for name in below if name != "__pycache__")
        parts = Path(path).relative_to(ROOT).parts
        yield ".".join(parts if room == "greg_cert" else ("greg_cert", *parts)), Path(path)


def sources() -> dict[str, ast.Module]:
    """Syntax tree of every module of the library, by its dotted name."""
    trees = {}
    for room in ROOMS:
        for package, folder in folders(room):
            for file in sorted(folder.glob("*.py")):
                name = package if file.stem == "__init__" else f"{package}.{file.stem}"
                trees[name] = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    return trees


TREES = sources()


def imported(tree: ast.Module) -> set[str]:
    """Dotted names of all that a module imports, inside functions as well."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def is_cli(name: str) -> bool:
    return inside(name, "greg_cert.cli") or name == "greg_cert.__main__"


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def tracked() -> list[str]:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip(f"git cannot list files: {listed.stderr.decode().strip()}")
    return [name for name in listed.stdout.decode().split("\0") if name]


def links() -> list[str]:
    """Top-level folders that are linked into the package."""
    return sorted(path.name for path in (ROOT / "greg_cert").iterdir() if path.is_symlink())


def test_pyproject_lists_every_package() -> None:
    found = {
        name for room in ROOMS for name, path in folders(room) if (path / "__init__.py").is_file()
    }
    found |= {f"greg_cert.{name}" for name in links()}  # configs holds no modules
    assert sorted(pyproject()["tool"]["setuptools"]["packages"]) == sorted(found)


def test_every_folder_with_modules_is_a_package() -> None:
    bare = [
        name
        for room in ROOMS
        for name, path in folders(room)
        if any(path.glob("*.py")) and not (path / "__init__.py").is_file()
    ]
    assert bare == []


def test_pyproject_says_where_the_linked_folders_are() -> None:
    expected = {"greg_cert": "greg_cert", **{f"greg_cert.{name}": name for name in links()}}
    assert pyproject()["tool"]["setuptools"]["package-dir"] == expected
    assert {"train", "verify"} <= set(links()) <= TOP_LEVEL


def test_every_other_file_of_a_package_is_package_data() -> None:
    patterns = pyproject()["tool"]["setuptools"].get("package-data", {})
    left_out = [
        f"{name}/{file.name}"
        for room in {*ROOMS, *links()}
        for name, path in folders(room)
        for file in path.iterdir()
        if file.is_file() and file.suffix not in {".py", ".pyc"}
        if not any(fnmatch(file.name, pattern) for pattern in patterns.get(name, []))
    ]
    assert left_out == []


@pytest.mark.parametrize("room", links())
def test_links_are_relative_and_lead_to_the_top_level(room: str) -> None:
    link = ROOT / "greg_cert" / room
    assert link.resolve() == ROOT / room
    assert os.readlink(link) == f"../{room}"  # noqa: PTH115  the text of the link, unresolved


def test_the_walk_sees_the_library() -> None:
    expected = {"greg_cert.scores", "greg_cert.models", "greg_cert.models.base"}
    assert (
        expected | {"greg_cert.train.objective.gradient_loss", "greg_cert.verify.certify"}
        <= TREES.keys()
    )
    assert "greg_cert.errors" in imported(TREES["greg_cert.scores"])


def read(tree: ast.Module) -> set[str]:
    """Modules of the library that one needs: of `from package import module` the module alone."""
    names = imported(tree) & TREES.keys()
    return {n for n in names if not any(inside(other, n) for other in names - {n})}


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Neither for type checking alone nor inside of a function."""
    TopologicalSorter({name: read(tree) - {name} for name, tree in TREES.items()}).prepare()


def test_a_circle_is_seen_wherever_an_import_stands() -> None:
    inner = ast.parse("def f():\n    from greg_cert.verify.graph import ops\n")
    assert read(inner) == {"greg_cert.verify.graph.ops"}
    typed = ast.parse("if TYPE_CHECKING:\n    from greg_cert.verify.graph.ops import Node\n")
    assert read(typed) == {"greg_cert.verify.graph.ops"}
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


PACKAGE = {
    "core": (),
    "certificates": ("core",),
    "data": ("core",),
    "models": ("core",),
    "config": ("certificates", "core", "data", "models"),
    "runs": ("config", "core", "data", "models"),
    "detectors": ("core", "data", "models", "runs"),
    "report": ("certificates", "config", "core", "runs"),
    "evaluation": ("core", "data", "detectors", "report", "runs"),
    "verify": (
        *("certificates", "config", "core", "data", "detectors", "evaluation", "models", "runs"),
    ),
    "train": ("config", "core", "data", "models", "report", "runs", "verify"),
    "cli": (
        *("certificates", "config", "core", "data", "detectors", "evaluation", "report", "runs"),
        *("train", "verify"),
    ),
}
"""Which room reads which; the core is the files beside the rooms."""
ORDER = {
    "base": (),
    "graph": ("base",),
    "operators": ("base", "graph"),
    "bounds": ("base", "graph", "operators"),
    "lipschitz": ("base", "graph", "operators", "bounds"),
    "radius": ("base", "graph", "operators", "bounds", "lipschitz"),
    "methods": ("base", "radius"),
    "attack": ("base", "graph"),
    "top": ("base", "graph", "bounds", "lipschitz", "radius", "methods", "attack"),
    "run": ("base", "graph", "operators", "bounds", "lipschitz", "attack", "top"),
}
"""Which part of `verify` reads which."""
BASE = {"memory", "norms", "per_sample", "scorer", "structure"}
MOST_FILES = 16
CORE = ("digests", "errors", "files", "frames", "metrics")  # what the format of certificates reads
REPORT = {
    "certificates": (),
    "report.tables": ("certificates", "report"),
    "report.figures": ("certificates", "report"),
    "report.latex": ("certificates", "report", "report.figures", "report.tables"),
    "report.page": ("certificates", "report", "report.figures", "report.tables"),
    "report": (
        *("certificates", "report.figures", "report.latex", "report.page", "report.tables"),
    ),
}
"""Which part of the reports reads which."""


def room_of(name: str) -> str:
    first = name.split(".")[1] if "." in name else ""
    return "cli" if is_cli(name) else first if first in PACKAGE else "core"


def test_rooms_read_only_those_below_them() -> None:
    seen: dict[str, set[str]] = {room: set() for room in PACKAGE}
    for name, tree in TREES.items():
        seen[room_of(name)] |= {room_of(n) for n in read(tree)} - {room_of(name)}
    assert seen == {room: set(below) for room, below in PACKAGE.items()}
    TopologicalSorter(PACKAGE).prepare()


def part_of_verify(name: str) -> str:
    """A folder, or of the files beside the folders those that all others may read, or the rest."""
    first = name.removeprefix("greg_cert.verify").strip(".").partition(".")[0]
    return first if first in ORDER else "base" if first in BASE else "top"


def test_parts_of_verify_read_only_those_below_them() -> None:
    seen: dict[str, set[str]] = {part: set() for part in ORDER}
    for name, tree in TREES.items():
        if inside(name, "greg_cert.verify"):
            parts = {part_of_verify(n) for n in read(tree) if inside(n, "greg_cert.verify")}
            seen[part_of_verify(name)] |= parts - {part_of_verify(name)}
    assert seen == {part: set(below) for part, below in ORDER.items()}


def part_of_report(name: str) -> str:
    """The innermost folder of a module, of those of the reports and the format they read."""
    return max((part for part in REPORT if inside(name, f"greg_cert.{part}")), key=len, default="")


def test_parts_of_a_report_read_only_those_below_them() -> None:
    seen: dict[str, set[str]] = {part: set() for part in REPORT}
    for name, tree in TREES.items():
        if part := part_of_report(name):
            seen[part] |= {part_of_report(n) for n in read(tree)} - {part, ""}
    assert seen == {part: set(below) for part, below in REPORT.items()}


def test_the_format_of_certificates_needs_nothing_but_the_core() -> None:
    read_by_it = {
        n
        for name, tree in TREES.items()
        if inside(name, "greg_cert.certificates")
        for n in read(tree)
        if not inside(n, "greg_cert.certificates")
    }
    assert read_by_it == {f"greg_cert.{name}" for name in CORE}


@pytest.mark.parametrize("room", ROOMS)
def test_no_folder_holds_more_than_one_can_look_through(room: str) -> None:
    many = {path: len(list(path.glob("*.py"))) for _, path in folders(room)}
    assert {path: n for path, n in many.items() if n > MOST_FILES} == {}


def test_train_asks_verify_for_the_constant_that_it_proves_and_for_nothing_else() -> None:
    crossed = {
        name: {i for i in imported(tree) if inside(i, "greg_cert.verify")}
        for name, tree in TREES.items()
        if inside(name, "greg_cert.train")
    }
    assert [name for name, found in crossed.items() if found] == [
        "greg_cert.train.objective.lipschitz"
    ]


def test_imports_are_absolute_and_by_the_installed_name() -> None:
    def bare(name: str) -> bool:
        return name.partition(".")[0] in {"train", "verify"}

    wrong = [
        f"{name}: line {node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.ImportFrom) and (node.level or bare(node.module or "")))
        or (isinstance(node, ast.Import) and any(bare(a.name) for a in node.names))
    ]
    assert wrong == []


def test_library_code_never_prints() -> None:
    printers = {"print", "rich.print", "builtins.print", "pprint"}
    printers |= {"sys.stdout.write", "sys.stderr.write"}
    found = [
        f"{name}: line {node.lineno}"
        for name, tree in TREES.items()
        if not is_cli(name)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in printers
    ]
    assert found == []


def public(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.AST]]:
    """Public functions, classes and methods."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        decorators = {ast.unparse(d).rpartition(".")[2] for d in node.decorator_list}
        if node.name.startswith("_") or decorators & {"overload", "override"}:
            continue
        yield f"{prefix}.{node.name}", node
        if isinstance(node, ast.ClassDef):
            yield from public(node.body, f"{prefix}.{node.name}")


def test_everything_public_says_what_it_is() -> None:
    silent = [name for name, tree in TREES.items() if not ast.get_docstring(tree)]
    silent += [
        name
        for module, tree in TREES.items()
        for name, node in public(tree.body, module)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if not ast.get_docstring(node)
    ]
    assert silent == []


def test_top_level_folders_are_those_of_the_design() -> None:
    present = {name.split("/")[0] for name in tracked() if "/" in name}
    assert present <= TOP_LEVEL
    assert present >= {*ROOMS, "tests"}


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or what one finds in a module by it."""
    parts = name.split(".")
    for k in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:k]))
        except ModuleNotFoundError:
            continue
        try:
            reduce(getattr, parts[k:], found)
        except AttributeError:
            return False
        return True
    return False


def test_every_name_that_code_or_a_page_quotes_is_there() -> None:
    quoted: dict[str, str] = {}
    for file in tracked():
        if file.endswith((".py", ".md")) and not file.startswith("CHANGELOG"):
            text = (ROOT / file).read_text(encoding="utf-8")
            quoted |= dict.fromkeys(re.findall(r"`(greg_cert(?:\.\w+)+)", text), file)
    assert len(quoted) > 30
    assert {name: file for name, file in quoted.items() if not resolves(name)} == {}


def test_no_lock_file_is_tracked() -> None:
    names = {Path(name).name for name in tracked()}
    assert "pyproject.toml" in names
    assert "uv.lock" not in names


LONGEST, MOST_PARAMETERS = 350, 7
PUBLIC = {
    *("attack_radius", "build_model", "certify", "global_lipschitz_radius", "gradient_penalty"),
    *("lipschitz_bound", "score_bound", "smoothed_decisions", "venue_style", "verify_runs"),
    "write_report",
}
"""Functions of the documented interface, whose parameters are what users may say."""


def test_no_file_is_longer_than_one_can_read() -> None:
    lengths = {
        str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines())
        for room in ROOMS
        for _, folder in folders(room)
        for file in folder.glob("*.py")
    }
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}


def test_no_internal_function_takes_more_than_one_can_remember() -> None:
    many = {}
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(a.arg not in {"self", "cls"} for a in given)
            count += (node.args.vararg is not None) + (node.args.kwarg is not None)
            command = is_cli(name) and name.rpartition(".")[2] == node.name
            if count > MOST_PARAMETERS and not command and node.name not in PUBLIC:
                many[f"{name}.{node.name}"] = count
    assert many == {}


def test_the_files_of_the_format_are_named_in_its_room_alone() -> None:
    names = {format.CERTIFICATES, format.OOD_CERTIFICATES, format.OOD_SCORES, format.SCORES}
    names |= {format.SUMMARY, format.PICTURES}
    typed = {
        name: node.value
        for name, tree in TREES.items()
        if not inside(name, "greg_cert.certificates")
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert typed == {}
