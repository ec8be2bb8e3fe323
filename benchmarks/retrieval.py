"""Searching for stored vectors, beside raw FAISS, torch, hnswlib and usearch.

    python -m benchmarks.retrieval --only exact --json docs/results/exact.json
    python -m benchmarks.retrieval --only lists --json docs/results/lists.json

Exact search is compared at every size of a batch with FAISS's own flat index, its BLAS switch set as well as we know,
and with a product of matrices and ``torch.topk`` over pieces of the store. Searches of inverted lists are compared
with our exact one, with FAISS's, and with the graphs of ``hnswlib`` and ``usearch``, each at the first setting of a
fine row that finds nine tenths of the 32 nearest (``pip install hnswlib usearch``; without them their lines are left
out).
``--growth`` measures exact search and lists at up to ten million vectors instead.

Keys are contexts in the default corpus, queries contexts in its test split (:func:`stream`). Tokens' vectors say what
stands near them; where a line says "unlike", they are drawn by lot and say nothing, so that contexts with other last
tokens have nothing in common: no index finds these well. Contestants take turns on one thread; figures are medians of
CPU time.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import cycle, permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from experiments.data import CodeCorpus
from retrieval import Index
from retrieval.audit import recall
from retrieval.neighbors import Neighbors
from retrieval.runtime import blas_threshold, faiss, threads

K, TARGET, QUERIES = 32, 0.9, 4096
BATCHES = (1, 8, 64, 256, 4096)
TILE = 65536
CODES = ("Flat", "SQfp16", "SQ8")
DEPTH, FADING = 8, 0.7
# Seconds a contestant may take in a case.
PATIENCE = 2.5

Search = Callable[[Tensor], Any]


@cache
def tokens(split: str) -> np.ndarray:
    """A split of the default corpus: source code of installed packages."""
    return getattr(CodeCorpus().load(), split).tokens.astype(np.int64)


@cache
def words(d: int, alike: bool) -> Tensor:
    """A vector of length one for each token.

    Those that are alike have leading singular vectors of the positive pointwise mutual information of tokens that stand
    at most three places apart (`Levy and Goldberg <https://papers.nips.cc/paper/5477>`_).
    """
    text = torch.from_numpy(tokens("train"))
    size = int(text.max()) + 1
    if not alike:
        return F.normalize(torch.randn(size, d, generator=torch.Generator().manual_seed(0)), dim=1)
    pairs = torch.zeros(size * size)
    for apart in range(1, 4):
        pairs += torch.bincount(text[apart:] * size + text[:-apart], minlength=size * size)
    counts = pairs.view(size, size)
    counts = counts + counts.T
    expected = counts.sum(0) * counts.sum(1, keepdim=True) / counts.sum()
    shared = torch.log(counts / expected.clamp(min=1e-9)).clamp(min=0)
    left, values, _ = torch.linalg.svd(shared)
    return F.normalize(left[:, :d] * values[:d].sqrt(), dim=1)


def stream(n: int, d: int, split: str, alike: bool = True, skip: int = 0) -> Tensor:
    """Keys of ``n`` positions of a text in a row: the fading sum of the last tokens' vectors, of length one.

    The mean of all that is left out, as it says nothing.
    """
    text, vectors = torch.from_numpy(tokens(split))[skip:], words(d, alike)
    if n + DEPTH > len(text):
        raise SystemExit(f"the {split} split has {len(text):,} tokens, {n:,} keys need more")
    often = torch.bincount(torch.from_numpy(tokens("train")), minlength=len(vectors)).float()
    vectors = vectors - often @ vectors / often.sum()
    keys = torch.empty(n, d)
    for at in range(0, n, TILE):
        size = min(TILE, n - at)
        summed = sum(
            FADING**age * vectors[text[at + DEPTH - age : at + DEPTH - age + size]] for age in range(DEPTH)
        )
        keys[at : at + size] = F.normalize(torch.as_tensor(summed), dim=1)
    return keys


def measure(contestants: dict[str, Search], queries: Tensor, batch: int) -> dict[str, tuple[float, int]]:
    """Median CPU seconds of a call and number of calls, of contestants that take turns, one batch after the other."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for call in contestants.values():
        call(queries[:batch])
    # Whoever comes behind another finds that one's data in the cache, so each comes behind each.
    orders = cycle(permutations(contestants)) if len(contestants) <= 3 else cycle([tuple(contestants)])
    for part, order in zip(cycle(queries.split(batch)), orders, strict=False):
        for name in order:
            call = contestants[name]
            begin = time.process_time()
            call(part)
            times[name].append(time.process_time() - begin)
        calls = len(next(iter(times.values())))
        if calls >= 200 or (calls >= 3 and sum(map(sum, times.values())) > PATIENCE * len(times)):
            break
    return {name: (statistics.median(found), len(found)) for name, found in times.items()}


def torch_search(keys: Tensor) -> Search:
    """A product of matrices and the largest of each row, over pieces whose products fit into memory."""

    def search(queries: Tensor) -> tuple[Tensor, Tensor]:
        best = [(queries @ part.T).topk(min(K, len(part))) for part in keys.split(TILE)]
        scores, at = torch.cat([scores for scores, _ in best], 1).topk(K)
        ids = torch.cat([found + i * TILE for i, (_, found) in enumerate(best)], 1)
        return scores, ids.gather(1, at)

    return search


def faiss_search(keys: Tensor) -> Search:
    """FAISS's flat index, which multiplies matrices from four queries up."""
    d = keys.shape[1]
    raw = faiss.IndexFlatIP(d)
    raw.add(keys.numpy())

    def search(queries: Tensor) -> None:
        with blas_threshold(4 * d):
            raw.search(queries.numpy(), K)

    return search


def exact(n: int, d: int) -> Iterator[dict[str, Any]]:
    """Ours beside raw FAISS and torch, batch by batch."""
    keys, queries = stream(n, d, "train"), stream(QUERIES, d, "test")
    ours = Index("Flat").add(keys)
    contestants: dict[str, Search] = {
        "ours": lambda x: ours.search(x, K),
        "faiss": faiss_search(keys),
        "torch": torch_search(keys),
    }
    for batch in BATCHES:
        found = measure(contestants, queries, batch)
        for peer in ("faiss", "torch"):
            yield row(f"exact, n={n:.0e}, d={d}", batch, found["ours"], found[peer], peer)


def overhead() -> Iterator[dict[str, Any]]:
    """One query of a store of 32: what is left is the call."""
    keys, queries = stream(32, 64, "train"), stream(QUERIES, 64, "test")
    ours, raw = Index("Flat").add(keys), faiss.IndexFlatIP(64)
    raw.add(keys.numpy())
    found = measure(
        {"ours": lambda x: ours.search(x, 8), "faiss": lambda x: raw.search(x.numpy(), 8)}, queries, 1
    )
    yield row("exact, n=32, d=64", 1, found["ours"], found["faiss"], "faiss")


def lists(n: int, d: int, graphs: bool, alike: bool = True) -> Iterator[dict[str, Any]]:
    """Inverted lists beside exact search, and graphs beside them, all at the target."""
    keys, queries = stream(n, d, "train", alike), stream(QUERIES, d, "test", alike)
    flat = Index("Flat").add(keys)
    asked = queries[:256]
    truth = flat.search(asked, K)

    def share(ids: Tensor) -> float:
        found = Neighbors.of(torch.zeros(ids.shape), ids)
        return recall(found, truth, asked, keys.__getitem__, "ip")

    contestants: dict[str, Search] = {"exact": lambda x: flat.search(x, K), "faiss": faiss_search(keys)}
    names = {"exact": "exact", "faiss": "raw FAISS, exact"}
    for codes in CODES:
        index = Index(f"IVF{2048 if n < 5e5 else 4096},{codes}").add(keys)
        for index.nprobe in (*range(1, 8), *range(8, 32, 2), *range(32, 129, 8)):
            if (reached := share(index.search(asked, K).ids)) >= TARGET:
                break
        contestants[codes] = lambda x, index=index: index.search(x, K)
        names[codes] = f"{index.factory} nprobe={index.nprobe} recall {reached:.2f}"
    for name, make in (("hnswlib", hnswlib_graph), ("usearch", usearch_graph)) if graphs else ():
        if (made := make(keys)) is None:
            continue
        search, set_ef = made
        for ef in (*range(32, 128, 16), *range(128, 512, 32), *range(512, 1025, 128)):
            set_ef(ef)
            if (reached := share(search(asked))) >= TARGET:
                break
        contestants[name] = search
        names[name] = f"{name} ef={ef} recall {reached:.2f}"
    for batch in (1, 256):
        found = measure(contestants, queries, batch)
        for peer in names:
            if peer not in CODES:
                for codes in CODES:
                    case = f"{names[codes]}, n={n:.0e}, d={d}{'' if alike else ', unlike'}"
                    yield row(case, batch, found[codes], found[peer], names[peer])


def hnswlib_graph(keys: Tensor) -> tuple[Search, Callable[[int], None]] | None:
    """The graph of nmslib's authors; ``None`` if it is not installed."""
    try:
        import hnswlib
    except ImportError:
        return None
    graph = hnswlib.Index("ip", keys.shape[1])
    graph.init_index(len(keys), ef_construction=40, M=16)
    graph.set_num_threads(1)
    graph.add_items(keys.numpy())
    return lambda x: torch.from_numpy(graph.knn_query(x.numpy(), K)[0].astype(np.int64)), graph.set_ef


def usearch_graph(keys: Tensor) -> tuple[Search, Callable[[int], None]] | None:
    """Unum's graph; ``None`` if it is not installed."""
    try:
        from usearch.index import Index as Graph
    except ImportError:
        return None
    graph = Graph(ndim=keys.shape[1], metric="ip", connectivity=16, expansion_add=40)
    graph.add(np.arange(len(keys)), keys.numpy(), threads=1)

    def search(x: Tensor) -> Tensor:
        return torch.from_numpy(graph.search(x.numpy(), K, threads=1).keys.astype(np.int64).reshape(-1, K))

    return search, lambda ef: setattr(graph, "expansion_search", ef)


def growth(largest: int) -> Iterator[dict[str, Any]]:
    """Exact search and lists as a store grows, 64 dimensions, batches of 256."""
    queries = stream(256, 64, "test")
    for n in (10**power for power in range(4, round(math.log10(largest)) + 1)):
        keys = stream(n, 64, "train")
        index = Index(f"IVF{min(4096, round(4 * n**0.5))},SQ8", nprobe=16)
        index.train(keys[:: max(1, n // 2**18)])
        for part in keys.split(2**20):
            index.add(part)
        flat = Index("Flat").add(keys)
        found = measure(
            {"lists": partial(index.search, k=K), "exact": partial(flat.search, k=K)}, queries, 256
        )
        del keys
        case = f"{index.factory} nprobe=16, n={n:.0e}, d=64"
        yield {"n": n, **row(case, 256, found["lists"], found["exact"], "exact")}


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Queries a second over the number of vectors."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    sizes = [float(result["n"]) for result in results]
    axes.loglog(sizes, [result["peer"] for result in results], "o-", label="exact")
    axes.loglog(sizes, [result["ours"] for result in results], "s-", label="inverted lists")
    axes.set(xlabel="vectors of 64 dimensions", ylabel="queries a second, one thread")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def row(case: str, batch: int, ours: tuple[float, int], peer: tuple[float, int], name: str) -> dict[str, Any]:
    """A line of the result, from seconds of a call and their number."""
    return {
        "case": f"{case}, batch {batch}",
        "ours": batch / ours[0],
        "peer": batch / peer[0],
        "peer_name": name,
        "unit": "queries/s",
        "ratio": peer[0] / ours[0],
        "repeats": ours[1],
    }


def main() -> None:
    """Measure and print; ``--json`` keeps the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--small", action="store_true", help="a hundred thousand vectors only")
    parser.add_argument("--only", choices=("exact", "lists"), help="one kind of search (default: both)")
    parser.add_argument("--growth", type=float, metavar="N", help="measure up to this many vectors instead")
    parser.add_argument("--plot", type=Path, help="where to draw growth")
    arguments = parser.parse_args()
    sizes = (100_000,) if arguments.small else (100_000, 1_000_000)

    def cases() -> Iterator[dict[str, Any]]:
        if arguments.growth:
            yield from growth(int(arguments.growth))
            return
        if arguments.only != "lists":
            yield from overhead()
        for n in sizes:
            for d in (64, 256):
                if arguments.only != "lists":
                    yield from exact(n, d)
                if arguments.only != "exact":
                    yield from lists(n, d, graphs=n <= 100_000)
        if arguments.only != "exact":
            yield from lists(100_000, 64, graphs=True, alike=False)

    results = []
    with threads(1):
        for result in cases():
            results.append(result)
            print(
                f"{result['case']:66s} {result['ours']:10.4g} {result['peer']:10.4g} queries/s "
                f"{result['ratio']:7.3f} x {result['peer_name']}",
                flush=True,
            )
            if arguments.json:
                arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if arguments.plot and arguments.growth:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
