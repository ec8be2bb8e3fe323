"""Training speed of the backbone on one core, beside x-transformers and a plain decoder on torch's fused attention.

    python benchmarks/backbone.py --json backbone.json

Contestants take turns, so a busy machine slows all of them alike; figures are medians over the turns. CPU time is
the process's own (a core shared with others does not lengthen it), wall time what a clock shows. Without
x-transformers (``pip install x-transformers``) its lines are left out.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader

from experiments.ledger import Ledger, UnpricedOperator
from experiments.training import tune_allocator
from mann import LanguageModule, Transformer
from mann.optim import RoleOptimizer

TIME = 256


class PlainDecoder(nn.Module):
    """LayerNorm, learned positions, GELU, scaled_dot_product_attention: the decoder everybody has written once."""

    def __init__(self, vocab_size: int, d_model: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.token = nn.Embedding(vocab_size, d_model)
        self.position = nn.Embedding(TIME, d_model)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "before_mixing": nn.LayerNorm(d_model, bias=False),
                    "qkv": nn.Linear(d_model, 3 * d_model, bias=False),
                    "out": nn.Linear(d_model, d_model, bias=False),
                    "before_mlp": nn.LayerNorm(d_model, bias=False),
                    "up": nn.Linear(d_model, 4 * d_model, bias=False),
                    "down": nn.Linear(4 * d_model, d_model, bias=False),
                }
            )
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model, bias=False)
        self.head = nn.Linear(d_model, vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        for layer in self.layers:
            parts: dict[str, Any] = dict(layer.named_children())
            q, k, v = (
                part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
                for part in parts["qkv"](parts["before_mixing"](x)).chunk(3, -1)
            )
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + parts["out"](y.transpose(1, 2).flatten(2))
            x = x + parts["down"](F.gelu(parts["up"](parts["before_mlp"](x))))
        return self.head(self.norm(x))


def x_transformers(vocab_size: int, d_model: int, n_layers: int, n_heads: int) -> nn.Module | None:
    """Its decoder with rotary positions and fused attention; ``None`` where it is not installed."""
    try:
        from x_transformers import Decoder, TransformerWrapper
    except ImportError:
        return None
    from loguru import logger  # its own dependency, through which it comments on narrow heads

    logger.disable("x_transformers")
    layers = Decoder(
        dim=d_model,
        depth=n_layers,
        heads=n_heads,
        attn_dim_head=d_model // n_heads,
        attn_flash=True,
        rotary_pos_emb=True,
    )
    return TransformerWrapper(
        num_tokens=vocab_size, max_seq_len=TIME, use_abs_pos_emb=False, attn_layers=layers
    )


@dataclass
class Contestant:
    """A model that takes training steps, and how long each part of them took, in CPU and wall seconds."""

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    bf16: bool
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def step(self, tokens: Tensor, targets: Tensor) -> None:
        """Forward, backward, optimizer."""
        marks = [clocks()]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.loss(tokens, targets)
        loss.backward()
        marks.append(clocks())
        self.optimizer.step()
        self.optimizer.zero_grad()
        marks.append(clocks())
        for part, end in (("forward + backward", 1), ("forward + backward + optimizer", 2)):
            for clock in (0, 1):
                key = f"{part}, {('CPU', 'wall')[clock]}"
                self.seconds.setdefault(key, []).append(marks[end][clock] - marks[0][clock])

    def matmul_flops(self, tokens: Tensor, targets: Tensor) -> int | None:
        """Those of one step by the ledger; ``None`` if it runs an operator without a price."""
        try:
            with Ledger() as ledger:
                self.step(tokens, targets)
        except UnpricedOperator:
            return None
        return ledger.matmul_flops


def clocks() -> tuple[float, float]:
    """CPU and wall time now."""
    return time.process_time(), time.perf_counter()


def contestants(vocab_size: int, d_model: int, n_layers: int, n_heads: int, bf16: bool) -> list[Contestant]:
    """Ours with the optimizer it is trained with, the peers with fused AdamW."""
    torch.manual_seed(0)
    size = vocab_size, d_model, n_layers, n_heads
    ours = LanguageModule(Transformer(*size), total_steps=1000)
    found = [
        Contestant(
            "mann.Transformer",
            lambda tokens, targets: ours({"tokens": tokens, "targets": targets}),
            RoleOptimizer(ours.network, ours.rates),
            bf16,
        )
    ]
    for name, model in (
        ("x-transformers", x_transformers(*size)),
        ("plain SDPA decoder", PlainDecoder(*size)),
    ):
        if model is not None:

            def loss(tokens: Tensor, targets: Tensor, model: nn.Module = model) -> Tensor:
                return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())

            found.append(Contestant(name, loss, AdamW(model.parameters(), lr=1e-3, fused=True), bf16))
    return found


def batch(vocab_size: int, rows: int) -> tuple[Tensor, Tensor]:
    """Random tokens and the ones after them."""
    tokens = torch.randint(0, vocab_size, (rows, TIME + 1), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def race(entrants: list[Contestant], data: tuple[Tensor, Tensor], repeats: int, steps: int) -> None:
    """Let them take turns; the first turn warms up and does not count."""
    for turn in range(repeats + 1):
        for entrant in entrants:
            kept = {key: list(values) for key, values in entrant.seconds.items()}
            for _ in range(steps):
                entrant.step(*data)
            # One figure a turn: the mean of its steps.
            for key, values in entrant.seconds.items():
                entrant.seconds[key] = [
                    *kept.get(key, []),
                    statistics.fmean(values[len(kept.get(key, [])) :]),
                ]
            if turn == 0:
                entrant.seconds.clear()


def row(case: str, ours: float, peer: float, peer_name: str, unit: str, repeats: int) -> dict[str, Any]:
    """One line of the result; for every unit used here more is better."""
    print(f"{case:66s} {ours:10.4g} {peer:10.4g} {unit:18s} {ours / peer:6.2f} x {peer_name}", flush=True)
    return {
        "case": case,
        "ours": ours,
        "peer": peer,
        "peer_name": peer_name,
        "unit": unit,
        "ratio": ours / peer,
        "repeats": repeats,
    }


def training_steps(repeats: int) -> Iterator[dict[str, Any]]:
    """Tokens a second at width 256, four layers, vocabulary 256, 8 x 256 tokens."""
    data = batch(256, 8)
    for bf16 in (False, True):
        ours, *peers = entrants = contestants(256, 256, 4, 4, bf16)
        race(entrants, data, repeats, 1)
        for key in ours.seconds:
            for peer in peers:
                rates = [data[0].numel() / statistics.median(one.seconds[key]) for one in (ours, peer)]
                case = f"width 256, {'bf16' if bf16 else 'fp32'}, {key}"
                yield row(case, *rates, peer.name, "tokens/s", repeats)


def whole_steps(repeats: int) -> Iterator[dict[str, Any]]:
    """Matrix GFLOP/s and tokens/s of whole training steps in bfloat16, vocabulary 2,048, at the widths of the study."""
    for width, layers, rows in ((64, 3, 8), (96, 3, 8), (128, 3, 8)):
        data = batch(2048, rows)
        ours, *peers = entrants = contestants(2048, width, layers, width // 32, True)
        flops = {one.name: one.matmul_flops(*data) for one in entrants}
        for one in entrants:
            one.seconds.clear()
        race(entrants, data, repeats, 4)
        key = "forward + backward + optimizer, CPU"
        seconds = {one.name: statistics.median(one.seconds[key]) for one in entrants}
        for peer in peers:
            tokens = [data[0].numel() / seconds[one.name] for one in (ours, peer)]
            case = f"width {width}, {layers} layers, batch {rows}, bf16, whole step, CPU"
            yield row(case, *tokens, peer.name, "tokens/s", repeats)
            work = [flops[one.name] for one in (ours, peer)]
            if work[0] and work[1]:
                speed = work[0] / seconds[ours.name] / 1e9, work[1] / seconds[peer.name] / 1e9
                yield row(case, *speed, peer.name, "matmul GFLOP/s", repeats)


class BareLoop(L.Callback):
    """Takes a step of a twin in a loop one would write by hand after every step of the trainer, and times both.

    Step by step in turn: what else the machine does changes both alike, and would hide one percent of whole runs.

    Args:
        twin: A module like the trained one.
        batches: The batches of the twin.
    """

    def __init__(self, twin: LanguageModule, batches: Iterable[Any]) -> None:
        setup = twin.configure_optimizers()
        self.twin = twin
        self.optimizer, self.schedule = setup["optimizer"], setup["lr_scheduler"]["scheduler"]
        self.batches = iter(batches)
        self.seconds: dict[str, list[float]] = {"trainer": [], "bare": []}

    def on_train_batch_end(self, *_: Any) -> None:
        begin = clocks()[0]
        if self.seconds["bare"]:  # Lightning's start belongs to no step
            self.seconds["trainer"].append(begin - self.end)
        again = next(self.batches)
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.twin(again)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.end = clocks()[0]
        self.seconds["bare"].append(self.end - begin)


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning without its advice."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def trainer_and_bare_loop(width: int, layers: int, item: dict[str, Tensor], steps: int) -> dict[str, float]:
    """CPU seconds of a step in ``lightning.Trainer`` and in a bare loop, medians of steps taken in turn."""
    module, twin = (LanguageModule(Transformer(2048, width, layers), total_steps=steps) for _ in range(2))
    loaders = [DataLoader([item] * steps, batch_size=None) for _ in range(2)]
    beside = BareLoop(twin, loaders[1])
    with quiet():
        trainer = L.Trainer(
            accelerator="cpu",
            precision="bf16-mixed",
            max_steps=steps,
            logger=False,
            callbacks=[beside],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loaders[0])
    return {way: statistics.median(seconds) for way, seconds in beside.seconds.items()}


def lightning_overhead(repeats: int, steps: int = 80) -> Iterator[dict[str, Any]]:
    """One module trained by ``lightning.Trainer`` and by a bare loop, step by step: bfloat16, vocabulary 2,048."""
    for width, layers, rows in ((64, 3, 8), (128, 3, 8), (256, 4, 8)):
        tokens, targets = batch(2048, rows)
        item = {"tokens": tokens, "targets": targets}
        turns = [trainer_and_bare_loop(width, layers, item, steps) for _ in range(repeats)]
        speeds = [1 / statistics.median(turn[way] for turn in turns) for way in ("trainer", "bare")]
        case = f"width {width}, {layers} layers, batch {rows}, bf16, lightning.Trainer, CPU"
        line = row(case, speeds[0], speeds[1], "bare loop", "steps/s", repeats)
        added = [100 * (turn["trainer"] / turn["bare"] - 1) for turn in turns]
        line["added_percent"] = {"median": statistics.median(added), "all": added}
        told = ", ".join(f"{one:+.1f}" for one in sorted(added))
        print(f"    lightning.Trainer adds {statistics.median(added):+.1f} % (turns: {told})", flush=True)
        yield line


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each contestant (default 7)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tune_allocator()
    rows = [
        line for part in (training_steps, whole_steps, lightning_overhead) for line in part(arguments.repeats)
    ]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
