"""One model trained with Lightning from the command line: constructors are the options."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from torch import Tensor

from experiments.data import CodeCorpus, TextCorpus
from experiments.data.module import WindowData
from experiments.errors import RunError
from experiments.mistyped import told
from mann import LanguageModule
from mann.optim import ROLES

DEFAULTS: dict[str, Any] = {
    "model.network": {"class_path": "mann.Transformer", "init_args": {"d_model": 64, "n_layers": 3}},
    "data.source": {"class_path": "experiments.data.CodeCorpus"},
    "data.n_tokens": 1_000_000,
    "trainer.max_epochs": 1,
    "trainer.accelerator": "cpu",
    "trainer.logger": False,
    "trainer.enable_model_summary": False,
    "trainer.num_sanity_val_steps": 0,
}
CONFIG = "config.yaml"


class CorpusData(WindowData):
    """Windows of a corpus that is loaded when the data module is made.

    Args:
        source: Loads the text.
        **options: As :class:`experiments.data.module.WindowData` takes them.
    """

    def __init__(self, source: CodeCorpus | TextCorpus, **options: Any) -> None:
        super().__init__(source.load(), **options)


class ValidatedModule(LanguageModule):
    """A :class:`mann.LanguageModule` that is also judged on text it was not trained on.

    Logs ``valid/nats_per_token`` and ``valid/bits_per_byte``, each over all that is evaluated.
    """

    def on_validation_epoch_start(self) -> None:
        self._nats = torch.zeros((), dtype=torch.float64)
        self._targets = self._bytes = 0

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        targets: Tensor = batch["targets"]
        loss: Any = self.network.loss
        nll = loss(batch["tokens"], targets, batch.get("documents"), batch.get("neighbors"))
        scored = targets >= 0
        self._nats += nll[scored].sum(dtype=torch.float64).cpu()
        data: Any = vars(self.trainer)["datamodule"]
        self._targets += int(scored.sum())
        self._bytes += int(data.corpus.token_bytes[targets[scored].cpu().numpy()].sum())

    def on_validation_epoch_end(self) -> None:
        nats = float(self._nats)
        self.log("valid/nats_per_token", nats / self._targets, batch_size=1)
        self.log("valid/bits_per_byte", nats / math.log(2) / self._bytes, batch_size=1)


def steps_of_training(data: CorpusData) -> int:
    """Optimizer steps: what ``--help`` names as the source of ``model.total_steps``."""
    return data.steps


def tokens_of_corpus(data: CorpusData) -> int:
    """Size of the vocabulary."""
    return data.corpus.vocab_size


class RunFolder(SaveConfigCallback):
    """Writes the resolved configuration, as asked for, into the run's folder when training starts.

    A training that fails before its first step leaves no configuration, so that its folder can be given again.

    Args:
        folder: Where.
        asked: The configuration before the folder was chosen, so that a rerun gets a folder of its own.
        numbered: Whether the folder is one of those under ``runs/fit``, made for this run alone.
        **options: As Lightning's callback takes them.
    """

    def __init__(
        self, *options: Any, folder: Path, asked: Namespace, numbered: bool = False, **more: Any
    ) -> None:
        super().__init__(*options, save_to_log_dir=False, **more)
        self.folder = folder
        self.asked = asked
        self.numbered = numbered
        self._written = False

    def save_config(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """Lightning's hook."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.asked, str(self.folder / CONFIG), skip_unset=False, multifile=False)
        self._written = True

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Take away what was written here, and by nobody else, if no step was taken."""
        if not self._written or trainer.global_step:
            return
        (self.folder / CONFIG).unlink(missing_ok=True)
        if self.numbered:
            _discard(self.folder)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Log what training ended with: Lightning logs every so many steps, and the last is seldom one of them."""
        last = trainer.callback_metrics.get("train/nats_per_token")
        if last is not None:
            for logger in trainer.loggers:
                logger.log_metrics({"train/nats_per_token": float(last)}, step=trainer.global_step)


class FitCommand(LightningCLI):
    """Lightning's command line for :class:`mann.LanguageModule`; what the data decides is not typed twice.

    Every run has a folder with its ``config.yaml``: ``trainer.default_root_dir``, or a new one under ``runs/fit``
    (``$WANDB_DIR/fit`` where that is set).

    Args:
        arguments: The command line after the command.
        parser: Keyword arguments of the parser.

    Raises:
        RunError: If the folder holds another run.
    """

    def __init__(self, arguments: list[str], **parser: Any) -> None:
        self.folder = Path()
        with contextlib.ExitStack() as self._undo:
            super().__init__(
                ValidatedModule,
                CorpusData,
                run=False,
                args=arguments,
                save_config_callback=RunFolder,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                parser_kwargs=parser,
            )
            self._undo.pop_all()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Lightning's hook for defaults and links."""
        parser.set_defaults(DEFAULTS)
        for target, found in (
            ("model.total_steps", steps_of_training),
            ("model.network.init_args.vocab_size", tokens_of_corpus),
        ):
            parser.link_arguments("data", target, compute_fn=found, apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Lightning's hook: what is wrong is said in one line."""
        try:
            super().parse_arguments(parser, args)
        except argparse.ArgumentError as error:
            raise RunError(f"{told(str(error), parser)} (see {parser.prog} --help)") from error

    def before_instantiate_classes(self) -> None:
        """Lightning's hook: choose the folder, for what is written by the trainer and by W&B."""
        unknown = sorted(set(self.config.model.rates or ()) - set(ROLES))
        if unknown:
            raise RunError(f"model.rates: {', '.join(unknown)} is none of {', '.join(ROLES)}")
        asked = self.config.clone()
        asked.trainer.default_root_dir = None
        trainer = self.config.trainer
        self.folder = Path(trainer.default_root_dir) if trainer.default_root_dir else self._numbered()
        if (self.folder / CONFIG).exists():
            raise RunError(
                f"{self.folder} holds the run of its {CONFIG}: give another --trainer.default_root_dir, or none for "
                "a new folder"
            )
        numbered = not trainer.default_root_dir
        trainer.default_root_dir = str(self.folder)
        for logger in _loggers(trainer.logger):
            options = logger.get("init_args", Namespace())
            # The default of W&B's logger, which would leave a folder wherever one stands.
            if str(options.get("save_dir")) == ".":
                options.save_dir = str(self.folder)
        self.save_config_kwargs = {"folder": self.folder, "asked": asked, "numbered": numbered}

    def _numbered(self) -> Path:
        """A new folder, taken by being made; away again if nothing comes of it."""
        root = Path(os.environ.get("WANDB_DIR", "runs")) / "fit"
        number = 0
        while True:
            folder = root / f"{number:03d}"
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                number += 1
            else:
                self._undo.callback(_discard, folder)
                return folder


def _loggers(given: Any) -> Iterator[Namespace]:
    for logger in given if isinstance(given, list) else [given]:
        if isinstance(logger, Namespace):
            yield logger


def _discard(folder: Path) -> None:
    for path in (folder, folder.parent):
        with contextlib.suppress(OSError):
            path.rmdir()
