"""One trial as a process: its command line, its environment, its end."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from experiments.sweep.config import Sweep

# W&B's settings of the process that started us, which are not the trial's.
FOREIGN = ("WANDB_SERVICE", "WANDB_SWEEP_ID", "WANDB_RUN_GROUP", "WANDB_RESUME", "WANDB_NOTES")
FLUSH_SECONDS = 1.0
GRACE_SECONDS = 10.0
OUTPUT = "output.log"
PARAMS = "params.yaml"
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
# PR_SET_PDEATHSIG of Linux.
_PARENT_DEATH_SIGNAL = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def command_line(sweep: Sweep, params: Mapping[str, Any], folder: Path) -> list[str]:
    """The command with its ``${...}`` filled in, by W&B's own rules.

    Args:
        sweep: The file.
        params: The trial's parameters.
        folder: For ``${args_json_file}``.
    """
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    filled: dict[str, Any] = create_sweep_command_args(
        {"args": {name: {"value": value} for name, value in params.items()}}
    )
    beside = folder / "params.json"
    filled |= {
        "env": ["/usr/bin/env"],
        "interpreter": ["python"],
        "program": [str(sweep.raw.get("program"))],
        "args_json_file": [str(beside)],
    }
    words: list[str] = []
    for word in create_sweep_command(list(sweep.command)):
        if word == "${args_json_file}":
            beside.write_text(json.dumps(filled["args_dict"]))
        whole = word.startswith("${") and word.endswith("}")
        words += filled.get(word[2:-1], []) if whole else [word]
    return words


def environment(
    sweep: Sweep, params: Mapping[str, Any], run: str, folder: Path, number: int, workers: int
) -> dict[str, str]:
    """What a program that calls ``wandb.init()`` finds: an offline run of this group with these parameters.

    ``WANDB_SWEEP_ID`` stays unset: a run that names a sweep could not be sent to servers that do not know it. The
    group holds the runs together.

    Args:
        sweep: The file.
        params: The trial's parameters; ``wandb.config`` has them too.
        run: W&B's id.
        folder: Where W&B writes.
        number: Of the trial.
        workers: How many trials run at once; they share the cores.
    """
    held = folder / PARAMS
    entries = {name: {"value": value} for name, value in params.items()}
    held.write_text(yaml.safe_dump({"wandb_version": 1, **entries}))
    environ = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    environ |= {
        "PATH": search_path(),
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder.resolve()),
        "WANDB_RUN_ID": run,
        "WANDB_NAME": f"{sweep.name}-{number}",
        "WANDB_RUN_GROUP": sweep.name,
        "WANDB_SWEEP_PARAM_PATH": str(held.resolve()),
        "WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": str(FLUSH_SECONDS),
    }
    for key in ("project", "entity"):
        if key in sweep.raw:
            environ[f"WANDB_{key.upper()}"] = str(sweep.raw[key])
    if workers > 1:
        environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    return environ


def search_path() -> str:
    """``PATH`` on which ``python``, ``wandb`` and ``mnemograph`` are those that run the sweep."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


class TrialProcess:
    """A trial that is running.

    Args:
        words: Its command line.
        environ: Its environment.
        folder: Its own, made anew; what it prints goes to ``output.log`` there.
    """

    def __init__(self, words: list[str], environ: Mapping[str, str], folder: Path) -> None:
        self.output = folder / OUTPUT
        self.begin = time.monotonic()
        with self.output.open("wb") as output:
            # A group of its own: Ctrl-C reaches it through us, and what it starts ends with it.
            self._process = subprocess.Popen(
                words,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=partial(_end_with_parent, os.getpid()) if _LIBC is not None else None,
            )

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self.begin

    def code(self) -> int | None:
        """Its exit code; ``None`` while it runs."""
        return self._process.poll()

    def said(self) -> str:
        """What it has printed."""
        return _COLORS.sub("", self.output.read_text(errors="replace"))

    def last_words(self) -> str:
        """The last line it printed itself."""
        own = [line.strip() for line in self.said().splitlines() if not line.startswith("wandb:")]
        return next((line for line in reversed(own) if line), "it printed nothing")

    def end(self) -> None:
        """Ask it to end, and make it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def emptied(folder: Path) -> Path:
    """A trial's folder without what an interrupted attempt left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _end_with_parent(parent: int) -> None:
    """A sweep that is killed outright must not leave trials behind that compete with those of the next one."""
    assert _LIBC is not None
    _LIBC.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before this was said, and nobody will tell
        os.kill(os.getpid(), signal.SIGKILL)
