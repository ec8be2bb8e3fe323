"""What goes wrong in a run or a study, in one line that says what to do."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

_OURS = ("experiments", "gnn", "mann", "retrieval")


class RunError(ValueError):
    """A run that cannot be started as asked for."""


class UnaffordableError(RunError):
    """A run whose budget pays for no step."""


class ResultsError(ValueError):
    """Results that do not belong together, or cannot be read or written."""


def own_line(error: BaseException) -> str:
    """``mine.py, line 3``: the innermost line that is neither ours nor installed; empty where there is none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(Path(frame.filename))]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def told(error: BaseException) -> str:
    """``KeyError: 'x'``: what happened, in one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _is_own(file: Path) -> bool:
    house, library = Path(__file__).parents[1], Path(sysconfig.get_paths()["stdlib"])
    ours = file.is_relative_to(house) and file.relative_to(house).parts[0] in _OURS
    installed = {"site-packages", "dist-packages"} & set(file.parts) or file.is_relative_to(library)
    return file.exists() and not ours and not installed
