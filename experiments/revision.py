"""Which code made a number: a digest that comments, docstrings and formatting do not change."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import subprocess
from functools import cache
from pathlib import Path

# What a run's numbers depend on. How runs are scheduled, shown and reported is left out.
DECISIVE = (
    "mann",
    "gnn",
    "retrieval",
    "experiments.arms",
    "experiments.controls",
    "experiments.data",
    "experiments.derived",
    "experiments.evaluation",
    "experiments.ledger",
    "experiments.neighborhood",
    "experiments.provision",
    "experiments.run",
    "experiments.training",
    "experiments.workspace",
)


@cache
def code_digest(modules: tuple[str, ...] = DECISIVE) -> str:
    """Twelve hexadecimal digits over what the code of modules and packages says.

    Args:
        modules: Import names; packages stand for everything in them.
    """
    digest = hashlib.sha256()
    for name in modules:
        for path in _files(name):
            digest.update(f"{name} {path.name} {_meaning(path)}".encode())
    return digest.hexdigest()[:12]


@cache
def commit() -> str:
    """The git commit of the sources, for people; empty where there is no repository."""
    try:
        shown = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return shown.stdout.strip()


def _files(name: str) -> list[Path]:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no source file for {name}")
    origin = Path(spec.origin)
    return sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]


def _meaning(path: Path) -> str:
    tree = ast.parse(path.read_bytes())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)
