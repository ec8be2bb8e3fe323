"""What a sweep runs in these tests: it knows nothing but wandb. ``steps`` and ``pause`` say how long it takes."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import yaml


def loss(x: float, step: int, bad: bool) -> float:
    return (x - 0.3) ** 2 + 1 / (step + 1) + 10 * bad


def main(given: dict[str, Any]) -> None:
    import wandb

    with wandb.init() as run:
        # Both ways a program may take its parameters agree.
        for name, value in given.items():
            assert run.config[name] == value, (name, run.config[name], value)
        x, kind = float(run.config.get("x", 0)), run.config.get("kind", "good")
        if kind == "broken":
            raise RuntimeError(f"no luck with {kind}")
        for step in range(int(run.config.get("steps", 3))):
            run.log({"loss": math.nan if kind == "nan" else loss(x, step, kind == "bad"), "step": step})
            time.sleep(float(run.config.get("pause", 0)) * (10 if kind == "bad" else 1))


if __name__ == "__main__":
    words = (word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
    main({name: yaml.safe_load(value) for name, value in words})
