"""What a run has logged so far, from the file W&B writes when it is offline.

``run-ID.wandb`` is a log in LevelDB's format (a header of 7 bytes; blocks of 32 KiB; pieces of a record with checksum,
length and kind) whose records are protobuf messages. Both are W&B's own affair and could change: everything that
knows about them is in this file.
"""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path
from typing import Any

from experiments.errors import RunError

MAGIC = b":W&B"
BEGIN = 7
BLOCK = 32 * 1024
PIECE = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
FLUSH = "x_transaction_log_flush_interval"
_PLACE = re.compile(r"(\S*offline-run-\S+)")


class RunLog:
    """The log of one run; each :meth:`read` goes on where the last one ended.

    Args:
        path: The ``.wandb`` file.
        metric: The metric to follow; ``None`` for none.
    """

    def __init__(self, path: Path, metric: str | None) -> None:
        self.path = path
        self.metric = metric
        self.values: list[float] = []
        self.names: set[str] = set()
        self._last: float | None = None
        self._summary: float | None = None
        self._at = BEGIN
        self._parts = b""

    @property
    def value(self) -> float | None:
        """The metric in the run's summary: what it logged last, unless it defined another summary.

        None where that is not finite, whatever came before.
        """
        return self._last if self._summary is None else self._summary

    def read(self) -> None:
        """Take in what was written since.

        Raises:
            RunError: If the file is not as this version knows it.
        """
        with self.path.open("rb") as file:
            head = file.read(BEGIN)
            if len(head) < BEGIN:
                return
            if not head.startswith(MAGIC):
                raise _unknown(self.path, f"it begins with {head!r}")
            file.seek(self._at)
            content = file.read()
        for record in self._records(content):
            self._take(record)

    def _records(self, content: bytes) -> list[bytes]:
        """The whole records in what was read; a piece that is still being written is left for the next time."""
        found: list[bytes] = []
        begin = position = 0
        while True:
            left = BLOCK - (self._at + position) % BLOCK
            if left < PIECE.size:
                position += left
                continue
            if position + PIECE.size > len(content):
                break
            _, length, kind = PIECE.unpack_from(content, position)
            end = position + PIECE.size + length
            if kind not in (FULL, FIRST, MIDDLE, LAST) or PIECE.size + length > left:
                raise _unknown(self.path, f"at byte {self._at + position} there is no record")
            if end > len(content):
                break
            self._parts += content[position + PIECE.size : end]
            begin = position = end
            if kind in (FULL, LAST):
                found.append(self._parts)
                self._parts = b""
        self._at += begin
        return found

    def _take(self, content: bytes) -> None:
        from wandb.proto import wandb_internal_pb2

        record: Any = vars(wandb_internal_pb2)["Record"]()
        try:
            record.ParseFromString(content)
        except Exception as error:  # the error of protobuf, which wandb brings along
            raise _unknown(self.path, str(error)) from error
        for item in record.history.item:
            name = _name(item)
            self.names.add(name)
            if name == self.metric:
                self._last = _number(item.value_json)
                self.values += [] if self._last is None else [self._last]
        for item in record.summary.update:
            if _name(item) == self.metric:
                self._summary = _number(item.value_json)


def find_log(folder: Path, run: str, said: str) -> Path | None:
    """The log of a trial, once there is one.

    Args:
        folder: The trial's own, where W&B writes unless the program says otherwise.
        run: Id of the run.
        said: What the program has printed; W&B prints where it writes.
    """
    places = [*folder.rglob("offline-run-*"), *(Path.cwd() / "wandb").glob(f"offline-run-*-{run}")]
    places += [Path(place) for place in _PLACE.findall(said)]
    logs = [log for place in places for log in place.glob("run-*.wandb")]
    # One that was interrupted and begun again has two, in folders named by the time.
    return max(logs, key=lambda log: log.parent.name) if logs else None


def can_follow() -> bool:
    """Whether this W&B writes its log while the run goes on, not only at the end."""
    import wandb

    return FLUSH in getattr(wandb.Settings, "model_fields", {})


def _name(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def _number(text: str) -> float | None:
    """A finite number, or a summary such as ``{"min": 0.1}`` by its only value."""
    value = json.loads(text)
    if isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _unknown(path: Path, why: str) -> RunError:
    import wandb

    return RunError(
        f"{path} is no log that this version of mnemograph reads ({why}; wandb {wandb.__version__}): "
        "install the wandb that constraints.txt names"
    )
