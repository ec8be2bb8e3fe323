"""Memory layers in training, beside the public packages, with the same weights.

    python -m benchmarks.mann --json docs/results/mann.json

A step is forward, backward and optimiser of one layer, for one row of 1,024 tokens, 256 wide, with queries of half that
width a head, as Memory+ has them. Both have the same sizes and the same weights, copied, no norm of queries, and their
outputs and gradients are compared before they are timed. Contestants take turns on one thread; figures are medians of
CPU time.

The optimisers differ, as they have to. Ours is :class:`mann.optim.RowAdam` on tables: rows without a gradient rest.
The packages give their tables dense gradients, so Adam moves every row: torch's own, as it comes, and beside it the
fused one. "Sparse by hand" is the package with a switch set that it has no option for: row-sparse gradients, and
:class:`torch.optim.SparseAdam`, which moves the same rows as ours. Everything but tables has fused Adam in the others.

Peak memory is that of a process that takes three steps, over what it had before the layer was built (Linux only).
``pip install product-key-memory colt5-attention PEER-pytorch einops einx frozendict``; without them their lines are
left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer, SparseAdam

from experiments.training import tune_allocator
from mann import ProductKeyMemory
from mann.feedforward.peer import PEER
from mann.optim import RowAdam

WIDTH, TOKENS, HEADS = 256, 1024, 4
# Of a query.
HALF = WIDTH // 4
# Keys of each half, by the name of a case.
CASES = {
    "product keys, 16,384 values": ("product-key-memory", 128),
    "product keys, 262,144 values": ("product-key-memory", 512),
    "PEER, 16,384 experts, 4 heads x 16": ("PEER-pytorch", 128),
}
MODULES = {"product-key-memory": "product_key_memory", "PEER-pytorch": "PEER_pytorch"}
CONTESTANTS = ("ours", "peer", "peer, fused Adam", "peer, sparse by hand")


def peer_layer(package: str, n_keys: int) -> nn.Module:
    """The layer of a package, without a norm of queries."""
    if package == "product-key-memory":
        from product_key_memory import PKM

        layer = PKM(WIDTH, heads=HEADS, num_keys=n_keys, topk=32, dim_head=HALF)
        layer.norm = nn.Identity()
        return layer
    import PEER_pytorch

    # With its default scores, which do not compete, it takes one expert a head, whatever is asked for.
    return PEER_pytorch.PEER(
        WIDTH,
        heads=HEADS,
        num_experts=n_keys**2,
        num_experts_per_head=16,
        dim_key=HALF,
        non_competing_scores=False,
    )


def our_layer(package: str, n_keys: int) -> nn.Module:
    """Ours of the same sizes."""
    sizes: dict[str, Any] = {"n_keys": n_keys, "n_heads": HEADS, "d_query": 2 * HALF, "norm": "none"}
    if package == "product-key-memory":
        return ProductKeyMemory(WIDTH, k=32, gated=False, projected=False, **sizes)
    return PEER(WIDTH, k=16, **sizes)


def tables(layer: nn.Module) -> list[nn.Module]:
    """What holds the rows, those that are read first."""
    return [part for part in layer.modules() if isinstance(part, (nn.Embedding, nn.EmbeddingBag))]


@torch.no_grad()
def copy_weights(ours: Any, peer: Any) -> None:
    """Make ours compute what the package does."""
    query = next(part for part in peer.to_queries.modules() if isinstance(part, nn.Linear))
    # Halves are the outer dimension of theirs, heads of ours.
    ours.keys.query.weight.copy_(query.weight.unflatten(0, (2, HEADS, -1)).transpose(0, 1).flatten(0, 2))
    ours.keys.keys.copy_(peer.keys.transpose(1, 2))
    for one, other in zip(tables(ours), tables(peer), strict=True):
        one.weight.copy_(other.weight)


class Contestant:
    """A layer and its optimisers."""

    def __init__(self, name: str, package: str, n_keys: int) -> None:
        torch.manual_seed(0)
        self.layer = our_layer(package, n_keys) if name == "ours" else peer_layer(package, n_keys)
        rows = {id(part.weight) for part in tables(self.layer)}
        dense = [weight for weight in self.layer.parameters() if id(weight) not in rows]
        sparse = [weight for weight in self.layer.parameters() if id(weight) in rows]
        if name in ("peer", "peer, fused Adam"):
            dense, sparse = dense + sparse, []
        for part in tables(self.layer):
            part.sparse = bool(sparse)  # type: ignore[assignment]
        self.optimizers: list[Optimizer] = [Adam(dense, lr=1e-3, fused=name != "peer" or None)]
        if sparse:
            self.optimizers.append((RowAdam if name == "ours" else SparseAdam)(sparse, lr=1e-3))

    def gradients(self, x: Tensor) -> Tensor:
        """Forward and backward; what came out."""
        out = self.layer(x)
        out.square().sum().backward()
        return out

    def step(self, x: Tensor) -> None:
        """One step of training."""
        self.gradients(x)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()


def compare(ours: Contestant, peer: Contestant, x: Tensor) -> None:
    """Refuse to time layers that do not compute the same."""
    copy_weights(ours.layer, peer.layer)
    alike(ours.gradients(x)[0], peer.gradients(x)[0])
    for one, other in zip(tables(ours.layer), tables(peer.layer), strict=True):
        alike(one.weight.grad.to_dense(), other.weight.grad)
    alike(ours.layer.keys.keys.grad.transpose(1, 2).flatten(0, 2), peer.layer.keys.grad.flatten(0, 2))
    for contestant in (ours, peer):
        contestant.layer.zero_grad()


def alike(one: Tensor, other: Tensor) -> None:
    """All rows but a twentieth: where rounding chose another of two equally good, every key of that head notices."""
    differing = ((one - other).abs().amax(1) > 1e-3 * other.abs().max()).float().mean()
    if differing > 0.05:
        raise SystemExit(f"ours and theirs differ in {float(differing):.1%} of the rows")


def race(case: str, repeats: int) -> Iterator[dict[str, Any]]:
    """Tokens a second in training."""
    package, n_keys = CASES[case]
    contestants = {name: Contestant(name, package, n_keys) for name in CONTESTANTS}
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(1, TOKENS, WIDTH, generator=generator) for _ in range(repeats + 2)]
    compare(contestants["ours"], contestants["peer"], draws[0])
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn, x in enumerate(draws):
        for name, contestant in contestants.items():
            begin = time.process_time()
            contestant.step(x)
            if turn >= 2:
                seconds[name].append(time.process_time() - begin)
    middle = {name: TOKENS / statistics.median(times) for name, times in seconds.items()}
    for name in CONTESTANTS[1:]:
        yield row(
            f"{case}: training", middle["ours"], middle[name], named(package, name), "tokens/s", repeats
        )


def peaks(case: str) -> Iterator[dict[str, Any]]:
    """Mebibytes at most, each in a process of its own."""
    found = {}
    for name in CONTESTANTS:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.mann", "--peak", case, name]
        found[name] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for name in CONTESTANTS[1:]:
        yield row(f"{case}: peak memory", found["ours"], found[name], named(CASES[case][0], name), "MiB", 1)


def peak(case: str, name: str) -> float:
    """Of this process, over what it holds before there is a layer."""
    x = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    before = most_memory()
    contestant = Contestant(name, *CASES[case])
    for _ in range(3):
        contestant.step(x)
    return most_memory() - before


def most_memory() -> float:
    """Mebibytes that this process has held at most."""
    # What the system says of its resources includes the process that started it.
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def named(package: str, name: str) -> str:
    return package + name.removeprefix("peer")


def row(case: str, ours: float, peer: float, peer_name: str, unit: str, repeats: int) -> dict[str, Any]:
    """One line of the result; a ratio above one where ours is better."""
    ratio = ours / peer if unit == "tokens/s" else peer / ours
    print(f"{case:54s} {ours:9.0f} {peer:9.0f} {unit:8s} {ratio:6.2f} x {peer_name}", flush=True)
    return {
        "case": case,
        "ours": ours,
        "peer": peer,
        "peer_name": peer_name,
        "unit": unit,
        "ratio": ratio,
        "repeats": repeats,
    }


def main() -> None:
    """Measure and print; ``--json`` keeps the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--only", help="cases whose name contains this")
    parser.add_argument("--repeats", type=int, default=15, help="turns of each contestant (default 15)")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "CONTESTANT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tune_allocator()
    if arguments.peak:
        print(peak(*arguments.peak))
        return
    results = []
    for case, (package, _) in CASES.items():
        if arguments.only and arguments.only not in case:
            continue
        if importlib.util.find_spec(MODULES[package]) is None:
            print(f"{case}: skipped, {package} is not installed")
            continue
        for part in (race(case, arguments.repeats), peaks(case)):
            for result in part:
                results.append(result)
                if arguments.json:
                    arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
