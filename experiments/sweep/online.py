"""The same file as an ordinary W&B sweep."""

from __future__ import annotations

import os
import subprocess

from experiments.errors import RunError
from experiments.sweep.config import Sweep
from experiments.sweep.process import search_path

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

    Raises:
        RunError: If W&B cannot be reached or refuses the key or the sweep.
    """
    import wandb

    entity, project = sweep.raw.get("entity"), sweep.raw.get("project")
    try:
        identity = wandb.sweep(dict(sweep.raw), entity=entity, project=project)
    except wandb.Error as error:
        raise RunError(f"W&B did not create the sweep ({error}); --offline runs the file here") from error
    path = "/".join(str(part) for part in (entity, project, identity) if part)
    agent = ["wandb", "agent", *(["--count", str(count)] if count else [])]
    print(f"Further agents, here or on other machines: wandb agent {path}", flush=True)
    return subprocess.run([*agent, path], check=False, env={**os.environ, "PATH": search_path()}).returncode
