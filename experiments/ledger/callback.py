"""The ledger in a Lightning run: count one step of each kind, multiply afterwards."""

from __future__ import annotations

from typing import Any

import lightning
from torch import Tensor

from experiments.ledger.bill import Bill
from experiments.ledger.ledger import Ledger


class LedgerCallback(lightning.Callback):
    """Bills every training step, at the price of watching one step of each batch shape.

    A step is of a new kind when a tensor of its batch has another shape or type, when the optimizer does or does not
    run after it (gradient accumulation), and once after the very first step, whose optimizer sets up its state.
    Logs ``train_flops`` and ``train_bytes``, summed since the first step; survives checkpoints.

    Work that depends on the data (a search) is billed as in the step that was watched; bill the difference, if you
    know it, with :meth:`add`.

    Args:
        log: Whether to log the two metrics, at the trainer's logging interval.
    """

    def __init__(self, log: bool = True) -> None:
        super().__init__()
        self.log = log
        self._kinds: dict[str, Bill] = {}
        self._steps: dict[str, int] = {}
        self._extra = Bill()
        self._open: tuple[str, Ledger] | None = None

    def add(self, kind: str, flops: int = 0, **moved: int) -> None:
        """Bill work done outside the training step to the phase ``kind``; arguments as :meth:`Bill.add`."""
        self._extra.add(kind, flops, **moved)

    def total(self) -> Bill:
        """Everything so far, as one bill: by phase, operator and module."""
        total = Bill()
        for kind, bill in self._kinds.items():
            total.include(bill, self._steps[kind])
        total.include(self._extra)
        return total

    def bill(self) -> dict[str, dict[str, int]]:
        """FLOPs, matmul FLOPs and bytes of each phase, over all steps so far."""
        return {phase: cost.to_dict() for phase, cost in self.total().costs("phase").items()}

    @property
    def train_flops(self) -> int:
        """FLOPs of all phases so far."""
        return sum(bill.flops * self._steps[kind] for kind, bill in self._kinds.items()) + self._extra.flops

    @property
    def train_bytes(self) -> int:
        """Bytes of all phases so far."""
        return sum(bill.bytes * self._steps[kind] for kind, bill in self._kinds.items()) + self._extra.bytes

    @property
    def steps(self) -> int:
        """Batches billed so far."""
        return sum(self._steps.values())

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Open a ledger if this kind of step was never watched."""
        last = trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        kind = (
            f"{'later' if self.steps else 'first'}, {'step' if last else 'accumulate'}, {_signature(batch)}"
        )
        if kind in self._kinds:
            self._steps[kind] += 1
            return
        self._open = kind, Ledger(pl_module).__enter__()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Close the ledger; log."""
        if self._open is not None:
            kind, ledger = self._open
            self._close()
            self._kinds[kind], self._steps[kind] = ledger.closed(), 1
        # Lightning puts this attribute on the trainer where a type checker does not see it.
        if self.log and trainer.global_step % vars(trainer)["log_every_n_steps"] == 0:
            pl_module.log_dict(
                {"train_flops": float(self.train_flops), "train_bytes": float(self.train_bytes)}
            )

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Stop watching."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """Bills and step counts, for a checkpoint."""
        kinds = {kind: bill.to_dict() for kind, bill in self._kinds.items()}
        return {"kinds": kinds, "steps": dict(self._steps), "extra": self._extra.to_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._kinds = {kind: Bill.from_dict(bill) for kind, bill in state_dict["kinds"].items()}
        self._steps = dict(state_dict["steps"])
        self._extra = Bill.from_dict(state_dict["extra"])

    def _close(self) -> None:
        if self._open is not None:
            self._open[1].__exit__(None, None, None)
            self._open = None


def _signature(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')}{list(batch.shape)}"
    if isinstance(batch, dict):
        return ", ".join(f"{name}: {_signature(part)}" for name, part in batch.items())
    if isinstance(batch, (list, tuple)):
        return f"({', '.join(map(_signature, batch))})"
    # A dataclass or a PyG graph: what it holds decides; a plain value does not change the work.
    parts = batch.to_dict() if hasattr(batch, "to_dict") else getattr(batch, "__dict__", None)
    return _signature(parts) if parts else type(batch).__name__
