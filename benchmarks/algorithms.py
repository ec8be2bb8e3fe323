"""Copy and repeat-copy learned on short examples and asked on longer ones: errors by length and repetitions.

    python -m benchmarks.algorithms --json docs/results/algorithms.json
    python -m benchmarks.algorithms --networks NTM "NTM without noise" --tasks repeat-copy --seeds 0 1 2

Trained by a curriculum: whenever the running error falls under 2 %, one more repetition is asked for, up to the most,
then one more symbol. Once the last is learned the rate falls. Asked at up to four times the longest length of training
and twice the repetitions. Two errors are told. "content": share of the symbols asked for that are not the likeliest
symbol. "end": share of sequences in which the end is said too early or not at its place; the paper has an output of its
own for it too. One core is enough. Runs that the JSON file has already are not made again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.data.copying_tasks import END, SPECIAL, copy_examples
from mann import networks

EASY, SYMBOLS = 0.02, 16


@dataclass(frozen=True)
class Task:
    """What is trained on.

    Args:
        repeats: The most repetitions; ``None``: copy.
        first: Length that the curriculum begins with. Too short, and the LSTM holds the symbols itself.
        longest: Length that it ends with.
    """

    repeats: int | None
    first: int
    longest: int

    @property
    def asked(self) -> list[tuple[int, int | None]]:
        """Lengths and repetitions to test."""
        if self.repeats is None:
            return [(times * self.longest, None) for times in (1, 2, 4)]
        asked = [(self.longest, self.repeats)]
        asked += [(2 * self.longest, times) for times in range(1, self.repeats + 1)]
        return [*asked, (self.longest, 2 * self.repeats), (4 * self.longest, self.repeats)]


@dataclass(frozen=True)
class Recipe:
    """What a network is made with.

    Args:
        rows: Rows of the memory in training.
        rows_asked: Rows when it is asked, for parameters do not depend on them. A DNC writes a little at every step, so
            it needs more rows than an example has steps, or it writes over what has not been read yet.
        options: Other settings.
    """

    rows: int = 128
    rows_asked: int = 128
    options: dict[str, Any] = field(default_factory=lambda: {"d_hidden": 64})


TASKS = {"copy": Task(None, 3, 10), "repeat-copy": Task(3, 2, 10)}
# Each by the name of its network, and what is different about it. Networks that are not here take the default.
RECIPES = {
    "NTM": Recipe(options={"d_hidden": 64, "cell_noise": 0.5}),
    "NTM without noise": Recipe(),
    "NTM feedforward": Recipe(options={"d_hidden": 64, "controller": "feedforward"}),
    "DNC": Recipe(48),
}


def examples(
    length: int, times: np.ndarray | None, n: int, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Examples of one length, in repeat-copy each of a number of repetitions of its own."""
    tokens, answers = copy_examples(np.full(n, length), SYMBOLS, generator, times)
    return torch.from_numpy(tokens), torch.from_numpy(answers)


def train(network: networks.MemoryNetwork, task: Task, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    generator = np.random.default_rng([seed, 1])
    optimizer = torch.optim.Adam(network.parameters(), lr=args.rate, betas=(0.9, 0.99))
    reached, repeats, running, learned, step = task.first, min(task.repeats or 0, 1), 1.0, None, 0
    begin = time.process_time()
    while step < args.steps and time.process_time() - begin < args.seconds:
        step += 1
        # One length a batch: little padding. Every second is drawn from all, so that short ones are not forgotten.
        hardest = bool(step % 2)
        length = reached if hardest else int(generator.integers(1, reached + 1))
        times = generator.integers(1, repeats + 1, args.batch) if repeats else None
        tokens, answers = examples(length, times, args.batch, generator)
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
        if running < EASY and repeats < (task.repeats or 0):
            repeats, running = repeats + 1, 0.1
        elif running < EASY and reached < task.longest:
            reached, running = reached + 1, 0.1
        elif running < EASY and learned is None:
            learned = step
        if learned is not None:
            rest = 1 - (step - learned) / args.polish
            optimizer.param_groups[0]["lr"] = args.rate * max(0.02, rest)
            if rest <= 0:
                break
        if args.verbose and step % 200 == 0:
            print(
                f"  step {step}: length {reached}, repeats {repeats}, error {running:.3f}, loss {loss.item():.4f}",
                flush=True,
            )
    return {
        "steps": step,
        "sequences": step * args.batch,
        "learned_at": learned,
        "reached": [reached, repeats] if repeats else [reached],
        "cpu_seconds": round(time.process_time() - begin, 1),
    }


@torch.no_grad()
def errors(network: networks.MemoryNetwork, length: int, times: int | None, n: int) -> dict[str, float]:
    """Of content and of the end, of examples that training does not have."""
    repeats = None if times is None else np.full(n, times)
    tokens, answers = examples(length, repeats, n, np.random.default_rng([length, times or 0, 2]))
    log_p = network(tokens)
    asked, is_end = answers >= 0, answers == END
    symbols = log_p[..., SPECIAL:].argmax(-1) + SPECIAL
    found = {"content": float((symbols != answers)[asked & ~is_end].float().mean())}
    if times is not None:
        said = (log_p.argmax(-1) == END) & asked
        found["end"] = float((said != is_end).any(1).float().mean())
    return {name: round(share, 5) for name, share in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["NTM", "DNC"])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=20_000, help="at most")
    parser.add_argument("--seconds", type=float, default=300.0, help="of training, at most; of the processor")
    parser.add_argument("--polish", type=int, default=1500, help="steps while the rate falls at the end")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient")
    parser.add_argument("--test", type=int, default=64, help="examples asked at each length")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--save", type=Path, help="folder for the weights")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ignored = ("networks", "tasks", "seeds", "verbose", "save", "json")
    settings = {name: value for name, value in vars(args).items() if name not in ignored}
    told = {"settings": settings, "tasks": {name: asdict(task) for name, task in TASKS.items()}}
    found: list[dict[str, Any]] = []
    if args.json and args.json.exists():
        before = json.loads(args.json.read_text(encoding="utf-8"))
        if {name: before.get(name) for name in told} != told:
            parser.error(f"{args.json} holds runs of other settings: give another file, or remove it")
        found = [
            run for run in before["runs"] if run["recipe"] == asdict(RECIPES.get(run["network"], Recipe()))
        ]
    for place in itertools.product(args.tasks, args.networks, args.seeds):
        if any((run["task"], run["network"], run["seed"]) == place for run in found):
            continue
        name, kind, seed = place
        task = TASKS[name]
        torch.manual_seed(seed)
        recipe = RECIPES.get(kind, Recipe())
        make = partial(getattr(networks, kind.split()[0]), SPECIAL + SYMBOLS, **recipe.options)
        trained = make(n_rows=recipe.rows)
        about = train(trained, task, args, seed)
        network = make(n_rows=recipe.rows_asked).eval()
        network.load_state_dict(trained.state_dict())
        tested = {
            f"{length}" if times is None else f"{length}x{times}": errors(network, length, times, args.test)
            for length, times in task.asked
        }
        run = {"task": name, "network": kind, "seed": seed, "recipe": asdict(recipe)}
        found.append(run | about | {"error": tested})
        print(json.dumps(found[-1]), flush=True)
        if args.save:
            args.save.mkdir(parents=True, exist_ok=True)
            torch.save(network.state_dict(), args.save / f"{name}-{kind}-{seed}.pt")
        if args.json:
            args.json.write_text(json.dumps(told | {"runs": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
