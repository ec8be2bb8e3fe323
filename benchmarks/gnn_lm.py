"""GNN-LM end to end on a small scale, with the compute that its paper does not report.

    python -m benchmarks.gnn_lm --json docs/results/gnn_lm.json
    python -m benchmarks.gnn_lm --data ../shared/data/wikitext-2 --json docs/results/gnn_lm_wikitext.json

As the paper has it: a base model is trained; its states, of all text it was trained on, fill a store with the tokens
that came next; every position looks for its nearest by cosine, in training not in its own document; a graph network
over what was found (:class:`gnn.HeteroReader`, nodes beginning with the stored states) is trained on the frozen base
and read out by the base's own head; and either distribution is mixed with that of kNN-LM over the same neighbours, with
temperature and weight tuned on validation text. Losses are on test text.

"base, trained longer" is the control: the base on as many tokens as all FLOPs of the graph's pipeline pay for. One
thread.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.data import CodeCorpus, Corpus, TextCorpus, Windows, evaluation_rows, training_order
from experiments.ledger import Ledger
from experiments.training import tune_allocator
from gnn import HeteroReader
from gnn.layers import HeteroAttention
from mann import Context, Transformer
from mann.module import RATES
from mann.norm import rms_norm
from mann.optim import RoleOptimizer, linear_schedule
from retrieval import Datastore, Neighbors, Passages

WIDTH, LAYERS, TIME, ROWS, K, TEST = 64, 2, 256, 16, 16, 65_536
READER = partial(
    HeteroReader, n_layers=3, width=WIDTH, reach=None, layer=partial(HeteroAttention, softmax="joint")
)


class Text(NamedTuple):
    """Windows with the states of the base model, and what it found for them.

    Shapes:
        tokens, targets, documents: ``[rows, time]``; states: ``[rows, time, width]``; near: ``[rows, time, k]``
    """

    tokens: Tensor
    targets: Tensor
    documents: Tensor
    states: Tensor
    near: Neighbors


def loss_of(model: Transformer, states: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Nats of every position by the head of the base."""
    return model.readout(states, Context(batch["tokens"], batch["documents"]), batch["targets"])


def mean(nll: Tensor, targets: Tensor) -> Tensor:
    """Over the positions that have a target."""
    return nll.sum() / (targets >= 0).sum().clamp(min=1)


def train(network: nn.Module, steps: list[Any], loss: Any) -> int:
    """Trains a network and says how many FLOPs that took: those of the second step, times their number."""
    network.train()
    optimizer = RoleOptimizer(network, RATES)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: linear_schedule(step, len(steps)))

    def step(of: Any) -> None:
        loss(of).backward()
        optimizer.step()
        optimizer.zero_grad()

    spent = 0
    for number, of in enumerate(steps):
        if number == 1:
            with Ledger() as ledger:
                step(of)
            spent = ledger.flops * len(steps)
        else:
            step(of)
        schedule.step()
    network.eval()
    return spent


def base_model(corpus: Corpus, windows: Windows, order: np.ndarray, seed: int) -> tuple[Transformer, int]:
    """A dense transformer trained on these windows, once."""
    torch.manual_seed(seed)
    model = Transformer(corpus.vocab_size, WIDTH, LAYERS)

    def loss(rows: np.ndarray) -> Tensor:
        batch = windows.batch(rows)
        return mean(model.loss(batch["tokens"], batch["targets"], batch["documents"]), batch["targets"])

    return model, train(model, np.split(order, len(order) // ROWS), loss)


@torch.no_grad()
def states_of(model: Transformer, batch: dict[str, Tensor]) -> Tensor:
    """What the base makes of windows, a few at a time."""
    parts = zip(batch["tokens"].split(ROWS), batch["documents"].split(ROWS), strict=True)
    return torch.cat([model.hidden(Context(tokens, documents)) for tokens, documents in parts])


class Store:
    """States of the training text with the tokens that came next, and the text itself, entry by entry."""

    def __init__(self, folder: Path, batch: dict[str, Tensor], states: Tensor, vocab_size: int) -> None:
        kept = batch["targets"] >= 0
        self.features = states[kept]
        self.answers = batch["targets"][kept]
        row = torch.arange(len(kept))[:, None].expand_as(kept)[kept]
        documents = batch["documents"][kept]
        cut = (row[1:] != row[:-1]) | (documents[1:] != documents[:-1])
        offsets = np.concatenate([[0], np.flatnonzero(cut.numpy()) + 1, [len(row)]])
        tokens = batch["tokens"][kept].numpy().astype(np.uint16)
        labels = documents.numpy()[offsets[:-1]]
        self.passages = Passages(tokens, offsets, labels, vocab_size=vocab_size)
        lists = 2 ** round(math.log2(4 * len(row) ** 0.5))
        entries = (F.normalize(self.features, dim=1), self.answers, documents, torch.arange(len(row)))
        with Ledger() as ledger:
            self.index = Datastore.build(
                folder / "store", [entries], dtype="float32", factory=f"IVF{lists},Flat", nprobe=16
            )
        self.build_flops = ledger.flops

    def find(self, states: Tensor, exclude: Tensor | None) -> Neighbors:
        """The nearest of every position."""
        parts = []
        for start in range(0, len(states), ROWS):
            here = slice(start, start + ROWS)
            banned = None if exclude is None else exclude[here]
            parts.append(self.index.search(F.normalize(states[here], dim=-1), K, exclude=banned))
        return Neighbors.cat(parts)


def texts(model: Transformer, store: Store, windows: Windows, rows: np.ndarray, own: bool) -> Text:
    """Windows, their states and their neighbours."""
    batch = windows.batch(rows)
    states = states_of(model, batch)
    near = store.find(states, batch["documents"] if own else None)
    return Text(batch["tokens"], batch["targets"], batch["documents"], states, near)


def rows_of(text: Text, here: slice) -> Text:
    """Some of the windows."""
    near = Neighbors(text.near.scores[here], text.near.ids[here], text.near.mask[here])
    return Text(*(part[here] for part in text[:4]), near)


def graph_loss(model: Transformer, reader: HeteroReader, store: Store, text: Text) -> Tensor:
    """Nats of every position with what the graph has to say."""
    window = store.passages.window(text.near.ids, reader.before, reader.after)
    update = reader(text.states, text.near, window, None, text.documents)
    return loss_of(model, rms_norm(text.states + update), text._asdict())


@torch.no_grad()
def losses(function: Any, text: Text) -> Tensor:
    """Nats of all windows, a few at a time."""
    parts = [slice(start, start + ROWS) for start in range(0, len(text.tokens), ROWS)]
    return torch.cat([function(rows_of(text, part)) for part in parts])


def told(store: Store, text: Text, temperature: float) -> Tensor:
    """Probability that the neighbours give each target."""
    score = (text.near.scores / temperature).masked_fill(~text.near.mask, -torch.inf)
    weight = score.softmax(-1).nan_to_num(0.0)
    return (weight * (store.answers[text.near.ids] == text.targets.unsqueeze(-1))).sum(-1)


def mixed(nll: Tensor, share: Tensor, weight: float) -> Tensor:
    """Nats of the mixture."""
    return -torch.log((1 - weight) * torch.exp(-nll) + weight * share)


def tuned(nll: Tensor, store: Store, text: Text) -> tuple[float, float]:
    """Temperature and weight that are best on validation text."""
    grid = [(t, w) for t in (0.01, 0.02, 0.05, 0.1, 0.2) for w in (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)]
    return min(grid, key=lambda at: float(mean(mixed(nll, told(store, text, at[0]), at[1]), text.targets)))


def lines(corpus: Corpus, n_windows: int, seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Everything of one seed."""
    windows = {name: Windows(split, TIME) for name, split in corpus.splits.items()}
    order = training_order(len(windows["train"]), seed)
    first = order[:n_windows]
    held = {name: evaluation_rows(corpus.splits[name], TIME, TEST) for name in ("valid", "test")}
    model, base_flops = base_model(corpus, windows["train"], first, seed)
    model.requires_grad_(False)

    batch = windows["train"].batch(first)
    with Ledger() as ledger:
        states = states_of(model, batch)
    store = Store(folder, batch, states, corpus.vocab_size)
    store_flops = ledger.flops + store.build_flops
    text = Text(
        batch["tokens"], batch["targets"], batch["documents"], states, store.find(states, batch["documents"])
    )
    valid, test = (texts(model, store, windows[name], held[name], False) for name in ("valid", "test"))
    tokens = text.tokens.numel()

    torch.manual_seed(seed)
    reader = READER(WIDTH, corpus.vocab_size, features=store.features)
    asked = [slice(start, start + ROWS) for start in range(0, n_windows, ROWS)]
    by_graph = partial(graph_loss, model, reader, store)
    graph_flops = train(reader, asked, lambda here: mean(by_graph(part := rows_of(text, here)), part.targets))
    pipeline = base_flops + store_flops + text.near.flops + graph_flops

    def line(arm: str, nll: Tensor, flops: int, **more: Any) -> dict[str, Any]:
        nats = float(mean(nll, test.targets))
        result = {
            "seed": seed,
            "arm": arm,
            "nats": nats,
            "perplexity": math.exp(nats),
            "train_flops": flops,
        } | more
        print(
            f"{seed}  {arm:24s} {nats:.4f} nats  perplexity {math.exp(nats):7.2f}  {flops:.3g} FLOPs",
            flush=True,
        )
        return result

    def by_base(text: Text) -> Tensor:
        return loss_of(model, text.states, text._asdict())

    for arm, function, flops, knn_flops in (
        ("base", by_base, base_flops, base_flops + store_flops),
        ("graph", by_graph, pipeline, pipeline),
    ):
        plain = losses(function, test)
        yield line(arm, plain, flops, tokens=tokens)
        temperature, weight = tuned(losses(function, valid), store, valid)
        share = told(store, test, temperature)
        yield line(
            f"{arm} + kNN", mixed(plain, share, weight), knn_flops, temperature=temperature, weight=weight
        )
    store.index.close()
    longer = order[: int(n_windows * pipeline / base_flops) // ROWS * ROWS]
    other, flops = base_model(corpus, windows["train"], longer, seed)
    longest = losses(lambda text: loss_of(other, states_of(other, text._asdict()), text._asdict()), test)
    yield line("base, trained longer", longest, flops, tokens=len(longer) * TIME)


def main() -> None:
    """Measure and print; ``--json`` keeps the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="a text file or a folder of them; by default installed source code"
    )
    parser.add_argument("--windows", type=int, default=2048, help=f"windows of {TIME} tokens (default 2048)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tune_allocator()
    corpus = (TextCorpus(arguments.data) if arguments.data else CodeCorpus()).load()
    results = []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            for result in lines(corpus, arguments.windows // ROWS * ROWS, seed, Path(folder)):
                results.append(result)
                if arguments.json:
                    arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
