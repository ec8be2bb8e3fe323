"""One writer at a time, in all processes and threads."""

from __future__ import annotations

import json
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["StoreBusyError", "WriterLock"]


class StoreBusyError(RuntimeError):
    """Another process writes to the store; the message says which. Nothing was changed."""


class WriterLock:
    """The right to write to a folder. The system takes it from a process that dies.

    Threads that share this object wait for each other; whoever else holds the lock is an error, after a moment.

    Args:
        folder: What is written to.
        wait_seconds: The moment.
    """

    def __init__(self, folder: Path, *, wait_seconds: float = 0.5) -> None:
        self.folder = folder
        self.wait_seconds = wait_seconds
        self._threads = threading.RLock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it for a block.

        Raises:
            StoreBusyError: If another has it; names its process.
        """
        with self._threads:
            lock, holder = FileLock(self.folder / "writer.lock"), self.folder / "writer.json"
            try:
                lock.acquire(timeout=self.wait_seconds)
            except Timeout:
                raise StoreBusyError(
                    f"{self.folder} is being written by {_who(holder)}: wait until it is done, or end it. Searching is "
                    "possible meanwhile"
                ) from None
            try:
                holder.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}))
                yield
            finally:
                lock.release()


def _who(holder: Path) -> str:
    try:
        about = json.loads(holder.read_text())
        return f"process {about['pid']} on {about['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has begun this instant
        return "another process"
