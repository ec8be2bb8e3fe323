"""What has finished: ``results.jsonl``, one line a run, only ever appended to, by one process at a time."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from experiments.errors import ResultsError

if TYPE_CHECKING:
    from experiments.run import Run

FILE = "results.jsonl"
Row = dict[str, Any]
_PLACE = ("run", "arm", "regime", "seed", "width", "budget")


def read_rows(folder: Path) -> tuple[list[Row], list[str]]:
    """The rows in a folder, and a note for what had to be left out.

    A last line without its end was being written when the process died; it is left out, and the run it belongs to
    counts as not done. Any other unreadable line was damaged by something else and is an error.

    Raises:
        ResultsError: If a line in the middle cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return [], []
    content = path.read_bytes()
    whole, tail = _split(content)
    rows: list[Row] = []
    for number, line in enumerate(whole.splitlines(), start=1):
        if not line.strip():
            continue
        row = _parsed(line)
        if row is None:
            raise ResultsError(
                f"line {number} of {path} is no row of results: delete that line, and the run it belongs to is repeated"
            )
        rows.append(row)
    notes = (
        [f"the last line of {path} was cut off while it was written; its run will be repeated"]
        if tail
        else []
    )
    return rows, notes


class Results:
    """The results of a folder, open for adding to it.

    Use as a context manager: the folder is locked for as long as it is open, and the lock of a process that has died
    is no lock.

    Args:
        folder: Where ``results.jsonl`` lies or will lie.
        corpus: Fingerprint of the text; rows of another text are refused.
        study: Name of the study; rows of another one are refused.
        fresh: Set the results that are there aside and begin with none.

    Raises:
        ResultsError: On entering, if the folder cannot be written, is in use, or holds results of something else.
    """

    def __init__(self, folder: Path, corpus: str, study: str, *, fresh: bool = False) -> None:
        self.folder = folder
        self.fresh = fresh
        self.corpus = corpus
        self.study = study
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self._lock = FileLock(folder / ".lock", timeout=0)
        self._file = -1

    @property
    def finished(self) -> set[str]:
        """Keys of the runs whose own row is here, with all rows that were derived from it."""
        return finished(self.rows)

    def missing(self, runs: Sequence[Run]) -> list[Run]:
        """Those that have not finished, or have without the mixture with counts that is wanted now."""
        done = self.finished
        counted = {row["run"] for row in self.rows if (row.get("settings") or {}).get("counts")}
        return [
            run
            for run in runs
            if (key := run.key(self.corpus)) not in done
            or (run.settings.get("counts", False) and key not in counted)
        ]

    def check_revision(self, revision: str, remedy: str) -> None:
        """Refuse rows that other code made.

        Args:
            revision: Digest of the code that is to go on.
            remedy: What to do about it, for the message.

        Raises:
            ResultsError: If there are such rows.
        """
        others = sorted({str(row.get("code")) for row in self.rows} - {revision})
        if others:
            raise ResultsError(
                f"{self.folder / FILE} holds results of another revision of the code ({', '.join(others)}; this is "
                f"{revision}): {remedy}"
            )

    def look(self) -> None:
        """Read what is there, and refuse what opening would refuse, without opening anything.

        Raises:
            ResultsError: If there are results of something else.
        """
        self.rows, self.notes = read_rows(self.folder)
        self._check()

    def append(self, rows: Sequence[Row]) -> None:
        """Add the rows of one run; they are on the disk when this returns.

        The run's own row is written last: should the process die halfway, the run is repeated and nothing derived
        from it is missing. Of rows that are here twice, the last counts.
        """
        ordered = sorted(rows, key=lambda row: row.get("parent") is None)
        content = "".join(json.dumps(row) + "\n" for row in ordered).encode()
        while content:
            content = content[os.write(self._file, content) :]
        os.fsync(self._file)
        self.rows += ordered

    def __enter__(self) -> Results:
        claim(self.folder)
        try:
            self._lock.acquire()
        except Timeout:
            owner = _owner(self.folder)
            raise ResultsError(
                f"another mnemograph process{owner} is writing to {self.folder}: wait for it to end, or give another "
                "--out"
            ) from None
        try:
            (self.folder / ".owner").write_text(str(os.getpid()))
            aside = _set_aside(self.folder) if self.fresh else None
            self.rows, self.notes = read_rows(self.folder)
            if aside is not None:
                self.notes.append(f"earlier results are in {aside}")
            self._check()
            self._file = os.open(self.folder / FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._mend()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
        (self.folder / ".owner").unlink(missing_ok=True)
        self._lock.release()

    def _check(self) -> None:
        for row in self.rows:
            lacking = [column for column in _PLACE if row.get(column) is None]
            if lacking:
                raise ResultsError(
                    f"a row of {self.folder / FILE} lacks {', '.join(lacking)}: delete it ({json.dumps(row)[:60]}...), "
                    "or give another --out"
                )
        for column, ours, what in (("corpus", self.corpus, "text"), ("study", self.study, "study")):
            other = sorted({str(row.get(column)) for row in self.rows} - {ours})
            if other:
                raise ResultsError(
                    f"{self.folder / FILE} holds results of another {what} ({_short(other[0])}, this one is "
                    f"{_short(ours)}): give another --out, or --fresh to set them aside and begin anew"
                )

    def _mend(self) -> None:
        """Take the cut-off line away, so that the next row does not continue it."""
        size = os.fstat(self._file).st_size
        content = os.pread(self._file, size, 0)
        whole, tail = _split(content)
        if tail:
            os.ftruncate(self._file, len(whole))
        elif whole and not whole.endswith(b"\n"):
            os.write(self._file, b"\n")


def finished(rows: Sequence[Row]) -> set[str]:
    """Keys of the runs that are there whole; a run that diverged is too."""
    derived = Counter(parent for parent, *_ in {_names(row) for row in rows})
    own = {row["run"]: row.get("derived", 0) for row in rows if row.get("parent") is None and "run" in row}
    return {run for run, count in own.items() if derived[run] >= count}


def _names(row: Row) -> tuple[Any, ...]:
    return row.get("parent"), row.get("arm"), row.get("regime")


def claim(folder: Path) -> None:
    """Make sure that results can be written to a folder, before hours are spent on them.

    Raises:
        ResultsError: If they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ResultsError(f"cannot write to {folder} ({error.strerror}): give another --out") from error


def claimable(folder: Path) -> None:
    """What :func:`claim` would find out, without making a folder.

    Raises:
        ResultsError: If results cannot be written there.
    """
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise ResultsError(f"cannot write to {folder} ({above} is a file): give another --out")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ResultsError(f"cannot write to {folder} ({os.strerror(errno.EACCES)}): give another --out")


def conflicts(rows: Iterable[Row], planned: Mapping[tuple[Any, ...], str]) -> list[Row]:
    """Rows that claim the place of a planned run but were made with other settings.

    Args:
        rows: What is there.
        planned: :func:`place` of each planned run, and its key.
    """
    own = [row for row in rows if row.get("parent") is None]
    return [row for row in own if planned.get(place(row), row["run"]) != row["run"]]


def place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where a run stands in a report: no two rows may share it."""
    return row["arm"], row["regime"], row["seed"], row["width"], float(row["budget"])


def _set_aside(folder: Path) -> Path | None:
    path = folder / FILE
    if not path.exists():
        return None
    number = 1
    while (aside := folder / f"results.{number}.jsonl").exists():
        number += 1
    path.rename(aside)
    return aside


def _split(content: bytes) -> tuple[bytes, bytes]:
    """Whole lines, and what a torn write left at the end; a last row that only lacks its newline is whole."""
    end = content.rfind(b"\n") + 1
    tail = content[end:]
    return (content, b"") if _parsed(tail) is not None else (content[:end], tail)


def _parsed(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _owner(folder: Path) -> str:
    try:
        return f" ({(folder / '.owner').read_text()})"
    except OSError:
        return ""


def _short(value: str) -> str:
    return value[:12] if len(value) == 64 else value
