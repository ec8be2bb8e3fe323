"""Training one run through Lightning."""

from __future__ import annotations

import ctypes
import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, WandbLogger

from experiments.data.module import WindowData
from experiments.neighborhood import Neighborhood
from mann import LanguageModule

if TYPE_CHECKING:
    from experiments.run import Run
    from experiments.workspace import Workspace

# A run is short or long: one that ends within minutes is cheaper to repeat than to save.
CHECKPOINT_FLOPS = 2e13
CHECKPOINT_STEPS = 500
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def tune_allocator() -> None:
    """Let glibc keep large blocks between steps; fetching fresh pages each step costs a third of the time."""
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    except (OSError, AttributeError):  # another C library: slower, not wrong
        return


class ProgressReport(L.Callback):
    """Passes the share of steps done on, a few times a second at most.

    Args:
        report: Called with ``("train", share)``.
    """

    def __init__(self, report: Callable[[str, float], None]) -> None:
        self.report = report

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step % 16 == 0:
            self.report("train", trainer.global_step / max(1, trainer.max_steps))


def train(
    run: Run,
    workspace: Workspace,
    module: LanguageModule,
    settings: Mapping[str, Any],
    n_windows: int,
    neighbors: Neighborhood | None,
    progress: Callable[[str, float], None],
) -> None:
    """Fit ``module`` on the first ``n_windows`` windows of the run's order; resumes from the run's own checkpoint.

    Args:
        run: Names the checkpoint and the W&B run.
        workspace: Corpus, folders, W&B mode.
        module: What to train; its schedule ends with the windows.
        settings: Batch, window length, precision.
        n_windows: Windows to train on.
        neighbors: Neighbours of the windows, for arms that read a store.
        progress: Told how far it is.
    """
    folder = workspace.out / "checkpoints" / run.key(workspace.corpus.fingerprint)
    data = WindowData(
        workspace.corpus,
        settings["time"],
        settings["batch"],
        n_tokens=n_windows * settings["time"],
        seed=run.seed,
        neighbors=None if neighbors is None else {"train": neighbors},
    )
    callbacks: list[L.Callback] = [ProgressReport(progress)]
    saving = run.budget >= CHECKPOINT_FLOPS
    if saving:
        callbacks.append(
            ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=CHECKPOINT_STEPS)
        )
    logger = _logger(run, workspace)
    last = folder / "last.ckpt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            precision=settings["precision"],
            max_steps=module.total_steps,
            logger=logger if logger is not None else False,
            callbacks=callbacks,
            enable_checkpointing=saving,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            log_every_n_steps=100,
        )
        trainer.fit(module, data, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    last.unlink(missing_ok=True)


def _logger(run: Run, workspace: Workspace) -> Logger | None:
    if workspace.wandb == "off":
        return None
    folder = Path(workspace.out) / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    return WandbLogger(
        name=run.label(),
        group=run.study,
        project="mnemograph",
        save_dir=str(folder),
        offline=workspace.wandb == "offline",
        config=run.to_dict(),
        reinit="finish_previous",
    )
