"""Copy and repeat-copy learned on short examples and asked on longer ones: error per symbol by length.

    python -m benchmarks.algorithms --json algorithms.json
    python -m benchmarks.algorithms --networks NTM --tasks copy --seeds 0 1 2

Trained by a curriculum: the longest length grows by one whenever the running error falls under 2 %, and once the last
is learned the rate falls. Asked at up to four times the longest length of training. One core is enough.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.data.copying_tasks import SPECIAL, copy_examples
from mann import networks

EASY, SYMBOLS = 0.02, 16


@dataclass(frozen=True)
class Task:
    """What is trained on.

    Args:
        repeats: The most repetitions; ``None``: copy.
        first: Length that the curriculum begins with. Too short, and the LSTM holds the symbols itself.
        longest: Length that it ends with.
        rows: Rows of the memory.
        hidden: Width of the LSTM.
    """

    repeats: int | None
    first: int
    longest: int
    rows: int
    hidden: int

    @property
    def vocab_size(self) -> int:
        return SPECIAL + SYMBOLS + (self.repeats or 0)


TASKS = {"copy": Task(None, 3, 20, 128, 100), "repeat-copy": Task(3, 5, 16, 128, 64)}


def examples(task: Task, length: int, n: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Examples of one length, in repeat-copy each of a number of repetitions of its own."""
    times = None if task.repeats is None else generator.integers(1, task.repeats + 1, n)
    tokens, answers = copy_examples(np.full(n, length), SYMBOLS, generator, times)
    return torch.from_numpy(tokens), torch.from_numpy(answers)


def train(network: networks.MemoryNetwork, task: Task, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    generator = np.random.default_rng([seed, 1])
    optimizer = torch.optim.Adam(network.parameters(), lr=args.rate, betas=(0.9, 0.99))
    reached, running, learned, step = task.first, 1.0, None, 0
    begin, cpu = time.perf_counter(), time.process_time()
    while step < args.steps and time.perf_counter() - begin < args.seconds:
        step += 1
        # One length a batch: little padding. Every second is drawn from all, so that short ones are not forgotten.
        hardest = bool(step % 2)
        length = reached if hardest else int(generator.integers(1, reached + 1))
        tokens, answers = examples(task, length, args.batch, generator)
        asked = answers >= 0
        nll = network.loss(tokens, answers)
        loss = nll.sum() / asked.sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss.item()} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), args.clip)
        optimizer.step()
        if hardest:
            # An answer of less than half the probability counts as wrong.
            running += 0.1 * (float((nll.detach()[asked] > np.log(2)).float().mean()) - running)
        if running < EASY and reached < task.longest:
            reached, running = reached + 1, 0.1
        elif running < EASY and learned is None:
            learned = step
        if learned is not None:
            rest = 1 - (step - learned) / args.polish
            optimizer.param_groups[0]["lr"] = args.rate * max(0.02, rest)
            if rest <= 0:
                break
        if args.verbose and step % 200 == 0:
            print(f"  step {step}: length {reached}, error {running:.3f}, loss {loss.item():.4f}", flush=True)
    return {
        "steps": step,
        "sequences": step * args.batch,
        "learned_at": learned,
        "reached": reached,
        "seconds": round(time.perf_counter() - begin, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


@torch.no_grad()
def error(network: networks.MemoryNetwork, task: Task, length: int, n: int) -> float:
    """Share of answers that are not the most likely token, of examples that training does not have."""
    tokens, answers = examples(task, length, n, np.random.default_rng([length, 2]))
    asked = answers >= 0
    return float((network(tokens).argmax(-1) != answers)[asked].float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["NTM", "DNC"])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=20_000, help="at most")
    parser.add_argument("--seconds", type=float, default=600.0, help="of training, at most")
    parser.add_argument("--polish", type=int, default=500, help="steps while the rate falls at the end")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient")
    parser.add_argument("--test", type=int, default=64, help="examples asked at each length")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--save", type=Path, help="folder for the weights")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for name in args.tasks:
        task = TASKS[name]
        for kind in args.networks:
            for seed in args.seeds:
                torch.manual_seed(seed)
                network = getattr(networks, kind)(task.vocab_size, n_rows=task.rows, d_hidden=task.hidden)
                about = train(network, task, args, seed)
                network.eval()
                lengths = [int(times * task.longest) for times in (1, 1.25, 1.5, 2, 4)]
                errors = {length: round(error(network, task, length, args.test), 5) for length in lengths}
                found.append({"task": name, "network": kind, "seed": seed, **about, "error": errors})
                print(json.dumps(found[-1]), flush=True)
                if args.save:
                    args.save.mkdir(parents=True, exist_ok=True)
                    torch.save(network.state_dict(), args.save / f"{name}-{kind}-{seed}.pt")
                if args.json:
                    told = {key: str(value) for key, value in vars(args).items()}
                    tasks = {name: vars(task) for name, task in TASKS.items()}
                    text = json.dumps({"settings": told, "tasks": tasks, "runs": found}, indent=1)
                    args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
