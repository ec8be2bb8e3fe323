"""What counting costs a training: Lightning with LedgerCallback, without, and with torch's FlopCounterMode every step.

    python benchmarks/ledger.py --json docs/results/ledger.json

The three take turns step by step in one run, so a busy machine slows all of them alike; figures are medians of CPU
time over steps, then over runs. Steps that the ledger watches, and those it logs at, are measured apart and charged
as often as they come in a training of 1,000 steps. `hooks_percent` compares the time inside the callback's own hooks,
instead of whole steps, with a step without it: the same thing with less noise.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from experiments.ledger import LedgerCallback
from experiments.training import tune_allocator
from mann import LanguageModule, Transformer

VOCAB, TIME = 2048, 256
# A training that the figures are for, and how often it logs.
STEPS, LOG_EVERY = 1000, 50
# Lightning's and the optimizer's beginnings belong to nobody.
WARM = 8
# What FlopCounterMode leaves behind must not slow another's step: an unmeasured one comes after it. Logging after every
# twelfth step always comes after one of the ledger.
TURNS, LOG_HERE = ("counter", "warm", "without", "ledger"), 12
WAYS = ("without", "counter", "ledger")


class Turns(L.Callback):
    """Lets each step be counted in another way, and times all of them."""

    def __init__(self) -> None:
        self.ledger = LedgerCallback()
        self.counter = FlopCounterMode(display=False)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.way, self.hooks, self.watched = "", 0.0, 0
        self.end = time.process_time()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.ledger.on_train_start(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.ledger.on_train_end(trainer, pl_module)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any) -> None:
        number = trainer.global_step
        self.way = "warm" if number < WARM else TURNS[number % len(TURNS)]
        begin = time.process_time()
        if self.way == "ledger":
            self.watched = self.ledger.watched_steps
            self.ledger.on_train_batch_start(trainer, pl_module, *batch)
        elif self.way == "counter":
            self.counter.__enter__()
        self.hooks = time.process_time() - begin

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *batch: Any
    ) -> None:
        begin = time.process_time()
        kind = self.way
        if self.way == "ledger":
            self.ledger.on_train_batch_end(trainer, pl_module, outputs, *batch)
            if self.ledger.watched_steps > self.watched:
                kind = "watched"
            elif trainer.global_step % LOG_HERE == 0:
                kind = "log"
        elif self.way == "counter":
            self.counter.__exit__(None, None, None)
        now = time.process_time()
        self.seconds[kind].append(now - self.end)
        self.seconds[f"hooks of {kind}"].append(self.hooks + now - begin)
        self.end = now


def turns(width: int, layers: int, rows: int, steps: int) -> dict[str, list[float]]:
    """CPU seconds of every step, by the way it was counted."""
    tokens = torch.randint(0, VOCAB, (rows, TIME + 1), generator=torch.Generator().manual_seed(0))
    item = {"tokens": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}
    beside = Turns()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            accelerator="cpu",
            precision="bf16-mixed",
            max_steps=steps,
            logger=False,
            callbacks=[beside],
            log_every_n_steps=LOG_HERE,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = LanguageModule(Transformer(VOCAB, width, layers), total_steps=steps)
        trainer.fit(module, DataLoader([item] * steps, batch_size=None))
    return beside.seconds


def amortised(seconds: dict[str, list[float]]) -> tuple[dict[str, float], float]:
    """Seconds of a step in a training of STEPS, by way; and the share of it spent in the callback's hooks, percent."""
    middle = {kind: statistics.median(values) for kind, values in seconds.items()}
    plain = middle["without"]
    watching = sum(seconds["watched"]) - len(seconds["watched"]) * plain
    logging_each = (middle["hooks of log"] - middle["hooks of ledger"]) / LOG_EVERY
    apart = watching / STEPS + logging_each
    ways = {"without": plain, "counter": middle["counter"], "ledger": middle["ledger"] + apart}
    return ways, 100 * (middle["hooks of ledger"] + apart) / plain


def measured(repeats: int, steps: int) -> Iterator[dict[str, Any]]:
    """Steps a second at widths 64, 128 and 256, bfloat16, vocabulary 2,048, 8 x 256 tokens."""
    for width, layers in ((64, 3), (128, 3), (256, 4)):
        found = [amortised(turns(width, layers, 8, steps)) for _ in range(repeats)]
        speeds = {way: 1 / statistics.median(ways[way] for ways, _ in found) for way in WAYS}
        added = [100 * (ways["ledger"] / ways["without"] - 1) for ways, _ in found]
        hooks = [percent for _, percent in found]
        for peer, name in (("without", "no counting"), ("counter", "FlopCounterMode, every step")):
            case = f"width {width}, {layers} layers, batch 8, bf16, Lightning with LedgerCallback, CPU"
            line = {
                "case": case,
                "ours": speeds["ledger"],
                "peer": speeds[peer],
                "peer_name": name,
                "unit": "steps/s",
                "ratio": speeds["ledger"] / speeds[peer],
                "repeats": repeats,
            }
            if peer == "without":
                line["added_percent"] = {"median": statistics.median(added), "all": added}
                line["hooks_percent"] = {"median": statistics.median(hooks), "all": hooks}
            print(
                f"{case:72s} {line['ours']:8.4g} {line['peer']:8.4g} steps/s {line['ratio']:6.3f} x {name}",
                flush=True,
            )
            yield line
        print(
            f"    counting adds {statistics.median(added):+.2f} %, hooks {statistics.median(hooks):.2f} %",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each width (default 5)")
    parser.add_argument(
        "--steps", type=int, default=280, help="steps of a run, a quarter of them each way (default 280)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tune_allocator()
    rows = list(measured(arguments.repeats, arguments.steps))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
