"""The folder of a sweep: ``sweep.json`` says what it is, ``trials.jsonl`` what has ended."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from experiments.errors import ResultsError
from experiments.results import claim
from experiments.revision import code_digest
from experiments.sweep.config import Sweep
from experiments.sweep.trial import FAILED, Trial

ABOUT = "sweep.json"
TRIALS = "trials.jsonl"
RUNS = "trials"
_VARIABLE = re.compile(r"\$\{envvar:(\w+)\}")
_BEGIN = 1 << 16
# What may change while a sweep goes on: it changes no trial.
FREE = ("name", "description", "project", "entity", "run_cap")


class Store:
    """A sweep's folder, open for adding trials to it, by one process at a time.

    Args:
        folder: Where.
        sweep: The file; a folder begun with another one is refused.
        seed: Of the sampler.
        fresh: Set aside what is there and begin anew.
        retry: Forget failed trials, so that they are run again.
        mixed: Go on though files the command names have changed.

    Raises:
        ResultsError: On entering, if the folder is in use, cannot be written, or belongs to another sweep.
    """

    def __init__(
        self,
        folder: Path,
        sweep: Sweep,
        seed: int,
        *,
        fresh: bool = False,
        retry: bool = False,
        mixed: bool = False,
    ) -> None:
        self.folder = folder
        self.fresh = fresh
        self.retry = retry
        self.mixed = mixed
        self.trials: list[Trial] = []
        self.notes: list[str] = []
        self.id = secrets.token_hex(4)
        self._about = {"definition": _definition(sweep, seed), "files": _files(sweep)}
        self._lock = FileLock(folder / ".lock", timeout=0)
        self._file = -1

    def run(self, number: int) -> str:
        """W&B's id for a trial: the same after an interruption, another one in every folder."""
        return f"{self.id}-{number:04d}"

    def place(self, number: int) -> Path:
        """The folder of one trial."""
        return self.folder / RUNS / f"{number:04d}"

    def append(self, trial: Trial) -> None:
        """Add a trial; it is on the disk when this returns."""
        content = f"{json.dumps(trial.row())}\n".encode()
        while content:
            content = content[os.write(self._file, content) :]
        os.fsync(self._file)
        self.trials.append(trial)

    def __enter__(self) -> Store:
        claim(self.folder)
        try:
            self._lock.acquire()
        except Timeout:
            raise ResultsError(
                f"another mnemograph process works on {self.folder}: wait for it to end, or give another --out"
            ) from None
        try:
            if self.fresh:
                self._set_aside()
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
        self._lock.release()

    def _open(self) -> None:
        path = self.folder / TRIALS
        about = self.folder / ABOUT
        if about.exists():
            self.id = self._check(_described(about))
        else:
            if path.exists():
                raise ResultsError(f"{path} is there without {ABOUT}: give another --out, or --fresh")
            self._write(about, json.dumps({"id": self.id, **self._about}, indent=1) + "\n")
        self.trials = self._read(path)
        kept = [trial for trial in self.trials if not (self.retry and trial.state == FAILED)]
        self.trials = kept
        # Written anew, without a line that was cut off and without what is to be repeated.
        self._write(path, "".join(f"{json.dumps(trial.row())}\n" for trial in kept))
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)

    def _read(self, path: Path) -> list[Trial]:
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        trials: dict[int, Trial] = {}
        for number, line in enumerate(lines, start=1):
            try:
                trial = Trial.of(json.loads(line))
                trials[trial.number] = trial
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                if not line.endswith(b"\n"):
                    self.notes.append(
                        "the last line was cut off while it was written; that trial is repeated"
                    )
                    break
                raise ResultsError(
                    f"line {number} of {path} is no trial: delete that line, and the trial will be repeated"
                ) from error
        return list(trials.values())

    def _check(self, about: dict[str, Any]) -> str:
        again = "give another --out, or --fresh to set its trials aside and begin anew"
        ours = self._about
        changed = [
            key
            for key in sorted({*about["definition"], *ours["definition"]})
            if about["definition"].get(key) != ours["definition"].get(key)
        ]
        if changed:
            raise ResultsError(f"{self.folder} was begun with another {' and '.join(changed)}: {again}")
        files = [name for name, digest in ours["files"].items() if about["files"].get(name) != digest]
        if files and not self.mixed:
            raise ResultsError(
                f"{', '.join(files)} changed since {self.folder} was begun: {again}; --allow-mixed goes on"
            )
        return str(about["id"])

    def _set_aside(self) -> None:
        number = 1
        while (aside := self.folder / f"earlier-{number}").exists():
            number += 1
        present = [self.folder / name for name in (ABOUT, TRIALS, RUNS) if (self.folder / name).exists()]
        if present:
            aside.mkdir()
            for path in present:
                shutil.move(path, aside / path.name)
            self.notes.append(f"earlier trials are in {aside}")

    def _write(self, path: Path, content: str) -> None:
        beside = path.with_name(f"{path.name}.new")
        with beside.open("w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)


def _definition(sweep: Sweep, seed: int) -> dict[str, Any]:
    """What decides the trials, as JSON gives it back."""
    decisive = {key: value for key, value in sweep.raw.items() if key not in FREE}
    return json.loads(json.dumps({**decisive, "seed": seed}, default=str))


def _described(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_bytes())
    except ValueError:
        about = None
    parts = about if isinstance(about, dict) else {}
    if not all(
        isinstance(parts.get(key), kind) for key, kind in (("id", str), ("definition", dict), ("files", dict))
    ):
        raise ResultsError(f"{path} does not say which sweep this is: give another --out, or --fresh")
    return parts


def _files(sweep: Sweep) -> dict[str, str]:
    """What trials rest on beside the file: another training script or other data, another sweep.

    Digests of the files and folders that the command names, also by a variable or behind ``--option=``; values of the
    variables; and what mnemograph's own code says, where it is what trials run.
    """
    words = [*sweep.command, str(sweep.raw.get("program", ""))]
    variables = {name: os.environ.get(name, "") for word in words for name in _VARIABLE.findall(word)}
    found = {f"${name}": value for name, value in variables.items()}
    for word in words:
        word = _VARIABLE.sub(lambda match: variables[match[1]], word)
        for path in {Path(part) for part in (word, word.partition("=")[2]) if part}:
            if path.is_file() or path.is_dir():
                found[str(path)] = _digest(path)
    if {"mnemograph", "experiments"} & set(words):
        found["mnemograph"] = code_digest()
    return dict(sorted(found.items()))


def _digest(path: Path) -> str:
    """Of a file what it holds; of a folder the names and sizes of its files and how each begins."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file()):
        with file.open("rb") as content:
            begin = content.read(-1 if path.is_file() else _BEGIN)
        digest.update(f"{file.relative_to(path)} {file.stat().st_size} ".encode() + begin)
    return digest.hexdigest()[:16]
