"""One writer at a time, in all processes and threads."""

from __future__ import annotations

import json
import os
import platform
import threading
import weakref
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
        _locks.add(self)

    def renew(self) -> None:
        """For a forked child, which has no thread that could let go of it; what protects from its parent stays."""
        self._threads = threading.RLock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it for a block.

        Raises:
            StoreBusyError: If another has it; names its process.
        """
        # A block that forks is left in the child as well, with the lock it was entered with.
        threads = self._threads
        with threads:
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


_locks: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for lock in list(_locks):
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
