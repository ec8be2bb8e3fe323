"""The memory of a training step: add, search and gather, beside KNNMemory, torch.topk and attention over everything.

    python -m benchmarks.rolling --json docs/results/rolling.json

One step is what a layer does: 8 rows, 1 head, 512 new keys and values a row go in, 512 queries a row look for 32
neighbours, keys and values of which are read; 64 dimensions. Keys are contexts in source code, of which some come again
and a graph finds its way, or random directions, in which it does not.
Contestants take turns; figures are medians of CPU time on one thread. What training inverted lists costs is
measured apart and charged as often as it comes: once a turn of the ring. `KNNMemory` is that of
memorizing-transformers-pytorch (``pip install memorizing-transformers-pytorch einops-exts``); without it its lines are
left out. Past its capacity it answers with wrong values, so it is given more capacity than is ever filled, and its
entries, as ours, are those given.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.retrieval import stream
from experiments.training import tune_allocator
from retrieval import RollingMemory
from retrieval.rolling.memory import Backend
from retrieval.runtime import faiss

ROWS, NEW, D, K = 8, 512, 64, 32
SIZES = (512, 2048, 8192, 32768)
# Above this many entries filling KNNMemory takes minutes.
PEER_SIZES = (512, 2048, 8192)
# Given a number of positions and a seed, keys of all rows.
Draw = Callable[[int, int], Tensor]


def random(n: int, seed: int) -> Tensor:
    """Random directions.

    Shapes:
        result: ``[rows, n, d]``
    """
    return F.normalize(torch.randn(ROWS, n, D, generator=torch.Generator().manual_seed(seed)), dim=-1)


def text(n: int, seed: int) -> Tensor:
    """Rows of text, each from another place.

    Shapes:
        result: ``[rows, n, d]``
    """
    return torch.stack(
        [stream(n, D, "train", skip=(seed * ROWS + row) * 40_000 % 3_000_000) for row in range(ROWS)]
    )


class Ours:
    """A :class:`RollingMemory` that is full when the first step begins."""

    def __init__(self, backend: Backend, size: int, keys: Tensor, retrain: int = 2**62) -> None:
        self.memory = RollingMemory(ROWS, 1, size, D, D, backend=backend, retrain=retrain)
        self.memory.add(keys[:, None], keys[:, None])

    def step(self, new: Tensor, queries: Tensor) -> Tensor:
        """Add, search, gather; the keys found."""
        self.memory.add(new[:, None], new[:, None])
        return self.memory.gather(self.memory.search(queries[:, None], K)).keys[:, 0]


class TopK:
    """A ring in torch: one product of matrices, ``topk``, ``gather``."""

    def __init__(self, size: int, keys: Tensor) -> None:
        self.keys, self.values, self.at, self.size = keys.clone(), keys.clone(), 0, size

    def write(self, new: Tensor) -> None:
        """Overwrite the oldest."""
        slots = (self.at + torch.arange(new.shape[1])) % self.size
        self.keys[:, slots], self.values[:, slots] = new, new
        self.at += new.shape[1]

    def step(self, new: Tensor, queries: Tensor) -> Tensor:
        """Add, search, gather; the keys found."""
        self.write(new)
        ids = (queries @ self.keys.mT).topk(K).indices
        flat = (ids + torch.arange(ROWS)[:, None, None] * self.size).flatten()
        found = [x.flatten(0, 1).index_select(0, flat).view(ROWS, -1, K, D) for x in (self.keys, self.values)]
        return found[0]


class Attention(TopK):
    """A ring in torch, and attention over all of it: what retrieval has to beat."""

    def step(self, new: Tensor, queries: Tensor) -> Tensor:
        """Add, attend; the values read."""
        self.write(new)
        return F.scaled_dot_product_attention(queries[:, None], self.keys[:, None], self.values[:, None])[
            :, 0
        ]


class Peer:
    """KNNMemory as its package uses it, in one process."""

    def __init__(self, size: int, keys: Tensor, folder: str) -> None:
        from memorizing_transformers_pytorch.knn_memory import KNNMemory

        self.size, self.keys = size, keys
        self.memory = KNNMemory(
            D,
            max_memories=2 * size + NEW,
            num_indices=ROWS,
            memmap_filename=f"{folder}/{size}",
            multiprocessing=False,
        )

    def refill(self) -> None:
        """Hold so much that the next step has ``size`` entries."""
        self.memory.clear()
        for begin in range(0, self.size - NEW, NEW):
            part = self.keys[:, begin : begin + NEW]
            self.memory.add(torch.stack([part, part], 2))

    def step(self, new: Tensor, queries: Tensor) -> Tensor:
        """Add, search (which gathers); the keys found."""
        self.memory.add(torch.stack([new, new], 2))
        return self.memory.search(queries, K)[0][:, :, :, 0]


def race(contestants: dict[str, Any], repeats: int, draw: Draw) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Median CPU seconds of a step of each, in turns after one that warms up, and what each read last."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    read: dict[str, Tensor] = {}
    for turn in range(repeats + 1):
        new, queries = draw(NEW, 100 + turn), draw(NEW, 500 + turn)
        for name, contestant in contestants.items():
            if isinstance(contestant, Peer):
                contestant.refill()
            begin = time.process_time()
            read[name] = contestant.step(new, queries)
            if turn:
                seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}, read


def steps(repeats: int) -> Iterator[dict[str, Any]]:
    """Queries a second of a whole step, by backend, at each size."""
    backends: tuple[Backend, ...] = ("dense", "exact", "ivf")
    cases: list[tuple[str, Draw, int]] = [("text", text, size) for size in SIZES]
    for kind, draw, size in [*cases, ("random", random, 2048)]:
        keys = draw(size, 1)
        contestants: dict[str, Any] = {name: Ours(name, size, keys) for name in backends}
        contestants |= {"training": Ours("ivf", size, keys, retrain=1)}
        contestants |= {
            "matmul and topk": TopK(size, keys),
            "attention over everything": Attention(size, keys),
        }
        with tempfile.TemporaryDirectory() as folder:
            if size in PEER_SIZES:
                try:
                    contestants["KNNMemory"] = Peer(size, keys, folder)
                except ImportError:
                    print("memorizing-transformers-pytorch is not installed: its lines are left out")
            seconds, read = race(contestants, repeats, draw)
        seconds["ivf"] += max(0.0, seconds.pop("training") - seconds["ivf"]) * min(1.0, NEW / size)
        last = draw(NEW, 500 + repeats)
        best = torch.einsum("bqd,bqkd->bqk", last, read["dense"])
        reached = torch.einsum("bqd,bqkd->bqk", last, read["ivf"]) >= best[:, :, -1:] - 1e-5
        for ours in backends:
            for peer in ("KNNMemory", "matmul and topk", "attention over everything"):
                if peer in seconds:
                    line = row(
                        f"{size} {kind} entries a row, {ours}: step",
                        seconds[ours],
                        seconds[peer],
                        peer,
                        repeats,
                    )
                    if ours == "ivf":
                        line["recall"] = float(reached.float().mean())
                    yield line


def plain(queries: Tensor, keys: Tensor) -> Tensor:
    """Neighbours in two lines of torch."""
    return (queries @ keys.mT).topk(K).indices


def decoding(repeats: int) -> Iterator[dict[str, Any]]:
    """Queries a second of a search alone, one query for each of 8 rows and 4 heads."""
    for size in SIZES:
        keys = text(size, 1)[:, None].repeat(1, 4, 1, 1)
        backends: tuple[Backend, ...] = ("dense", "exact", "ivf")
        memories = {name: RollingMemory(ROWS, 4, size, D, D, backend=name) for name in backends}
        for memory in memories.values():
            memory.add(keys, keys)
        queries = text(4, 2)[:, :, None]
        calls: dict[str, Callable[[], Any]] = {
            name: partial(memory.search, queries, K) for name, memory in memories.items()
        }
        calls["matmul and topk"] = partial(plain, queries, keys)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(repeats + 1):
            for name, call in calls.items():
                begin = time.process_time()
                for _ in range(5):
                    call()
                if turn:
                    seconds[name].append((time.process_time() - begin) / 5)
        middle = {name: statistics.median(times) for name, times in seconds.items()}
        for name in memories:
            case = f"{size} entries a row, 4 heads, {name}: search for 1 query"
            yield row(case, middle[name], middle["matmul and topk"], "matmul and topk", repeats, 4 * ROWS)


def row(
    case: str, ours: float, peer: float, peer_name: str, repeats: int, queries: int = ROWS * NEW
) -> dict[str, Any]:
    """One line of the result, from seconds."""
    speeds = queries / ours, queries / peer
    told = f"{1e3 * ours:9.2f} ms {1e3 * peer:9.2f} ms"
    print(f"{case:58s} {told} {speeds[0] / speeds[1]:7.2f} x {peer_name}", flush=True)
    return {
        "case": case,
        "ours": speeds[0],
        "peer": speeds[1],
        "peer_name": peer_name,
        "unit": "queries/s",
        "ratio": speeds[0] / speeds[1],
        "repeats": repeats,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each contestant (default 7)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    tune_allocator()
    rows = [line for part in (steps, decoding) for line in part(arguments.repeats)]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
