"""Processes that are the ranks of one group, for tests."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch.distributed as dist

DEAD = "dead"
PATIENCE_SECONDS = 60
# Imported once for all processes.
_SHARED = ["torch._dynamo", "hypothesis", "retrieval.distributed.sharding", "experiments.ledger"]


@dataclass(frozen=True)
class Failed:
    """What a rank raised."""

    kind: str
    message: str


def refused(call: Callable[..., Any], *args: Any) -> Failed | None:
    """What a call raises."""
    try:
        call(*args)
    except Exception as error:
        return Failed(type(error).__name__, str(error))


class World:
    """Processes that stay, and do what they are told.

    A fresh process imports torch, which takes seconds. Where there are fork servers one imports it for all.

    Args:
        size: How many.
        folder: Where they meet.
        seconds: How long a rank waits for another.
    """

    def __init__(self, size: int, folder: Path, seconds: float = 20) -> None:
        context = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
        if sys.platform != "win32":
            context.set_forkserver_preload(_SHARED)
        place = (folder / f"meet-{uuid.uuid4().hex}").resolve().as_uri()
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(size):
            here, there = context.Pipe()
            process = context.Process(target=_live, args=(there, place, rank, size, seconds), daemon=True)
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)

    def __call__(self, size: int, job: Callable[..., Any], *args: Any) -> list[Any]:
        """What ``job(group, *args)`` returns on each of the first ``size`` ranks, what it raised, or :data:`DEAD`."""
        return self.on(range(size), job, *args)

    def on(self, members: range, job: Callable[..., Any], *args: Any) -> list[Any]:
        """The same on some ranks that have a group of their own."""
        for rank in members:
            self.pipes[rank].send_bytes(pickle.dumps((members, job, args)))
        return [self._answer(rank) for rank in members]

    def _answer(self, rank: int) -> Any:
        try:
            assert self.pipes[rank].poll(PATIENCE_SECONDS), f"rank {rank} hangs"
            return pickle.loads(self.pipes[rank].recv_bytes())
        except (EOFError, ConnectionError):
            return DEAD

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(5)
            process.kill()


def _live(pipe: Connection, place: str, rank: int, size: int, seconds: float) -> None:
    patience = timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=size, timeout=patience)
    # Every group is made by all processes, members or not, and has its own patience.
    spans = [range(begin, end) for begin in range(size) for end in range(begin + 1, size + 1)]
    groups = {span: dist.new_group(list(span), timeout=patience) for span in spans}
    while True:
        try:
            members, job, args = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = job(groups[members], *args)
        except Exception as error:
            answer = Failed(type(error).__name__, str(error))
        pipe.send_bytes(pickle.dumps(answer))
