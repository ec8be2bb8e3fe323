"""A training step of kNN attention, beside KNNAttention of memorizing-transformers-pytorch with the same weights.

    python -m benchmarks.knn_attention --json docs/results/knn_attention.json

One layer, forward and backward: 4 rows of 512 tokens, width 256, 4 heads, 32 neighbours out of 2,048 or 8,192 entries a
row, a local window of 512 and one softmax over both, as the peer has it. It carries the last 512 keys and values from
one segment to the next, as ours does. Projections, scales and outputs are copied, and ours shifts no keys; positions
differ (ours rotates, the peer is given none), and the peer has one head of keys and values, which ours has once for
each head of queries. States are contexts in source code, or random.
Contestants take turns; figures are medians of CPU time on one thread. Memories are as full at every step: ours is a
ring, the peer's is put back. Inverted lists are not trained while the clock runs; that comes once a turn of the ring,
and is measured by ``python -m benchmarks.rolling``. The peer needs ``pip install memorizing-transformers-pytorch
einops-exts``; without it its lines are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.retrieval import stream
from experiments.training import tune_allocator
from mann import Context, State
from mann.mixer.knn import KNNAttention
from retrieval.rolling.memory import Backend
from retrieval.runtime import faiss

ROWS, TIME, WIDTH, HEADS, K = 4, 512, 256, 4, 32
SIZES = (2048, 8192)
D = WIDTH // HEADS
# Given a number of positions and a seed, states of all rows.
Draw = Callable[[int, int], Tensor]


def random(n: int, seed: int) -> Tensor:
    """Random states.

    Shapes:
        result: ``[rows, n, width]``
    """
    return torch.randn(ROWS, n, WIDTH, generator=torch.Generator().manual_seed(seed))


def text(n: int, seed: int) -> Tensor:
    """States that say where in a text they are, each row from another place.

    Shapes:
        result: ``[rows, n, width]``
    """
    wide = torch.randn(D, WIDTH, generator=torch.Generator().manual_seed(0))
    begin = [(seed * ROWS + row) * 40_000 % 3_000_000 for row in range(ROWS)]
    return torch.stack([stream(n, D, "train", skip=skip) for skip in begin]) @ wide


class Ours:
    """A layer whose memory is full when the first step begins."""

    def __init__(self, backend: Backend, size: int, states: Tensor) -> None:
        torch.manual_seed(0)
        memory = {"backend": backend, "retrain": 2**62}
        self.layer = KNNAttention(
            WIDTH, HEADS, k=K, window=TIME, capacity=size, combine="softmax", memory=memory
        )
        torch.nn.init.orthogonal_(self.layer.out.weight)
        self.state = State()
        self.tokens = torch.zeros(ROWS, TIME, dtype=torch.long)
        with torch.no_grad():
            self.layer.shift.fill_(-1e9)
            for part in states.split(TIME, 1):
                self.read(part)

    def read(self, x: Tensor) -> Tensor:
        """One segment."""
        self.state.detach()
        return self.layer(x, Context(self.tokens, state=self.state))


class Peer:
    """KNNAttention of memorizing-transformers-pytorch with the weights of ours."""

    def __init__(self, ours: KNNAttention, size: int, states: Tensor, folder: str) -> None:
        from memorizing_transformers_pytorch.knn_memory import KNNMemory
        from memorizing_transformers_pytorch.memorizing_transformers_pytorch import KNNAttention as Theirs

        self.layer = Theirs(
            dim=WIDTH, heads=HEADS, dim_head=D, num_retrieved_memories=K, xl_max_memories=TIME
        )
        with torch.no_grad():
            q, k, v = ours.qkv.weight.split(WIDTH)
            self.layer.to_q.weight.copy_(q)
            self.layer.to_kv.weight.copy_(torch.cat([k[:D], v[:D]]))
            # Their keys and queries have length one, ours the root of the width.
            self.layer.scale.copy_((ours.scale * D).log()[..., None])
            self.layer.to_out.weight.copy_(ours.out.weight)
        # It forgets everything at its capacity, which is therefore never reached.
        settings = {"num_indices": ROWS, "memmap_filename": f"{folder}/{size}", "multiprocessing": False}
        self.memory, self.carried = KNNMemory(D, max_memories=2 * size + TIME, **settings), None
        with torch.no_grad():
            for part in states.split(TIME, 1):
                self.read(part)
        self.kept = [faiss.clone_index(knn.index) for knn in self.memory.knns], self.memory.db_offsets.copy()

    def put_back(self) -> None:
        """The memory as it was when the first step began."""
        indexes, offsets = self.kept
        for knn, index in zip(self.memory.knns, indexes, strict=True):
            knn.index = faiss.clone_index(index)
        self.memory.db_offsets = offsets.copy()

    def read(self, x: Tensor) -> Tensor:
        """One segment."""
        y, self.carried = self.layer(x, knn_memory=self.memory, xl_memory=self.carried)
        return y


def race(contestants: dict[str, Any], repeats: int, draw: Draw) -> dict[str, float]:
    """Median CPU seconds of a step of each, in turns after one that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        x = draw(TIME, 100 + turn).requires_grad_()
        for name, contestant in contestants.items():
            if isinstance(contestant, Peer):
                contestant.put_back()
            contestant.layer.zero_grad()
            begin = time.process_time()
            contestant.read(x).square().mean().backward()
            if turn:
                seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def steps(repeats: int) -> Iterator[dict[str, Any]]:
    """Tokens a second of a training step, by backend of the memory."""
    backends: tuple[Backend, ...] = ("dense", "ivf")
    for kind, draw in (("text", text), ("random", random)):
        for size in SIZES:
            # The last segment is carried, and not yet in the memory.
            states = draw(size + TIME, 1)
            contestants: dict[str, Any] = {name: Ours(name, size, states) for name in backends}
            with tempfile.TemporaryDirectory() as folder:
                try:
                    contestants["peer"] = Peer(contestants["dense"].layer, size, states, folder)
                except ImportError:
                    print("memorizing-transformers-pytorch is not installed: its lines are left out")
                seconds = race(contestants, repeats, draw)
            peer = seconds.pop("peer", None)
            for name, each in seconds.items():
                yield row(f"{size} {kind} entries a row, {name}: training step", each, peer, repeats)


def row(case: str, ours: float, peer: float | None, repeats: int) -> dict[str, Any]:
    """One line of the result, from seconds."""
    line: dict[str, Any] = {"case": case, "ours": ROWS * TIME / ours, "unit": "tokens/s", "repeats": repeats}
    told = f"{case:52s} {1e3 * ours:9.2f} ms"
    if peer is not None:
        name = "memorizing-transformers-pytorch"
        line |= {"peer": ROWS * TIME / peer, "peer_name": name, "ratio": peer / ours}
        told += f" {1e3 * peer:9.2f} ms {peer / ours:7.2f} x {name}"
    print(told, flush=True)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each contestant (default 7)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    tune_allocator()
    rows = list(steps(arguments.repeats))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
