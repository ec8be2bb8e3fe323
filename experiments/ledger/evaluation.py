"""Watching a batch in a Lightning loop; batches of validation, testing and prediction."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import lightning
from torch import nn

from experiments.ledger.bill import Bill
from experiments.ledger.ledger import Ledger
from experiments.ledger.meters import Metered, Meters
from experiments.ledger.price import Price
from experiments.ledger.prices import Operator
from experiments.ledger.signature import batch_signature
from experiments.ledger.steps import Steps


class EvaluationLedger(lightning.Callback):
    """Bills batches that are evaluated, each loop as a phase of its own; half of :class:`LedgerCallback`.

    Args:
        evaluation: Whether to; otherwise evaluation is left alone.
        prices: As :class:`~experiments.ledger.Ledger` takes them.
    """

    def __init__(self, evaluation: bool, prices: Mapping[Operator, Price] | None) -> None:
        super().__init__()
        self.evaluation, self.prices = evaluation, prices
        self._evaluated: dict[str, Steps] = {}
        self._found: dict[str, Metered] = {}
        self._meters = Meters()
        self._before = ""
        self._open: tuple[ExitStack, Ledger] | None = None

    def evaluated(self) -> Bill:
        """What evaluation has cost so far: phases "validate", "test" and "predict"."""
        total = Bill()
        for steps in self._evaluated.values():
            total.include(steps.total())
        for phase, found in self._found.items():
            for operator, cost in found.bill.costs("operator").items():
                total.record(phase, operator, "(outside)", cost)
        return total

    def on_validation_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Open a ledger if such a batch was never watched."""
        self._begin("validate", trainer, pl_module, batch)

    def on_validation_batch_end(self, trainer: lightning.Trainer, *_: Any, **__: Any) -> None:
        """Close it; bill the batch."""
        self._end("validate", trainer)

    def on_test_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Open a ledger if such a batch was never watched."""
        self._begin("test", trainer, pl_module, batch)

    def on_test_batch_end(self, trainer: lightning.Trainer, *_: Any, **__: Any) -> None:
        """Close it; bill the batch."""
        self._end("test", trainer)

    def on_predict_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Open a ledger if such a batch was never watched."""
        self._begin("predict", trainer, pl_module, batch)

    def on_predict_batch_end(self, trainer: lightning.Trainer, *_: Any, **__: Any) -> None:
        """Close it; bill the batch."""
        self._end("predict", trainer)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Stop watching."""
        self._close()

    def _begin(self, phase: str, trainer: lightning.Trainer, module: nn.Module, batch: Any) -> None:
        if not self.evaluation or trainer.sanity_checking:
            return
        self._meters.take()
        self._before = batch_signature(batch)
        if self._evaluated.setdefault(phase, Steps()).must_watch(self._before):
            self._watch(module, phase)

    def _end(self, phase: str, trainer: lightning.Trainer) -> None:
        if self.evaluation and not trainer.sanity_checking:
            self._bill_step(self._evaluated[phase], self._found.setdefault(phase, Metered()), "")

    def _watch(self, module: nn.Module, phase: str | None = None) -> None:
        self._close()  # of a batch that did not come to its end
        ledger = self._ledger(module, phase)
        with ExitStack() as stack:
            stack.enter_context(ledger)
            if phase is not None:
                stack.enter_context(ledger.phase(phase))
            self._open = stack.pop_all(), ledger

    def _ledger(self, module: nn.Module, phase: str | None) -> Ledger:
        return Ledger(module, self.prices)

    def _bill_step(self, steps: Steps, metered: Metered, after: str) -> int:
        """Bill what ends now, and what meters say; returns the FLOPs of both."""
        opened = self._open
        if opened is None:
            flops = steps.add_unwatched(self._before, after)
        else:
            self._close()
            bill = metered.place(opened[1], self._meters.operators)
            flops = steps.add_watched(self._before, after, bill)
        return flops + metered.add(self._meters.take())

    def _close(self) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            opened[0].close()

    def _evaluation_state(self) -> dict[str, Any]:
        return {
            "evaluated": {phase: steps.to_dict() for phase, steps in self._evaluated.items()},
            "found": {phase: found.to_dict() for phase, found in self._found.items()},
        }

    def _resume_evaluation(self, state: Mapping[str, Any]) -> None:
        self._evaluated = {phase: Steps.resumed(part) for phase, part in state["evaluated"].items()}
        self._found = {phase: Metered.resumed(part) for phase, part in state["found"].items()}
