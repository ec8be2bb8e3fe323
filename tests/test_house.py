"""The laws of the house that no linter knows: where imports may stand, how files look, what names document."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("retrieval", "mann", "gnn", "experiments")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TEXT_SUFFIXES = {
    ".py",
    ".md",
    ".toml",
    ".txt",
    ".yaml",
    ".yml",
    ".cff",
    ".json",
    ".jsonl",
    ".html",
    ".cfg",
    "",
}
LEFT_OUT = {".git", ".hypothesis", ".venv", "runs", "outputs", "wandb", "__pycache__", "lightning_logs"}
# What a dependency brings along and may be imported without being declared again.
BROUGHT_ALONG = {"yaml", "PIL", "torchmetrics"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full module name of every import, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module


def project_files() -> Iterator[Path]:
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        hidden = any(part in LEFT_OUT or part.endswith((".egg-info", "_cache")) for part in parts)
        if not hidden and path.is_file() and path.suffix in TEXT_SUFFIXES:
            yield path


def test_only_runtime_imports_faiss():
    found = [relative(p) for p in SOURCES + TESTS for _, name in imports(p) if name.split(".")[0] == "faiss"]
    assert set(found) <= {"retrieval/runtime.py"}, f"import faiss from retrieval.runtime instead: {found}"


def test_torch_is_loaded_before_faiss():
    script = "import sys, retrieval; print([m for m in sys.modules if m in ('torch', 'faiss')])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() in ("['torch', 'faiss']", "['torch']"), run.stdout


def test_the_ledger_imports_nothing_of_ours():
    ours = [
        f"{relative(path)}:{line} imports {name}"
        for path in (ROOT / "experiments" / "ledger").rglob("*.py")
        for line, name in imports(path)
        if name.split(".")[0] in PACKAGES and not name.startswith("experiments.ledger")
    ]
    assert not ours


def test_a_memory_mechanism_imports_no_other():
    siblings = [
        f"{relative(path)}:{line} imports {name}"
        for path in (ROOT / "mann" / "memory").glob("*.py")
        if path.name != "__init__.py"
        for line, name in imports(path)
        if name.startswith("mann.memory") and name != "mann.memory.base"
    ]
    assert not siblings


def test_what_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[\[><=! ]", text)[0].lower().replace("-", "_") for text in project["dependencies"]}
    declared = {"faiss" if name == "faiss_cpu" else name for name in declared}
    allowed = declared | set(PACKAGES) | set(sys.stdlib_module_names) | BROUGHT_ALONG
    found = {name.split(".")[0]: relative(path) for path in SOURCES for _, name in imports(path)}
    missing = {name: path for name, path in found.items() if name not in allowed}
    assert not missing, f"add to [project] dependencies and constraints.txt: {missing}"


@pytest.mark.parametrize("package", PACKAGES)
def test_imported_packages_are_ours(package: str):
    home = Path(importlib.import_module(package).__file__ or "").parent
    assert home == ROOT / package, f"{package} is imported from {home}: another package or folder hides ours"
    assert (home / "py.typed").exists()


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=relative)
def test_files_are_short(path: Path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{lines} lines: split it along its ideas"


def test_no_drawer_for_everything():
    drawers = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
    assert not [relative(path) for path in SOURCES + TESTS if path.name in drawers]


def test_folders_of_tests_are_packages():
    folders = {path.parent for path in TESTS}
    assert not [relative(folder) for folder in folders if not (folder / "__init__.py").exists()]


def test_a_todo_carries_an_issue():
    todo = re.compile(r"\b(?:TODO|FIXME|XXX)\b(?!\(#\d+\))")
    loose = [
        f"{relative(path)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if todo.search(line)
    ]
    assert not loose, f"write TODO(#issue): {loose}"


def test_no_path_of_one_machine():
    # Assembled, so that this file does not find itself. URLs and $HOME-relative paths are fine.
    roots = "|".join(("home/\\w", "Users/\\w", "root/", "work/", "opt/\\w", "tmp/\\w", "mnt/\\w"))
    pattern = re.compile(rf"(?<![\w./:}}~-])/(?:{roots})")
    found = [
        f"{relative(path)}:{number}: {line.strip()[:100]}"
        for path in project_files()
        if path.name != "LICENSE"
        for number, line in enumerate(
            path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1
        )
        if pattern.search(line)
    ]
    assert not found


def exported() -> Iterator[tuple[str, object]]:
    """Every class and function in ``__all__`` of the three libraries and of the ledger."""
    for module_name in ("retrieval", "mann", "mann.memory", "gnn", "experiments.ledger"):
        module = importlib.import_module(module_name)
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                yield f"{module_name}.{name}", thing


def annotations_of(thing: object) -> str:
    """The annotations of what a user calls: ``forward`` or ``__call__`` of a class, or the function itself."""
    call = thing
    if isinstance(thing, type):
        call = vars(thing).get("forward") or vars(thing).get("__call__") or thing.__init__
    call = getattr(call, "__wrapped__", call)
    return " ".join(str(annotation) for annotation in getattr(call, "__annotations__", {}).values())


def parameters_of(thing: object) -> set[str]:
    """Names a caller passes: those of the constructor a class defines itself, or of the function."""
    call = vars(thing).get("__init__") if isinstance(thing, type) else thing
    code = getattr(getattr(call, "__wrapped__", call), "__code__", None)
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if code else ()
    return {name for name in names if name != "self"}


def test_exported_names_are_documented():
    faults = []
    for name, thing in exported():
        text = thing.__doc__ or ""
        # A dataclass without a docstring is given its signature as one.
        if not text.strip() or text.startswith(f"{name.rsplit('.', 1)[1]}("):
            faults.append(f"{name}: no docstring")
            continue
        # The fields of a dataclass are declared under its docstring; an error is raised by us, not built by users.
        plain = is_dataclass(thing) or (isinstance(thing, type) and issubclass(thing, BaseException))
        if parameters_of(thing) and not plain and not re.search(r"^\s*(Args|Attributes):", text, re.M):
            faults.append(f"{name}: no Args")
        if re.search(r"Tensor|ndarray", annotations_of(thing)) and not re.search(r"^\s*Shapes:", text, re.M):
            faults.append(f"{name}: takes tensors, no Shapes")
    assert not faults, "\n".join(faults)


def test_paths_in_the_architecture_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    house = re.search(r"^```text\n(.*?)^```$", text, re.M | re.S)
    assert house, "docs/architecture.md has no ```text block with the layout"
    room, missing = "", []
    for line in house[1].splitlines():
        name = line.split()[0]
        room = room if line.startswith(" ") else name
        path = ROOT / (room + name if line.startswith(" ") else name)
        if not path.exists():
            missing.append(relative(path))
    assert not missing
