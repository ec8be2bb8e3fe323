"""What each rule of choosing an epoch would have reported."""

from __future__ import annotations

import json
import os
from math import inf, isnan
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

__all__ = ["RULES", "Selection"]

RULES = ("last", "best_val_loss", "best_val_measure")


class Selection(Callback):
    """Keeps the measures of the epochs that three rules choose: the last, the best validation loss, the best measure.

    The rule alone moves a mean by points, so a result holds all three and its report names one. The test split is
    measured at every validation and chooses nothing. Of equal epochs the first is kept.

    .. code-block:: python

        selection = Selection()
        Trainer(callbacks=[selection]).fit(module, NodeDataModule(data, split))
        selection.result()  # {"split": ..., "measure": "accuracy", "last": {"epoch": ..., "val_loss": ..., ...}, ...}

    Survives checkpoints.

    Args:
        measure: What the third rule looks at, such as ``"accuracy"`` or ``"roc_auc"``; logged as ``val_`` and
            ``test_``.
        maximize: Whether more of it is better.
        path: File to write the result to, as JSON, when training ends.

    Raises:
        ValueError: When training begins, if the data have no named split; at a validation, if the measure is not
            logged.
    """

    def __init__(
        self, measure: str = "accuracy", *, maximize: bool = True, path: str | Path | None = None
    ) -> None:
        self.measure, self.maximize = measure, maximize
        self.path = None if path is None else Path(path)
        self.split = ""
        self.chosen: dict[str, dict[str, float]] = {}

    def result(self) -> dict[str, Any]:
        """The split, the measure, and the epoch and measures that each rule chooses."""
        return {"split": self.split, "measure": self.measure, **self.chosen}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Learns the split's name."""
        if stage == "fit":
            self.split = getattr(getattr(trainer, "datamodule", None), "split", "")
            if not isinstance(self.split, str) or not self.split:
                raise ValueError(
                    "a result without the name of its split says nothing: train on a NodeDataModule, GraphDataModule, "
                    'LinkDataModule, or a LightningDataModule with an attribute split = "..."'
                )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares this epoch with the chosen ones."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        names = [f"{part}_{name}" for part in ("val", "test") for name in ("loss", self.measure)]
        if missing := [name for name in names if name not in logged]:
            raise ValueError(
                f"{', '.join(missing)} was not logged: {', '.join(sorted(logged)) or 'nothing'} was"
            )
        now = {"epoch": float(trainer.current_epoch), **{name: logged[name] for name in names}}
        self.chosen["last"] = now
        for rule, cost in (("best_val_loss", now["val_loss"]), ("best_val_measure", self._cost(now))):
            kept = self.chosen.get(rule)
            before = (
                inf if kept is None else kept["val_loss"] if rule == "best_val_loss" else self._cost(kept)
            )
            # Of a run that begins with NaN, the first number is better.
            if kept is None or cost < before or (isnan(before) and not isnan(cost)):
                self.chosen[rule] = now

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the result."""
        if self.path is not None and trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            beside.write_text(json.dumps(self.result(), indent=1))
            beside.replace(self.path)

    def state_dict(self) -> dict[str, Any]:
        """What was chosen so far, for a checkpoint."""
        return {"chosen": self.chosen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.chosen = state_dict["chosen"]

    def _cost(self, epoch: dict[str, float]) -> float:
        value = epoch[f"val_{self.measure}"]
        return -value if self.maximize else value
