"""N-gram memories: a layer beside that of engram-peft, and a step of its table beside torch's optimizers.

    python -m benchmarks.ngram --json docs/results/ngram.json

A layer is called on 8 rows of 256 tokens, forward and backward, hashing included: bigrams and trigrams, 8 heads of 32
numbers each, the gate of the released code, a convolution of 4 taps. Weights are copied, and rows, gates and updates
are compared before anything is timed: gates and updates of the rows that ours reads, rows after two changes. The peer
gives the first multiplier to the oldest token of an n-gram, the released code to the newest; and its bigrams end one
token early, because it pads for trigrams and lets shorter windows begin where those do.
Contestants take turns; figures are medians of CPU time on one thread. The peer is ``EngramLayer`` with one branch
(``pip install engram-peft peft trl accelerate datasets bitsandbytes``); without it its lines are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import typing_extensions
from torch import Tensor, nn

from experiments.training import tune_allocator
from mann import Context
from mann.memory.engram import Engram
from mann.norm import EPSILON
from mann.table_optim import CatchUpAdam, RowAdam, RowScalarAdam

BATCH, TIME, VOCAB = 8, 256, 32_000
HEADS, D_ROW, LAYER = 8, 32, 1
# Width and least rows a head.
SHAPES = ((256, 2**14), (1024, 2**14), (256, 2**18))
# Rows of a table, and how many of them a step touches.
TABLES = ((2**16, 2**12), (2**20, 2**12))


class Ours:
    """An :class:`Engram` on its own."""

    def __init__(self, width: int, n_rows: int) -> None:
        torch.manual_seed(0)
        self.memory = Engram(
            width, (2, 3), HEADS, n_rows, D_ROW, layer=LAYER, layers=(LAYER,), vocab_size=VOCAB
        )
        nn.init.normal_(self.memory.read.weight, std=0.05)
        assert self.memory.taps is not None
        nn.init.normal_(self.memory.taps, std=0.3)

    def rows_as_peer(self, tokens: Tensor) -> Tensor:
        """Of its table, with the peer's order of multipliers, and bigrams that end one token early."""
        kept, found = self.memory.multipliers, []
        for order, slots in zip((2, 3), (slice(HEADS), slice(HEADS, None)), strict=True):
            self.memory.multipliers = torch.cat([kept[:order].flip(0), kept[order:]])
            seen = F.pad(tokens, (3 - order, 0))[:, : tokens.shape[1]]
            found.append(self.memory.rows(Context(seen))[..., slots])
        self.memory.multipliers = kept
        return torch.cat(found, -1)

    def update(self, tokens: Tensor, x: Tensor) -> Tensor:
        """Added to ``x``."""
        return x + self.memory(x, Context(tokens))

    def parameters(self) -> Iterator[nn.Parameter]:
        """All of them."""
        return self.memory.parameters()


class Peer:
    """EngramLayer with the weights of ours."""

    def __init__(self, width: int, n_rows: int, ours: Ours) -> None:
        # It takes from typing what Python 3.11 has not got yet.
        if not hasattr(typing, "override"):
            typing.override = typing_extensions.override  # type: ignore[attr-defined]
        from engram_peft import EngramConfig  # pyright: ignore[reportMissingImports]
        from engram_peft.layer import EngramLayer  # pyright: ignore[reportMissingImports]

        config = EngramConfig(
            engram_vocab_size_per_ngram=[HEADS * n_rows] * 2,
            ngram_sizes=[2, 3],
            n_head_per_ngram=HEADS,
            embedding_dim=2 * HEADS * D_ROW,
            hc_mult=1,
            hidden_size=width,
            compressed_vocab_size=VOCAB,
            pad_id=0,
            seed=0,
        )
        self.layer = EngramLayer(config, LAYER, ours.memory.primes.tolist(), compressor=Identity())
        keys, values = ours.memory.read.weight.detach().chunk(2)
        assert ours.memory.taps is not None
        with torch.no_grad():
            table = ours.memory.table.get_parameter("weight")
            self.layer.multi_head_embedding.embedding.weight.copy_(table)
            self.layer.key_projs[0].weight.copy_(keys)
            self.layer.value_proj.weight.copy_(values)
            self.layer.short_conv.norms[0].eps = EPSILON
            self.layer.short_conv.conv.weight.copy_(ours.memory.taps.flip(0).t()[:, None])

    def rows(self, tokens: Tensor) -> Tensor:
        """Of its table."""
        local = torch.from_numpy(self.layer.hash_mapping.hash(tokens)[LAYER])
        return local + self.layer.multi_head_embedding.offsets

    def look_up(self, rows: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gate, and what becomes of ``x``, when these rows are read."""
        local = rows - self.layer.multi_head_embedding.offsets
        update = self.layer(engram_hash_indices=local, hidden_states=x)
        return self.layer.gating.last_gate[..., 0], update

    def update(self, tokens: Tensor, x: Tensor) -> Tensor:
        """What it makes of ``x``."""
        return self.layer(input_ids=tokens, hidden_states=x)

    def parameters(self) -> Iterator[nn.Parameter]:
        """All of them."""
        return self.layer.parameters()


class Identity:
    """A compression of tokens that compresses nothing."""

    def map_id(self, token: int) -> int:
        """The same."""
        return token

    def compress(self, tokens: Tensor) -> Tensor:
        """The same."""
        return tokens


def inputs(width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens as frequent as words are, and states.

    Shapes:
        tokens: ``[batch, time]``; states: ``[batch, time, width]``
    """
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.rand(BATCH, TIME, generator=generator).mul(-6).exp()
    tokens = (ranks * VOCAB).long().clamp(max=VOCAB - 1)
    return tokens, torch.randn(BATCH, TIME, width, generator=generator)


def differences(ours: Ours, peer: Peer, width: int) -> dict[str, float]:
    """Rows that are not the same, and the largest difference of gates and updates."""
    tokens, x = inputs(width, 999)
    context = Context(tokens)
    with torch.no_grad():
        gate, update = peer.look_up(ours.memory.rows(context), x)
        return {
            "rows": float((ours.rows_as_peer(tokens) != peer.rows(tokens)).sum()),
            "gate": float((ours.memory.look_up(x, context)[0] - gate).abs().max()),
            "update": float((ours.update(tokens, x) - update).abs().max()),
        }


def turn(contestant: Ours | Peer, tokens: Tensor, x: Tensor) -> None:
    """Forward and backward."""
    for parameter in contestant.parameters():
        parameter.grad = None
    x = x.detach().requires_grad_()
    contestant.update(tokens, x).square().mean().backward()


def race(
    calls: dict[str, Callable[[int], None]],
    repeats: int,
    before: dict[str, Callable[[int], None]] | None = None,
) -> dict[str, float]:
    """Median CPU seconds of each, in turns after one that warms up; what comes before them is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(repeats + 1):
        for name, call in calls.items():
            if before is not None:
                before[name](number)
            begin = time.process_time()
            call(number)
            if number:
                seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def layers(repeats: int) -> Iterator[dict[str, Any]]:
    """Tokens a second, forward and backward."""
    for width, n_rows in SHAPES:
        ours = Ours(width, n_rows)
        try:
            peer = Peer(width, n_rows, ours)
        except ImportError:
            print("engram-peft is not installed: its lines are left out")
            return
        apart = differences(ours, peer, width)
        calls: dict[str, Callable[[int], None]] = {
            "ours": lambda number, width=width, ours=ours: turn(ours, *inputs(width, number)),
            "peer": lambda number, width=width, peer=peer: turn(peer, *inputs(width, number)),
        }
        seconds = race(calls, repeats)
        line = row(
            f"width {width}, {n_rows} rows a head: forward and backward",
            seconds["ours"],
            seconds["peer"],
            "EngramLayer",
            repeats,
            BATCH * TIME,
            "tokens/s",
        )
        yield line | {"apart": apart}


class Table:
    """A table, its optimizer, and gradients of rows drawn at random."""

    def __init__(self, kind: Callable[..., Any], n_rows: int, touched: int, sparse: bool) -> None:
        self.table = nn.Parameter(torch.randn(n_rows, D_ROW))
        self.optimizer, self.touched, self.sparse = kind([self.table], lr=0.01), touched, sparse

    def draw(self, number: int) -> None:
        """A gradient."""
        generator = torch.Generator().manual_seed(number)
        rows = torch.randint(len(self.table), (1, self.touched), generator=generator)
        values = torch.randn(self.touched, D_ROW, generator=generator)
        grad = torch.sparse_coo_tensor(rows, values, self.table.shape, check_invariants=False)
        self.table.grad = grad if self.sparse else grad.to_dense()

    def step(self, _: int) -> None:
        """Of the optimizer, gradient given."""
        self.optimizer.step()


def table_steps(repeats: int) -> Iterator[dict[str, Any]]:
    """Rows a second of a step of the table's optimizer."""
    for n_rows, touched in TABLES:
        kinds: dict[str, tuple[Callable[..., Any], bool]] = {
            "lazy": (RowAdam, True),
            "catch_up": (CatchUpAdam, True),
            "row_scalar": (RowScalarAdam, True),
            "SparseAdam": (torch.optim.SparseAdam, True),
            "dense Adam, fused": (lambda p, lr: torch.optim.Adam(p, lr=lr, fused=True), False),
        }
        tables = {name: Table(kind, n_rows, touched, sparse) for name, (kind, sparse) in kinds.items()}
        steps, draws = ({name: getattr(t, part) for name, t in tables.items()} for part in ("step", "draw"))
        seconds = race(steps, repeats, draws)
        for ours in ("lazy", "catch_up", "row_scalar"):
            for peer in ("SparseAdam", "dense Adam, fused"):
                case = f"{touched} rows of {n_rows}, {ours}: step"
                yield row(case, seconds[ours], seconds[peer], peer, repeats, touched, "rows/s")


def row(
    case: str, ours: float, peer: float, peer_name: str, repeats: int, count: int, unit: str
) -> dict[str, Any]:
    """One line of the result, from seconds."""
    told = f"{1e3 * ours:9.2f} ms {1e3 * peer:9.2f} ms"
    print(f"{case:58s} {told} {peer / ours:7.2f} x {peer_name}", flush=True)
    return {
        "case": case,
        "ours": count / ours,
        "peer": count / peer,
        "peer_name": peer_name,
        "unit": unit,
        "ratio": peer / ours,
        "repeats": repeats,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--repeats", type=int, default=15, help="turns of each contestant (default 15)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tune_allocator()
    rows = [line for part in (layers, table_steps) for line in part(arguments.repeats)]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
