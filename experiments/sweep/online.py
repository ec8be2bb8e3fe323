"""The same file as an ordinary W&B sweep."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from experiments.sweep.config import Sweep

OFF = ("offline", "disabled", "dryrun")


def why_offline() -> str | None:
    """Why a sweep cannot run with W&B's servers; ``None`` if it can."""
    mode = os.environ.get("WANDB_MODE", "online")
    if mode in OFF:
        return f"WANDB_MODE is {mode}"
    import wandb

    if not wandb.login(prompt=False, verify=False):
        return "W&B has no API key here (wandb login sets one)"
    return None


def run_online(sweep: Sweep, count: int | None) -> int:
    """Create the sweep on W&B's servers and work as one of its agents.

    Args:
        sweep: The file.
        count: Trials this agent runs; without one it goes on as long as the servers give it some.

    Returns:
        The agent's exit code.
    """
    import wandb

    entity, project = sweep.raw.get("entity"), sweep.raw.get("project")
    identity = wandb.sweep(dict(sweep.raw), entity=entity, project=project)
    path = "/".join(str(part) for part in (entity, project, identity) if part)
    agent = [str(Path(sys.executable).parent / "wandb"), "agent", *(["--count", str(count)] if count else [])]
    print(f"Further agents, here or on other machines: wandb agent {path}", flush=True)
    return subprocess.run([*agent, path], check=False).returncode
