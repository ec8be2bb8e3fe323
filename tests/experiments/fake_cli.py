"""``mnemograph`` with runs that train nothing: ``python -m tests.experiments.fake_cli compare ...``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from experiments.errors import RunError
from tests.experiments import synthetic


def execute(run: Any, workspace: Any, progress: Callable[[str, float], None]) -> list[dict[str, Any]]:
    """A row of invented numbers for a real run; ``FAKE_SECONDS`` and ``FAKE_FAILS`` say how it goes."""
    progress("train", 0.5)
    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    if os.environ.get("FAKE_FAILS") in (run.arm, "all"):
        raise RunError(f"no luck with {run.arm}: try another")
    template = synthetic.rows(seeds=1, budgets=(1e12,), dense_budgets=(1e12,), arms={})[0]
    loss = synthetic.frontier_loss(run.budget) + 0.01 * (run.width == 48)
    losses = {split: {"nats_per_token": loss, "bits_per_byte": loss} for split in ("valid", "test")}
    row = {
        **template,
        **run.to_dict(),
        "run": run.key(workspace.corpus.fingerprint),
        "control": False,
        "train_flops": run.budget,
        "train_seconds": run.budget / 1e11,
        "train_bytes": run.budget / 2,
        "read_flops": run.width * 1e4,
        "losses": losses,
        "parent": None,
        "code": "0123abc",
        "corpus": workspace.corpus.fingerprint,
    }
    return [row]


def check_sizes(*_: Any) -> None:
    """Runs that train nothing need no text to train on."""


if __name__ == "__main__":
    import experiments.run
    import experiments.step
    from experiments.cli import main
    from tests.experiments import fake_cli

    experiments.run.execute = fake_cli.execute
    experiments.step.check_sizes = fake_cli.check_sizes
    sys.exit(main(sys.argv[1:]))
