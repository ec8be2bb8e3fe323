"""What a memory attached to small GPT-2 and Llama models gains on real text in equal steps, and what it costs.

    python -m benchmarks.attach [--text PATH] [--json docs/results/attach.json]

Two layers of width 64, random weights, 1,024 tokens learned from the text; every line starts from the same weights and
sees the same windows in the same order. *alone* goes through the same hooks with everything attached held at its start,
where it changes nothing. Lines with *trained* begin with that model: trained alone for as many steps again, which is
what the next have to be compared with; frozen, with a memory trained for as many steps; and without training, with a
store of its states, which are evaluated on the second half of the validation split and tuned on the first (their step
is a batch of evaluation). Other losses are of the whole validation split; one thread, CPU time.

The default text is Python's own (``pydoc_data``: the reference manual, 0.7 MB).
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import pydoc_data.topics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.data import TextCorpus, Windows
from mann import KNNReadout, NGramMemory, ProductKeyMemory
from mann.attachment import Attached, attach
from mann.knn_store import build_datastore, tune
from mann.mixer.knn import KNNAttention
from mann.module import RATES
from mann.optim import RoleOptimizer, linear_schedule

VOCAB, WIDTH, LAYERS, HEADS, TIME, ROWS = 1024, 64, 2, 2, 128, 8
NGRAM = {"memory": partial(NGramMemory, orders=(2, 3), n_rows=2**15, d_row=16)}
ARMS: dict[str, dict[str, Any]] = {
    "n-gram": NGRAM,
    "product keys": {"feedforward": partial(ProductKeyMemory, n_keys=64, k=16, n_heads=2)},
    "kNN attention": {"mixer": partial(KNNAttention, k=16, window=32)},
}


def models() -> dict[str, Any]:
    """GPT-2 and Llama as they are initialised."""
    transformers = importlib.import_module("transformers")
    special = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0}
    gpt = transformers.GPT2Config(
        **special,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=TIME,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    llama = transformers.LlamaConfig(
        **special,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=172,
        max_position_embeddings=TIME,
    )
    torch.manual_seed(0)
    return {"GPT-2": transformers.GPT2LMHeadModel(gpt), "Llama": transformers.LlamaForCausalLM(llama)}


def order(windows: Windows, steps: int, seed: int) -> Tensor:
    """Windows of every step."""
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-steps * ROWS // len(windows))
    shuffled = torch.cat([torch.randperm(len(windows), generator=generator) for _ in range(rounds)])
    return shuffled[: steps * ROWS].view(steps, ROWS)


def mean(attached: Attached, batch: dict[str, Tensor]) -> Tensor:
    nll = attached.loss(batch["tokens"], batch["targets"], batch.get("documents"))
    return nll.sum() / (batch["targets"] >= 0).sum()


def train(attached: Attached, windows: Windows, steps: int, seed: int) -> float:
    """CPU seconds a step."""
    attached.train()
    optimizer = RoleOptimizer(attached, RATES)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: linear_schedule(step, steps))
    start = time.process_time()
    for index in order(windows, steps, seed):
        mean(attached, windows.batch(index)).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return (time.process_time() - start) / steps


@torch.no_grad()
def evaluate(attached: Attached, windows: Windows, begin: int = 0) -> float:
    attached.eval()
    total = count = 0.0
    for at in range(begin, len(windows), ROWS):
        batch = windows.batch(torch.arange(at, min(at + ROWS, len(windows))))
        scored = int((batch["targets"] >= 0).sum())
        total, count = total + float(mean(attached, batch)) * scored, count + scored
    return total / count


def line(name: str, model: nn.Module, steps: int, loss: float, seconds: float) -> dict[str, Any]:
    print(
        f"{name:45s} {steps:5d} steps  {loss:.4f} nats a token  {1000 * seconds:6.1f} ms a step", flush=True
    )
    return {"arm": name, "model": type(model).__name__, "steps": steps, "nats": loss, "step_seconds": seconds}


def compare(name: str, model: Any, splits: dict[str, Windows], steps: int) -> list[dict[str, Any]]:
    """All lines of one model."""
    lines = []

    def run(label: str, start: Any, seed: int, mode: str, parts: dict[str, Any], held: bool = False) -> Any:
        torch.manual_seed(1)
        attached = attach(copy.deepcopy(start), [1], train=mode, **parts)
        if held:
            attached.parts.requires_grad_(False)
        seconds = train(attached, splits["train"], steps, seed)
        loss = evaluate(attached, splits["valid"])
        lines.append(line(f"{name}, {label}", model, steps, loss, seconds))
        return attached.detach()

    alone = run("alone", model, 0, "all", NGRAM, held=True)
    for label, parts in ARMS.items():
        run(f"with {label}", model, 0, "all", parts)
    run("trained, then alone again", alone, 1, "all", NGRAM, held=True)
    for label, parts in ARMS.items():
        run(f"trained, frozen, then {label}", alone, 1, "memory", parts)
    return lines + neighbours(name, alone, splits)


def neighbours(name: str, model: Any, splits: dict[str, Windows]) -> list[dict[str, Any]]:
    """kNN-LM: states of the training text in a store, the mixture tuned on one half of the validation text."""
    valid, trained = splits["valid"], splits["train"]
    half = len(valid) // 2 // ROWS * ROWS
    batches = (
        trained.batch(torch.arange(at, min(at + 32, len(trained)))) for at in range(0, len(trained), 32)
    )
    # A window is a document of the store.
    plain_batches = ({name: batch[name] for name in ("tokens", "targets")} for batch in batches)
    with tempfile.TemporaryDirectory() as folder:
        with attach(model, [1], memory=NGRAM["memory"]) as plain:
            before = evaluate(plain, valid, half)
            store = build_datastore(plain, plain_batches, Path(folder) / "store")
        start = time.process_time()
        with attach(model, readout=partial(KNNReadout, datastore=store, k=64)) as attached:
            tune(attached, [valid.batch(torch.arange(at, at + ROWS)) for at in range(0, half, ROWS)])
            loss = evaluate(attached, valid, half)
        seconds = (time.process_time() - start) / (len(valid) / ROWS)
        store.close()
    return [
        line(f"{name}, trained, second half", model, 0, before, 0.0),
        line(f"{name}, trained, second half, kNN-LM", model, 0, loss, seconds),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text", type=Path, default=Path(pydoc_data.topics.__file__), help="a file or a folder"
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", type=Path, help="where to write what is printed")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    corpus = TextCorpus(asked.text, vocab_size=VOCAB).load()
    splits = {name: Windows(corpus.splits[name], TIME) for name in ("train", "valid")}
    sizes = ", ".join(f"{len(windows)} to {name}" for name, windows in splits.items())
    print(f"{asked.text.name}: windows of {TIME} tokens, {sizes}")
    lines = [row for name, model in models().items() for row in compare(name, model, splits, asked.steps)]
    if asked.json:
        asked.json.write_text(json.dumps({"text": asked.text.name, "lines": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
