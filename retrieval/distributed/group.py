"""The ranks of a distributed run, and how one of them tells the others what it does and what became of it.

A collective call that one rank does not make keeps all others waiting. So nothing here raises on one rank alone: what a
rank was given and whether it failed is exchanged first, and then all go on or all raise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["RankError", "Ranks", "agreed"]

# Letters of an error that are told to the other ranks: up to six bytes each in JSON, so they fit a note.
_LETTERS = 256


class RankError(RuntimeError):
    """Another rank failed, died or did not answer in time; the message says which and what to do."""


class Ranks:
    """The ranks of a process group, as a place where all of them learn of what happens to one.

    Without a process group this is one rank, so that the same program runs in one process.

    Args:
        group: Members exchange tensors of the CPU (``gloo``, or ``cpu:gloo,cuda:nccl``); by default all ranks. How
            long they wait for each other is the ``timeout`` the group was made with (of ``gloo``: 30 minutes unless
            ``init_process_group(timeout=timedelta(seconds=60))`` or ``new_group(timeout=...)`` says otherwise).

    Attributes:
        rank: The number of this one.
        size: How many there are.
        note_bytes: Bytes of what one rank tells another in :meth:`together`.

    Raises:
        RuntimeError: If this is one of several processes that are not connected yet.
        ValueError: If this process is no member of the group, or the group has no backend for the CPU.
    """

    note_bytes = 2048

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.size = 0, 1
        if not (dist.is_available() and dist.is_initialized()):
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise RuntimeError(
                    f"this is one of {os.environ['WORLD_SIZE']} processes, but they are not connected: call "
                    "torch.distributed.init_process_group first"
                )
            return
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("this process is no member of the group: make the call on its members only")
        if "cpu:" not in dist.get_backend_config(group):
            raise ValueError(
                f"the group's backend {dist.get_backend_config(group)} exchanges no tensors of the CPU: give "
                "group=torch.distributed.new_group(backend='gloo')"
            )

    def together(self, call: str, do: Callable[[], Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Do something on every rank; what it returns, by rank. Where it fails on one, every rank raises.

        Args:
            call: What is being done. Ranks that are doing something else get an error.
            do: Returns a few numbers and short texts.

        Raises:
            RankError: If another rank failed, died or did not come in time.
            ValueError: If ranks are not doing the same.
            Exception: Whatever ``do`` raised on this rank.
        """
        problem: Exception | None = None
        note: dict[str, Any] = {"call": call}
        try:
            note |= do()
        except Exception as error:
            problem = error
            text = " ".join(f"{type(error).__name__}: {error}".split())
            note["error"] = text[:_LETTERS]
        raw = json.dumps(note, ensure_ascii=False).encode(errors="replace").ljust(self.note_bytes)
        sent = torch.frombuffer(bytearray(raw), dtype=torch.uint8).repeat(self.size)
        sizes = [self.note_bytes] * self.size
        try:
            got = self.swap(sent, sizes, sizes).view(self.size, self.note_bytes)
        except RankError as dead:
            raise problem or dead from dead
        notes = [json.loads(bytes(row.tolist())) for row in got]
        if problem is not None:
            raise problem
        for rank, other in enumerate(notes):
            if "error" in other:
                raise RankError(f"rank {rank} failed, so this one stopped too: {other['error']}")
        agreed(notes, "call")
        return notes

    def swap(self, sent: Tensor, sends: Sequence[int], receives: Sequence[int]) -> Tensor:
        """Give rows to every rank and take rows from every rank, in the order of their numbers.

        Args:
            sent: Rows for rank 0, then those for rank 1, and so on.
            sends: How many there are for each.
            receives: How many each has for this one.

        Raises:
            RankError: If a rank died or did not come in time.
        """
        if self.size == 1:
            return sent
        got = sent.new_empty((sum(receives), *sent.shape[1:]))
        try:
            dist.all_to_all_single(got, sent.contiguous(), list(receives), list(sends), group=self.group)
        except RuntimeError as error:
            raise RankError(
                "a rank died or did not come within the timeout of its process group: see what it printed, end all "
                f"ranks and start them again ({error})"
            ) from error
        return got


def agreed(notes: Sequence[Mapping[str, Any]], *names: str) -> None:
    """Refuse, on every rank alike, what ranks say differently.

    Args:
        notes: What each rank says.
        names: What must be the same.

    Raises:
        ValueError: If something is not.
    """
    for name in names:
        for rank, note in enumerate(notes):
            if note[name] != notes[0][name]:
                raise ValueError(
                    f"ranks disagree on {name}: rank 0 has {notes[0][name]!r}, rank {rank} has {note[name]!r}; "
                    "every rank must make the same call"
                )
