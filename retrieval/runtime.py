"""The one door to FAISS: import order, threads, forks and process-wide settings.

FAISS and PyTorch each bring an OpenMP runtime. Imported in this order they share one; the other way round
each keeps its own pool, which oversubscribes the machine and hangs forked data-loader workers. FAISS also keeps
its work counters and its BLAS switch in process-wide variables. Everything of that kind is handled here, and no
other module imports ``faiss``.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import torch  # isort: skip  (must come before faiss)
import faiss as _faiss  # isort: skip
from threadpoolctl import threadpool_limits  # isort: skip

# FAISS ships type stubs that know half of its names.
faiss: Any = _faiss

__all__ = [
    "ProcessLock",
    "blas_threshold",
    "counters_lock",
    "faiss",
    "faiss_settings",
    "faiss_threads",
    "threads",
]


class ProcessLock:
    """A re-entrant lock that a forked child gets afresh: the thread that held it does not exist there."""

    _all: ClassVar[weakref.WeakSet[ProcessLock]] = weakref.WeakSet()

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._all.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @classmethod
    def renew(cls) -> None:
        """Make every lock anew, held by nobody."""
        for lock in cls._all:
            lock._lock = threading.RLock()


# FAISS counts its work in process-wide variables, and concurrent add and search on one index crash, so calls
# into FAISS are made one at a time.
counters_lock = ProcessLock()


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Run a block with ``n`` threads in PyTorch, FAISS and BLAS, and give each its own number back afterwards.

    BLAS adds up in another order when it has other threads, which decides near-ties between neighbours.

    Args:
        n: Number of threads, at least 1.

    Raises:
        ValueError: If ``n`` is smaller than 1.
    """
    if n < 1:
        raise ValueError(f"threads(n) needs n >= 1, got {n}")
    torch_before, faiss_before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(n)
    faiss.omp_set_num_threads(n)
    try:
        with threadpool_limits(n):
            yield
    finally:
        # The two settings are one variable when the runtimes are shared; the order restores both either way.
        faiss.omp_set_num_threads(faiss_before)
        torch.set_num_threads(torch_before)


@contextmanager
def faiss_settings(**values: int) -> Iterator[None]:
    """Set process-wide variables of FAISS within a block, and give each its own value back afterwards.

    Args:
        values: By name, as in ``faiss.cvar``.
    """
    with counters_lock:
        before = {name: getattr(faiss.cvar, name) for name in values}
        for name, value in values.items():
            setattr(faiss.cvar, name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(faiss.cvar, name, value)


@contextmanager
def faiss_threads(n: int) -> Iterator[None]:
    """Run a block with ``n`` threads in FAISS alone, which costs a microsecond, and give it its own number back.

    Args:
        n: Number of threads, at least 1.
    """
    with counters_lock:
        before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(n)
        try:
            yield
        finally:
            faiss.omp_set_num_threads(before)


def blas_threshold(n_queries: int) -> AbstractContextManager[None]:
    """Let FAISS multiply matrices through BLAS from ``n_queries`` rows up, within a block.

    The library's default is tuned for many cores; on one it is several times too high. The unit of the underlying
    variable is rows times dimensions, so a caller passes ``4 * d`` to use BLAS from four queries up.

    Args:
        n_queries: New value of ``distance_compute_blas_threshold``.
    """
    return faiss_settings(distance_compute_blas_threshold=n_queries)


def _after_fork_in_child() -> None:
    # OpenMP's worker threads do not survive a fork; with one thread nobody waits for them.
    ProcessLock.renew()
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
