"""Neural memory, beside NeuralMemory of titans-pytorch: tokens per second and peak memory of a training step.

    python -m benchmarks.neural_memory --json docs/results/neural_memory.json

One step is forward and backward of one layer: 4 rows of 1,024 positions, 4 heads, chunks of 64, a memory of two layers
with a fourfold hidden width, momentum and decay, float32. The peer takes gradients at the weights that the chunk begins
with, as we do (``batch_size=64``), or, faster, at those that the text begins with (``batch_size=None``); its gates of
momentum and decay are pooled over a chunk, ours are of single positions. Its layer normalisation inside the memory is
left out. Contestants take turns; figures are medians of CPU time on one thread. Peak memory is that of a process of
its own, above what it held before the first step. Without titans-pytorch (``pip install titans-pytorch``) its lines
are left out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.training import tune_allocator
from mann import Context
from mann.memory.neural import NeuralMemory

ROWS, TIME, HEADS, CHUNK = 4, 1024, 4, 64
WIDTHS = (64, 256)
PEERS: dict[str, int | None] = {
    "titans-pytorch, weights of the chunk": CHUNK,
    "titans-pytorch, weights of the beginning": None,
}
Forward = Callable[[Tensor], Tensor]


def ours(width: int, hidden: int | None = None) -> tuple[nn.Module, Forward]:
    """Our layer, and how it is called."""
    layer = NeuralMemory(width, HEADS, CHUNK, hidden)
    nn.init.normal_(layer.out.weight, std=width**-0.5)
    context = Context(torch.zeros(ROWS, TIME, dtype=torch.long))
    return layer, lambda x: layer(x, context)


def peer(width: int, batch_size: int | None) -> tuple[nn.Module, Forward]:
    """The peer's layer, and how it is called."""
    from titans_pytorch import NeuralMemory as Peer

    layer = Peer(
        width,
        chunk_size=CHUNK,
        batch_size=batch_size,
        dim_head=width // HEADS,
        heads=HEADS,
        mem_model_norm_add_residual=False,
        # Small steps keep the numbers finite whatever the inputs; the work is the same.
        default_step_transform_max_lr=1e-2,
    )
    return layer, lambda x: layer(x)[0]


def contestants(width: int) -> dict[str, Callable[[], tuple[nn.Module, Forward]]]:
    """What makes each."""
    found: dict[str, Callable[[], tuple[nn.Module, Forward]]] = {
        "NeuralMemory": lambda: ours(width),
        "NeuralMemory, linear": lambda: ours(width, 0),
    }
    for name, batch_size in PEERS.items():
        found[name] = lambda batch_size=batch_size: peer(width, batch_size)
    return found


def step(layer: nn.Module, forward: Forward, x: Tensor) -> None:
    """Forward and backward."""
    layer.zero_grad()
    forward(x).square().mean().backward()


def inputs(width: int, seed: int) -> Tensor:
    """Random states that want a gradient.

    Shapes:
        result: ``[rows, time, width]``
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, TIME, width, generator=generator).requires_grad_()


def measure_peak(width: int, name: str, results: Any) -> None:
    """Mebibytes that a step needs beside the layer and its inputs; runs in a process of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer, forward = contestants(width)[name]()
    # Kernels are loaded and buffers of libraries made by products of no size worth mention.
    torch.randn(8, 8, 8, requires_grad=True).bmm(torch.randn(8, 8, 8)).sum().backward()
    x = inputs(width, 0)
    before = resident("VmRSS")
    for _ in range(3):
        step(layer, forward, x)
    results.put(resident("VmHWM") - before)


def resident(what: str) -> float:
    """Mebibytes of this process by the kernel; what getrusage says a child inherits from its parent."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return float(status.split(what + ":")[1].split()[0]) / 1024


def peak(width: int, name: str) -> float:
    """See :func:`measure_peak`."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=measure_peak, args=(width, name, results))
    process.start()
    found = results.get()
    process.join()
    return found


def race(width: int, repeats: int) -> dict[str, float]:
    """Median CPU seconds of a step of each, in turns after one that warms up."""
    torch.manual_seed(0)
    running: dict[str, tuple[nn.Module, Forward]] = {}
    for name, make in contestants(width).items():
        try:
            running[name] = make()
        except ImportError:
            print(f"{name} is not installed: its lines are left out")
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for turn in range(repeats + 1):
        for name, (layer, forward) in running.items():
            x = inputs(width, turn)
            begin = time.process_time()
            step(layer, forward, x)
            if turn:
                seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each contestant (default 7)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tune_allocator()
    rows = []
    for width in WIDTHS:
        seconds = race(width, arguments.repeats)
        speeds = {name: ROWS * TIME / took for name, took in seconds.items()}
        peaks = {name: peak(width, name) for name in seconds}
        for name in seconds:
            print(
                f"width {width:4d}  {name:42s} {speeds[name]:10,.0f} tokens/s {peaks[name]:8,.0f} MiB",
                flush=True,
            )
        for other in PEERS:
            if other in seconds:
                rows.append(
                    {
                        "case": f"width {width}: training step",
                        "ours": speeds["NeuralMemory"],
                        "peer": speeds[other],
                        "peer_name": other,
                        "unit": "tokens/s",
                        "ratio": speeds["NeuralMemory"] / speeds[other],
                        "ours_peak_mib": peaks["NeuralMemory"],
                        "peer_peak_mib": peaks[other],
                        "repeats": arguments.repeats,
                    }
                )
                print(f"width {width:4d}  {rows[-1]['ratio']:.2f} x {other}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
