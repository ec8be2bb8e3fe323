"""What the ledger is checked on by `benchmarks/executed.py`: work that can be run over and over, and what to expect.

A case says in which range executed over billed operations must lie, and why it is not 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.arms import arm_named
from experiments.ledger import Ledger
from mann import LanguageModule, Transformer
from mann.optim import RoleOptimizer
from retrieval import Index, Passages
from retrieval.exact import Metric

Work = Callable[[], object]
VECTORS, SAMPLE, QUERIES, D, K = 2000, 1000, 256, 64, 10


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Args:
        group: Under which heading it stands.
        name: What is computed.
        within: The least and the greatest ratio of executed to billed operations.
        note: Why the ratio is not 1.
        setup: Makes what is needed and returns the work: called twice with the same result, once billed and
            once watched. An :class:`~retrieval.Index` it returns is billed by its own books.
        integers: Whether additions of packed integers count as executed: they do the work of a fast-scan search.
    """

    group: str
    name: str
    within: tuple[float, float]
    note: str
    setup: Callable[[], Work]
    integers: bool = False


def bill(work: Work) -> int:
    """FLOPs of the work by the ledger."""
    with Ledger() as ledger:
        made = work()
    return ledger.flops + (sum(made.flops.values()) if isinstance(made, Index) else 0)


def _with_backward(function: Callable[..., Tensor], *inputs: Tensor) -> Work:
    inputs = tuple(x.requires_grad_() if x.is_floating_point() else x for x in inputs)
    out = function(*inputs)
    gradient = torch.randn_like(out)
    wanted = [x for x in inputs if x.requires_grad]
    return lambda: torch.autograd.grad(function(*inputs), wanted, gradient)


def _matrix_products() -> Iterator[Case]:
    def case(name: str, setup: Callable[[], Work], most: float = 1.05, note: str = "") -> Case:
        return Case("Matrix products", name, (0.99, most), note, setup)

    def on(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Callable[[], Work]:
        return lambda: partial(function, *(torch.randn(shape) for shape in shapes))

    yield case("128 x 256 times 256 x 192", on(torch.mm, (128, 256), (256, 192)))
    yield case(
        "100 x 70 times 70 x 50", on(torch.mm, (100, 70), (70, 50)), 1.2, "edges are padded to registers"
    )
    yield case("16 products of 64 x 32 and 32 x 64", on(torch.bmm, (16, 64, 32), (16, 32, 64)))
    yield case("matrix times vector, 512 x 256", on(torch.mv, (512, 256), (256,)))
    yield case("linear layer 256 to 1024, 64 rows", on(F.linear, (64, 256), (1024, 256), (1024,)))
    yield case(
        "linear layer, forward and backward",
        lambda: _with_backward(F.linear, torch.randn(64, 256), torch.randn(1024, 256), torch.randn(1024)),
    )
    yield case("convolution of length 5, 32 to 64 channels", on(F.conv1d, (4, 32, 128), (64, 32, 5)), 1.1)


def _attention() -> Iterator[Case]:
    def setup(time: int, causal: bool, backward: bool) -> Work:
        qkv = [torch.randn(1, 4, time, 32) for _ in range(3)]
        attend = partial(F.scaled_dot_product_attention, is_causal=causal)
        return _with_backward(attend, *qkv) if backward else partial(attend, *qkv)

    def spelled() -> Work:
        q, k, v = (torch.randn(4, 256, 32) for _ in range(3))
        return lambda: torch.softmax(q @ k.mT * 32**-0.5, -1) @ v

    full = "exp is billed as 1"
    half = "the kernel computes {} of the pairs, half are billed; exp is billed as 1"
    for time, causal, backward, within, note in (
        (256, False, False, (1.0, 1.25), full),
        (
            256,
            False,
            True,
            (1.0, 1.4),
            full + "; the backward kernel computes scores again, which is not billed",
        ),
        (256, True, False, (1.9, 2.5), half.format("all")),
        (1024, True, False, (1.4, 1.9), half.format("three quarters")),
        (1024, True, True, (1.5, 2.2), half.format("three quarters") + "; scores again in backward"),
    ):
        name = f"{'causal' if causal else 'full'}, {time} positions{', forward and backward' * backward}"
        yield Case("Attention", name, within, note, partial(setup, time, causal, backward))
    yield Case("Attention", "spelled out, 256 positions", (1.0, 1.5), full, spelled)


def _message_passing() -> Iterator[Case]:
    def setup(name: str, backward: bool, **options: object) -> Work:
        from torch_geometric import nn as layers

        torch.manual_seed(0)
        edges = torch.randint(0, 1000, (2, 8000))
        layer = getattr(layers, name)(64, options.pop("out", 64), **options)
        x = torch.randn(1000, 64, requires_grad=True)
        if not backward:
            return torch.no_grad()(lambda: layer(x, edges))
        wanted = [x, *layer.parameters()]
        return lambda: torch.autograd.grad(layer(x, edges).sum(), wanted)

    heads = {"out": 16, "heads": 4}
    softmax = "exp is billed as 1; sums of rows of 16 take up to 9 an element"
    for name, options, note in (
        ("GCNConv", {}, ""),
        ("SAGEConv", {}, ""),
        ("GATConv", heads, softmax),
        ("GATv2Conv", heads, softmax),
        ("TransformerConv", heads, softmax),
    ):
        for backward in (False, True):
            suffix = ", forward and backward" * backward
            made = partial(setup, name, backward, **options)
            within = (1.0, 1.4) if note else (0.99, 1.03)
            yield Case("Message passing", name + suffix, within, note, made)


def _weighted_reads() -> Iterator[Case]:
    def setup(read: Callable[[Tensor, Tensor, Tensor], Tensor], backward: bool = False) -> Work:
        table, rows, weights = torch.randn(2000, 64), torch.randint(0, 2000, (256, 16)), torch.randn(256, 16)
        if backward:
            return _with_backward(lambda table, weights: read(table, rows, weights), table, weights)
        return partial(read, table, rows, weights)

    def bag(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        return F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")

    def plain(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        return F.embedding_bag(rows, table, mode="sum")

    def gathered(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        return (table[rows] * weights[..., None]).sum(1)

    def einsum(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        return torch.einsum("nkd,nk->nd", table[rows], weights)

    short = "sums of short rows"
    for name, read, within, note in (
        ("gather, multiply, sum", gathered, (0.99, 1.3), short),
        ("gather, einsum", einsum, (0.99, 10), "a matrix product with a side of 1, most of it padding"),
        ("embedding_bag, weighted", bag, (0.99, 1.03), ""),
        ("embedding_bag, sum", plain, (0.99, 1.03), ""),
    ):
        yield Case("Weighted reads of a table", name, within, note, partial(setup, read))
    for name, read, within in (
        ("gather, multiply, sum", gathered, (0.99, 1.6)),
        ("embedding_bag, weighted", bag, (0.99, 1.2)),
    ):
        made = partial(setup, read, backward=True)
        yield Case("Weighted reads of a table", f"{name}, forward and backward", within, short, made)


def _elementwise() -> Iterator[Case]:
    def case(
        name: str,
        function: Callable[[Tensor], Tensor],
        within: tuple[float, float],
        note: str,
        backward: bool = False,
    ) -> Case:
        def setup() -> Work:
            x = torch.randn(256, 512)
            return _with_backward(function, x) if backward else partial(function, x)

        return Case("Element by element, and along a dimension", name, within, note, setup)

    polynomial = "a transcendental function is billed as 1 and runs as a polynomial"
    short = "sums across registers"
    yield case("x * 3 + x", lambda x: x * 3 + x, (1.0, 1.6), "the addition runs as a fused multiply-add")
    yield case("sums of rows of 512", lambda x: x.sum(-1), (0.99, 1.5), short)
    yield case("sums of rows of 16", lambda x: x.view(-1, 16).sum(-1), (0.99, 10), short)
    yield case("square root", lambda x: x.abs().sqrt(), (3, 10), "runs as an estimate that is refined")
    yield case("exp", torch.exp, (14, 22), polynomial)
    yield case("silu", F.silu, (9, 14), polynomial)
    yield case("gelu", F.gelu, (6, 10), polynomial)
    yield case("gelu, tanh form", partial(F.gelu, approximate="tanh"), (18, 28), polynomial)
    yield case("softmax", partial(torch.softmax, dim=-1), (4, 6), polynomial)
    yield case(
        "softmax, forward and backward", partial(torch.softmax, dim=-1), (2.5, 4), polynomial, backward=True
    )
    yield case("log_softmax", partial(torch.log_softmax, dim=-1), (4, 6.5), polynomial)
    norm = "mean and variance in one stable pass"
    yield case("layer_norm", lambda x: F.layer_norm(x, (512,)), (1.2, 2), norm)
    yield case(
        "layer_norm, forward and backward", lambda x: F.layer_norm(x, (512,)), (0.9, 1.3), norm, backward=True
    )
    yield case("rms_norm", lambda x: F.rms_norm(x, (512,)), (0.95, 1.25), short)


def _optimizers() -> Iterator[Case]:
    def setup(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> Work:
        weights = [nn.Parameter(torch.randn(256, 256)) for _ in range(2)]
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer = make(weights)
        optimizer.step()
        return lambda: optimizer.step() and None

    for name, within, note, make in (
        ("AdamW, fused", (0.99, 1.02), "", partial(torch.optim.AdamW, fused=True)),
        (
            "AdamW, tensor by tensor",
            (1.5, 2.2),
            "a square root runs as 13 operations",
            partial(torch.optim.AdamW, foreach=False),
        ),
        (
            "SGD with momentum",
            (1.0, 1.4),
            "an addition runs as a fused multiply-add",
            partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        ),
    ):
        yield Case("Optimizers", name, within, note, partial(setup, make))


def _vectors(n: int, seed: int) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


LANES = "12 more a pair: sums across a register"
CODES = "lists are padded to 32 codes, which are summed as integers (counted here)"

SEARCHES: tuple[tuple[str, Metric, tuple[float, float], str], ...] = (
    ("Flat", "ip", (0.99, 1.05), ""),
    ("Flat", "l2", (0.6, 1.05), "norms once, then a matrix product: 2d a pair, 3d are billed"),
    ("IVF64,Flat", "ip", (1.0, 1.12), LANES),
    ("IVF64,Flat", "l2", (0.9, 1.12), f"{LANES}; centroids by matrix product"),
    ("IVF64,SQ8", "ip", (0.99, 1.1), LANES),
    ("IVF64,SQ8", "l2", (0.95, 1.1), LANES),
    ("IVF64,SQfp16", "ip", (1.0, 1.12), LANES),
    ("SQ8", "ip", (0.99, 1.1), LANES),
    ("PQ16x4", "l2", (0.9, 1.1), ""),
    ("PQ8x8", "ip", (0.95, 1.3), ""),
    ("IVF64,PQ16x8", "ip", (0.95, 1.2), ""),
    ("IVF64,PQ16x8", "l2", (0.95, 1.2), ""),
    ("PQ16x4fs", "l2", (0.9, 1.5), CODES),
    ("IVF64,PQ16x4fsr", "ip", (0.9, 1.6), CODES),
    ("HNSW16", "ip", (1.0, 1.12), LANES),
    ("HNSW16", "l2", (1.0, 1.12), LANES),
    ("HNSW16_SQ8", "l2", (0.95, 1.1), LANES),
    ("IVF64,PQ16x4fs,RFlat", "ip", (0.9, 1.6), CODES),
    ("PCA32,IVF64,Flat", "ip", (1.0, 1.25), LANES),
)


def _searches() -> Iterator[Case]:
    def setup(factory: str, metric: Metric) -> Work:
        vectors = _vectors(VECTORS, 0)
        # Trained on few: emulation is slow, and what a search costs does not depend on how good the centroids are.
        index = Index(factory, metric=metric).train(vectors[:SAMPLE]).add(vectors)
        return partial(index.search, _vectors(QUERIES, 1), K)

    for factory, metric, within, note in SEARCHES:
        made = partial(setup, factory, metric)
        yield Case("FAISS searches", f"{factory}, {metric}", within, note, made, integers="fs" in factory)


STOPS = "k-means stops when nothing moves; distances by matrix product"

# What is done with the vectors: trained on some, or then all added too.
BUILDS: tuple[tuple[str, str, Metric, tuple[float, float], str], ...] = (
    ("train", "IVF64,Flat", "ip", (0.7, 1.1), STOPS),
    ("train", "IVF64,Flat", "l2", (0.5, 1.1), STOPS),
    ("train", "PQ8x6", "l2", (0.3, 1.1), STOPS),
    ("train", "PCA32,Flat", "ip", (0.5, 1.1), "an estimate of the eigendecomposition is billed"),
    ("add", "IVF64,SQ8", "ip", (0.8, 1.1), STOPS),
    ("add", "PQ8x6", "l2", (0.3, 1.1), STOPS),
    ("add", "HNSW16", "l2", (0.8, 1.3), "billed by searches of a sample, which run too"),
    ("add", "HNSW16", "ip", (0.8, 1.3), "billed by searches of a sample, which run too"),
)


def _builds() -> Iterator[Case]:
    def setup(what: str, factory: str, metric: Metric) -> Work:
        vectors = _vectors(VECTORS, 0)
        if what == "train":
            return lambda: Index(factory, metric=metric).train(vectors[:SAMPLE])
        return lambda: Index(factory, metric=metric).train(vectors[:SAMPLE]).add(vectors)

    for what, factory, metric, within, note in BUILDS:
        name = f"{'train' if what == 'train' else 'train and add'} {factory}, {metric}"
        yield Case("FAISS builds", name, within, note, partial(setup, what, factory, metric))


def _training_steps() -> Iterator[Case]:
    def setup(name: str) -> Work:
        torch.manual_seed(0)
        random = np.random.default_rng(0)
        tokens = random.integers(1, 256, 20_000).astype(np.uint16)
        tokens[::500] = 0
        arm = arm_named(name)
        source = (
            arm.source(Passages(tokens, np.arange(0, 20_001, 500), vocab_size=256)) if arm.source else None
        )
        module = LanguageModule(Transformer(256, 64, 3, **arm.slots(3, source)), total_steps=100)
        optimizer = RoleOptimizer(module.network, module.rates)
        window = torch.from_numpy(tokens[: 4 * 129].astype(np.int64)).view(4, 129)
        batch: dict[str, Any] = {"tokens": window[:, :-1].contiguous(), "targets": window[:, 1:].contiguous()}
        if source is not None:
            # As in training: neighbours are found beforehand, a search is no part of a step.
            batch["neighbors"] = source.search(batch["tokens"], k=16)

        def step() -> None:
            module(batch).backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        return step

    for name in ("dense", "ngram", "knn", "graph"):
        yield Case(
            "Training steps",
            name,
            (0.95, 1.3),
            "attention computes whole blocks; exp is billed as 1",
            partial(setup, name),
        )


def cases() -> list[Case]:
    """Every case, in the order of the page."""
    groups = (
        _matrix_products,
        _attention,
        _message_passing,
        _weighted_reads,
        _elementwise,
        _optimizers,
        _searches,
        _builds,
        _training_steps,
    )
    return [case for group in groups for case in group()]
