"""Training one run through Lightning."""

from __future__ import annotations

import ctypes
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger

from experiments.data.module import WindowData
from experiments.ledger import Ledger
from experiments.neighborhood import Neighborhood
from mann import LanguageModule
from retrieval import Neighbors

if TYPE_CHECKING:
    from experiments.run import Run
    from experiments.workspace import Workspace

# A run is short or long: one that ends within minutes is cheaper to repeat than to save.
CHECKPOINT_FLOPS = 2e13
CHECKPOINT_STEPS = 500
LOG_STEPS = 100
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
    """Passes the share of steps done on, a few times a second at most, and logs the compute spent so far.

    Args:
        report: Called with ``("train", share)``.
        step_flops: FLOPs of one step, so that curves can be drawn over compute.
    """

    def __init__(self, report: Callable[[str, float], None], step_flops: int) -> None:
        self.report = report
        self.step_flops = step_flops
        self.seconds = 0.0
        self._since = 0.0

    def on_train_start(self, *_: Any) -> None:
        self._since = time.perf_counter()

    def on_train_end(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._since

    def state_dict(self) -> dict[str, float]:
        """Seconds of training so far: a resumed run has taken those of its earlier parts too."""
        return {"seconds": self.seconds + time.perf_counter() - self._since}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Go on counting."""
        self.seconds = state_dict["seconds"]

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step % 16 == 0:
            self.report("train", step / max(1, trainer.max_steps))
        if step % LOG_STEPS == 0 and trainer.logger is not None:
            module.log("train_flops", float(step * self.step_flops), batch_size=1)


def count_step(module: LanguageModule, batch: Mapping[str, Any], settings: Mapping[str, Any]) -> Ledger:
    """The bill of one training step, from steps that are taken and thrown away with the module.

    Args:
        module: What is trained.
        batch: Tokens, targets and documents, and neighbours if the network reads a store; searching for them is no part
            of a step.
        settings: Precision.
    """
    optimizer = module.configure_optimizers()["optimizer"]

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=settings["precision"] == "bf16-mixed"):
            loss = module.objective(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # the first one also fills the optimizer's state, which no other does
    with Ledger(module.network) as ledger:
        step()
    return ledger


def any_neighbors(tokens: torch.Tensor, k: int, stored: int = 1) -> Neighbors:
    """Neighbours to count with before any are found, as different as a store of so many tokens allows.

    The work of most readers depends on shapes alone; that of a reader which computes each entry once is never more.
    """
    shape = (*tokens.shape, k)
    mask = torch.ones(shape, dtype=torch.bool)
    return Neighbors(torch.ones(shape), torch.arange(mask.numel()).view(shape) % max(1, stored), mask)


def train(
    run: Run,
    workspace: Workspace,
    module: LanguageModule,
    settings: Mapping[str, Any],
    n_windows: int,
    neighbors: Neighborhood | None,
    step_flops: int,
    progress: Callable[[str, float], None],
    logger: WandbLogger | None,
) -> float:
    """Fit ``module`` on the first ``n_windows`` windows of the run's order; resumes from the run's own checkpoint.

    Args:
        run: Names the checkpoint.
        workspace: Corpus, folders.
        module: What to train; its schedule ends with the windows.
        settings: Batch, window length, precision.
        n_windows: Windows to train on.
        neighbors: Neighbours of the windows, for arms that read a store.
        step_flops: FLOPs of one step.
        progress: Told how far it is.
        logger: From :func:`logged`; stays open.

    Returns:
        Seconds of training.
    """
    last = _checkpoint(run, workspace)
    data = WindowData(
        workspace.corpus,
        settings["time"],
        settings["batch"],
        n_tokens=n_windows * settings["time"],
        seed=run.seed,
        neighbors=None if neighbors is None else {"train": neighbors},
    )
    report = ProgressReport(progress, step_flops)
    callbacks: list[L.Callback] = [report]
    saving = run.budget >= CHECKPOINT_FLOPS
    if saving:
        callbacks.append(
            ModelCheckpoint(last.parent, save_last=True, save_top_k=0, every_n_train_steps=CHECKPOINT_STEPS)
        )
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
            log_every_n_steps=LOG_STEPS,
        )
        try:
            trainer.fit(module, data, ckpt_path=str(last) if last.exists() else None, weights_only=True)
        except SystemExit as left:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from left
    return report.seconds


def drop_checkpoint(run: Run, workspace: Workspace) -> None:
    """Remove the checkpoint of a run whose results are there: until then it spares whoever is stopped the training."""
    _checkpoint(run, workspace).unlink(missing_ok=True)


def _checkpoint(run: Run, workspace: Workspace) -> Path:
    # Another code would not go on as the one that wrote the checkpoint.
    key = run.key(workspace.corpus.fingerprint)
    return workspace.out / "checkpoints" / f"{key}-{workspace.revision}" / "last.ckpt"


@contextmanager
def logged(run: Run, workspace: Workspace) -> Iterator[WandbLogger | None]:
    """The W&B logger of a run, where there is one; whatever is raised inside ends the W&B run as failed.

    Args:
        run: Names the W&B run.
        workspace: Folders, W&B mode.
    """
    logger = _logger(run, workspace)
    try:
        yield logger
    except BaseException:
        # W&B would show it as running, until the next run closes it as a success.
        if logger is not None:
            with suppress(Exception):  # what went wrong first is what must be seen
                logger.experiment.finish(exit_code=1)
        raise


def conclude(logger: WandbLogger, row: Mapping[str, Any]) -> None:
    """Put what a run found into its W&B summary, and end it.

    Args:
        logger: From :func:`logged`.
        row: The run's line of results.
    """
    found = {key: row[key] for key in ("train_flops", "read_flops", "train_seconds", "train_bytes", "tokens")}
    found |= {f"flops/{phase}": flops for phase, flops in row["flops"].items()}
    found |= {"bill": {by: row[by] for by in ("by_module", "by_operator")}}
    found |= {f"params/{kind}": count for kind, count in row["params"].items()}
    for split, losses in row["losses"].items():
        found |= {f"{split}/{metric}": losses[metric] for metric in ("nats_per_token", "bits_per_byte")}
    found |= {f"copying/{copy}": nats for copy, nats in row["probes"].get("copying", {}).items()}
    logger.experiment.summary.update(found)
    logger.experiment.finish()


def _logger(run: Run, workspace: Workspace) -> WandbLogger | None:
    if workspace.wandb == "off":
        return None
    import wandb  # a second of start-up that runs without it need not pay

    folder = Path(workspace.out) / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    logger = WandbLogger(
        name=run.label(),
        group=run.study,
        project="mnemograph",
        save_dir=str(folder),
        offline=workspace.wandb == "offline",
        id=run.key(workspace.corpus.fingerprint),
        resume="allow",
        config={
            **run.to_dict(),
            "corpus": workspace.corpus.fingerprint,
            "code": workspace.revision,
            "versions": workspace.versions,
        },
        reinit="finish_previous",
        settings=wandb.Settings(silent=True, console="off"),
    )
    logger.experiment.define_metric("train/*", step_metric="train_flops")
    return logger
