"""Runs that train nothing: they sleep, fail or die as they are told. Imported by worker processes, so light."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from experiments.errors import UnaffordableError

CORPUS = "ab" * 32
STUDY = "fake"


@dataclass(frozen=True)
class FakeRun:
    name: str
    does: str = "finish"
    seconds: float = 0.0
    arm: str = "dense"
    regime: str = "none"
    seed: int = 0
    width: int = 64
    budget: float = 1e12
    settings: Mapping[str, Any] = field(default_factory=dict)

    def key(self, corpus_fingerprint: str) -> str:
        return hashlib.sha256(f"{self.name} {corpus_fingerprint}".encode()).hexdigest()[:16]

    def label(self) -> str:
        return self.name

    def to_dict(self) -> dict[str, Any]:
        return {"study": STUDY, **asdict(self)}


def execute(run: FakeRun, workspace: Path, progress: Callable[[str, float], None]) -> list[dict[str, Any]]:
    """``workspace`` is a folder in which each attempt leaves a file."""
    attempts = len(list(workspace.glob(f"{run.name}.*")))
    (workspace / f"{run.name}.{attempts}").write_text(str(os.getpid()))
    progress("train", 0.0)
    print(f"chatter of {run.name}", flush=True)
    time.sleep(run.seconds)
    if run.does == "raise":
        raise KeyError("no such thing\nand a second line")
    if run.does == "poor":
        raise UnaffordableError("a budget of 1 FLOP is less than one step")
    if run.does == "nan":
        raise FloatingPointError("the training loss became nan by step 3: lower the rates")
    if run.does == "die" or (run.does == "die once" and attempts == 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if run.does == "exit":
        os._exit(7)
    progress("evaluate", 1.0)
    row = {
        "study": STUDY,
        "run": run.key(CORPUS),
        "arm": run.arm,
        "regime": run.regime,
        "seed": run.seed,
        "width": run.width,
        "budget": run.budget,
        "settings": dict(run.settings),
        "parent": None,
        "corpus": CORPUS,
        "losses": {"test": {"bits_per_byte": 1.5}},
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "pid": os.getpid(),
    }
    return [row, {**row, "arm": "memory off", "parent": row["run"]}]


class Unloadable:
    """A workspace that no worker can unpickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _refuse, ()


def _refuse() -> None:
    raise ImportError("not here")


def main() -> int:
    """``python -m tests.experiments.fakes FOLDER COUNT SECONDS``: carry out a plan of fake runs."""
    from experiments.compare import carry_out
    from experiments.results import Results

    folder, count, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    traces = folder / "traces"
    traces.mkdir(parents=True, exist_ok=True)
    runs = [FakeRun(f"run{number}", seconds=seconds, seed=number) for number in range(count)]
    try:
        with Results(folder, CORPUS, STUDY) as results:
            failed = carry_out(runs, results, traces, execute, workers=2, stream=sys.stderr)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        return 130
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
