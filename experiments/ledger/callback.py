"""The ledger in a Lightning run: count one step of each kind, multiply afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.optim import LBFGS
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from experiments.ledger.bill import Bill
from experiments.ledger.evaluation import EvaluationLedger
from experiments.ledger.machine import Machine
from experiments.ledger.meters import Metered
from experiments.ledger.price import Price
from experiments.ledger.prices import Operator
from experiments.ledger.signature import ModelSignature, batch_signature
from experiments.ledger.steps import PATIENCE, Steps

# After so many steps of which none was like another, it is said what that costs.
_SURPRISED = 64


class LedgerCallback(EvaluationLedger):
    """Bills every training step of any LightningModule, at the price of watching one step of each kind.

    A step is of another kind when

    * a tensor of its batch has another shape or type, or a whole number in it is another;
    * another parameter or buffer exists, has another size or is frozen (looked at once an epoch);
    * ``work_signature()`` of a module inside the model returns something else: give that method to a module whose work
      depends on anything else, such as an index that grows;
    * other optimizers step, are at another point of accumulating gradients, or hold state of more parameters;
    * it returns no loss.

    Work that depends on the data of a step is billed every step if its operator has a meter (searches do; see
    :class:`~experiments.ledger.meters.Meters`), also if it was done between the steps. Whatever else depends on the
    data, such as pairs that a mask lets through or rows that a sparse gradient names, is billed as in the step watched;
    ``every_step=True`` is exact. Where no batch has the shape of another, as where neighbours are sampled, every step
    is watched, and a warning says so; so is every step of L-BFGS, which computes the loss as often as it likes.

    Watched steps run uncompiled. Each process of a distributed run bills its own work. Logs ``train_flops`` and
    ``train_bytes``, summed since the first step; survives checkpoints.

    .. code-block:: python

        ledger = LedgerCallback()
        Trainer(callbacks=[ledger]).fit(module, data)
        print(ledger)  # a table by phase, module and operator
        ledger.train_flops, ledger.train_bytes, ledger.bill()  # totals; FLOPs and bytes of each phase

    Args:
        log: Whether to log the two metrics, when the trainer logs.
        evaluation: Whether to bill validation, testing and prediction, as phases "validate", "test" and "predict".
            They are no part of ``train_flops``.
        every_step: Whether to watch every step; several times slower.
        prices: As :class:`~experiments.ledger.Ledger` takes them.
    """

    def __init__(
        self,
        log: bool = True,
        *,
        evaluation: bool = False,
        every_step: bool = False,
        prices: Mapping[Operator, Price] | None = None,
    ) -> None:
        super().__init__(evaluation, prices)
        self.log, self.every_step = log, every_step
        self.machine = Machine()
        self._train, self._metered, self._extra = Steps(), Metered(), Bill()
        self._extra_flops = self._extra_bytes = 0
        self._model: ModelSignature | None = None
        self._numbers: dict[int, int] = {}
        self._stepped: list[int] = []
        self._seen: set[int] = set()
        self._hook: Any = None

    def __str__(self) -> str:
        """The table of :meth:`total`."""
        return str(self.total())

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(train_flops={self.train_flops:,}, train_bytes={self.train_bytes:,}, "
            f"steps={self.steps:,})"
        )

    def add(self, kind: str, flops: int = 0, **moved: int) -> None:
        """Bill work done outside the training step to the phase ``kind``; arguments as :meth:`Bill.add`."""
        self._extra.add(kind, flops, **moved)
        self._extra_flops, self._extra_bytes = self._extra.flops, self._extra.bytes

    def total(self) -> Bill:
        """Everything so far, as one bill: by phase, operator and module."""
        total = self._train.total()
        for bill in (self._metered.bill, self._extra, self.evaluated()):
            total.include(bill)
        return total

    def bill(self) -> dict[str, dict[str, int]]:
        """FLOPs, matmul FLOPs and bytes of each phase, over all steps so far."""
        return {phase: cost.to_dict() for phase, cost in self.total().costs("phase").items()}

    def summary(self) -> dict[str, Any]:
        """What a results file should keep: totals, phases, steps, seconds and joules."""
        return {
            "train_flops": self.train_flops,
            "train_bytes": self.train_bytes,
            "steps": self.steps,
            "watched_steps": self.watched_steps,
            "estimated_steps": self._train.estimated,
            **self.machine.to_dict(),
            "phases": self.bill(),
        }

    @property
    def train_flops(self) -> int:
        """FLOPs so far, evaluation apart."""
        return self._train.flops + self._metered.flops + self._extra_flops

    @property
    def train_bytes(self) -> int:
        """Bytes so far, evaluation apart."""
        return self._train.bytes + self._metered.bytes + self._extra_bytes

    @property
    def steps(self) -> int:
        """Batches trained on and billed so far."""
        return self._train.count

    @property
    def watched_steps(self) -> int:
        """Those of them that were watched."""
        return self._train.watched

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin to count optimizer steps, seconds and joules."""
        self._numbers = {id(optimizer): number for number, optimizer in enumerate(trainer.optimizers)}
        self._hook = register_optimizer_step_post_hook(self._after_step)
        self._meters.take()
        self.machine.__enter__()

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Look at the model again before the next step: between epochs it is grown, frozen, thawed."""
        self._model = None

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Open a ledger if a step that begins like this one, or the first of an optimizer, must be watched."""
        self._before = self._beginning(trainer, pl_module, batch, batch_idx)
        self._stepped.clear()
        self._admit(trainer, pl_module, batch, batch_idx)
        waiting = self.steps < PATIENCE and len(self._seen) < len(trainer.optimizers)
        searching = any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers)
        if self.every_step or waiting or searching or self._train.must_watch(self._before):
            if self._train.strange == _SURPRISED == self.steps and not self.every_step:
                rank_zero_warn(
                    f"{type(self).__name__}: each of the {_SURPRISED} steps so far was of a kind of its own, such as a "
                    "batch of another shape, so each was watched: exact, but several times slower. Batches padded to "
                    "a few sizes would be watched once a size."
                )
            self._watch(pl_module)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Close the ledger; bill the step; log."""
        # A step that returned no loss went no further than its forward.
        after = ["no loss"] if pl_module.automatic_optimization and not outputs else []
        after += [f"optimizers {self._stepped}"] if self._stepped else []
        self._bill_step(self._train, self._metered, ", ".join(after))
        # Lightning's own monitors ask in the same way whether this step is logged.
        if trainer._logger_connector.should_update_logs:
            self.machine.read()
            self._log(pl_module)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Watch no longer, if a module left the epoch in ``on_train_batch_start``."""
        self._close()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """What was searched up to here belongs to training."""
        if self._hook is not None:
            self._metered.add(self._meters.take())

    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Log, so that what validation found is drawn over the compute spent by then."""
        if self._hook is not None:
            self._log(pl_module)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """What was searched meanwhile does not."""
        self._meters.take()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop counting."""
        self._stop()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Stop counting."""
        self._stop()

    def state_dict(self) -> dict[str, Any]:
        """Everything billed, for a checkpoint."""
        self.machine.read()
        return {
            "train": self._train.to_dict(),
            "metered": self._metered.to_dict(),
            "extra": self._extra.to_dict(),
            "machine": self.machine.to_dict(),
            **self._evaluation_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._train = Steps.resumed(state_dict["train"])
        self._metered = Metered.resumed(state_dict["metered"])
        self._extra = Bill.from_dict(state_dict["extra"])
        self._extra_flops, self._extra_bytes = self._extra.flops, self._extra.bytes
        self.machine.resume(state_dict["machine"])
        self._resume_evaluation(state_dict)

    def _beginning(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, number: int
    ) -> str:
        if self._model is None:
            self._model = ModelSignature(module)
        held = [len(optimizer.state) for optimizer in trainer.optimizers]
        parts = [batch_signature(batch), str(self._model), f"{held} with state"]
        if not self.steps:
            # Not every optimizer keeps its state where torch's do.
            parts.append("first")
        if module.automatic_optimization:
            every = trainer.accumulate_grad_batches
            if number % every:
                parts.append("adds to gradients")
            if trainer.is_last_batch or (number + 1) % every == 0:
                parts.append("steps")
        else:
            parts.append(f"gradients {[_has_gradients(optimizer) for optimizer in trainer.optimizers]}")
        return "; ".join(parts)

    def _admit(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, number: int
    ) -> None:
        """Where a subclass may end the training before this batch."""

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if (number := self._numbers.get(id(optimizer))) is not None:
            self._stepped.append(number)
            self._seen.add(number)

    def _log(self, module: lightning.LightningModule) -> None:
        if self.log:
            module.log_dict({"train_flops": float(self.train_flops), "train_bytes": float(self.train_bytes)})

    def _stop(self) -> None:
        self._close()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
            self._metered.add(self._meters.take())
            self.machine.__exit__(None, None, None)


def _has_gradients(optimizer: Optimizer) -> bool:
    return any(x.grad is not None for group in optimizer.param_groups for x in group["params"])
