"""Language modelling as a LightningModule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from mann.auxiliary import auxiliary_loss
from mann.optim import RoleOptimizer, linear_schedule
from mann.state import State

# Good for width 64 and about a million tokens; experiments/studies/tuned.json has what tuning found elsewhere.
RATES = {"matrix": 0.01, "embedding": 0.15, "head": 0.03, "scalar": 0.03, "table": 0.03}


class LanguageModule(L.LightningModule):
    r"""Trains a language model to predict the next token.

    A batch is a dictionary with ``tokens`` and ``targets`` (-100: not scored), and optionally ``documents``,
    ``neighbors`` and ``exclude``. The rate warms up, stays, and falls to zero at ``total_steps``. Modules that are
    :class:`~mann.auxiliary.Auxiliary` add terms of their own to what is minimised; the loss that is logged is without.

    Args:
        network: The model: a :class:`~mann.Transformer`, an :class:`~mann.Attached`, or whatever has its ``loss``.
        total_steps: Length of the schedule; the end of the budget.
        rates: Step size per parameter role (:func:`mann.optim.parameter_roles`).
        weight_decay: Decoupled decay of matrices.
        warmup: Share of the steps for the warm-up.
        decay: Share of the steps for the decay.
        carry: Streaming slots go on in each batch where the batch before ended, row by row: for data in which it
            does (truncated backpropagation through time). What they hold is in the checkpoint.

    Shapes:
        tokens, targets, documents: ``[batch, time]``; loss: scalar, nats per scored token.

    Raises:
        FloatingPointError: If the loss is not finite.
    """

    def __init__(
        self,
        network: nn.Module,
        total_steps: int,
        rates: dict[str, float] | None = None,
        weight_decay: float = 0.0,
        warmup: float = 0.03,
        decay: float = 0.6,
        carry: bool = False,
    ) -> None:
        super().__init__()
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}: raise the budget")
        self.network = network
        self.total_steps = total_steps
        self.rates = RATES | (rates or {})
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.decay = decay
        self.state = State() if carry else None
        self._losses: list[Tensor] = []

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the hook it is in some fifty times a step, and torch looks for parameters in that name each
        # time: a fifth of all that Lightning adds to a step.
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Mean negative log-probability of the scored targets, in nats."""
        return self._mean(batch, None)

    def objective(self, batch: Mapping[str, Any]) -> Tensor:
        """What training minimises: that, and the :func:`~mann.auxiliary.auxiliary_loss` of the network."""
        return self._with_auxiliary(self(batch))

    def _with_auxiliary(self, loss: Tensor) -> Tensor:
        more = auxiliary_loss(self.network)
        return loss if more is None else loss + more

    def _mean(self, batch: dict[str, Any], state: State | None) -> Tensor:
        loss: Any = self.network.loss
        nll = loss(
            *(batch["tokens"], batch["targets"], batch.get("documents"), batch.get("neighbors"), state),
            # A network of your own need not know of it.
            *([batch["exclude"]] if "exclude" in batch else []),
        )
        return nll.sum() / (batch["targets"] >= 0).sum().clamp(min=1)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        if self.state is None:
            loss = self(batch)
        else:
            self.state.detach()
            loss = self._mean(batch, self.state)
        # Kept as tensors and read every hundred steps: reading a number every step would stall a GPU.
        self._losses.append(loss.detach())
        if len(self._losses) == 100 or self.global_step + 1 == self.total_steps:
            mean = torch.stack(self._losses).mean()
            self._losses.clear()
            if not torch.isfinite(mean):
                raise FloatingPointError(
                    f"the training loss became {mean.item()} by step {self.global_step}: lower the rates "
                    f"(now {self.rates}) or look for non-finite numbers in the data"
                )
            self.log("train/nats_per_token", mean, batch_size=1)
        return self._with_auxiliary(loss)

    def on_train_end(self) -> None:
        """Tables that catch up later do so now: whoever uses the weights next has no optimiser."""
        self._settle()

    def on_validation_start(self) -> None:
        """As at the end."""
        self._settle()

    def _settle(self) -> None:
        for optimizer in self.trainer.optimizers:
            if isinstance(optimizer, RoleOptimizer):
                optimizer.settle()

    def on_train_epoch_end(self) -> None:
        """Data begin anew, and so do streaming slots."""
        if self.state is not None:
            self.state.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what streaming slots hold, of every process its own."""
        if self.state is None:
            return
        states: list[Any] = [self.state.state_dict()]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            states *= torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, states[0])
        checkpoint["streaming_states"] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on where the checkpoint was written."""
        if self.state is None:
            return
        states, rank = checkpoint.get("streaming_states", []), self.global_rank
        if rank >= len(states):
            raise ValueError(
                f"the checkpoint holds the streaming state of {len(states)} processes, this is process {rank}: go on "
                "with as many as wrote it"
            )
        self.state.load_state_dict(states[rank])

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        optimizer = RoleOptimizer(self.network, self.rates, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: linear_schedule(step, self.total_steps, self.warmup, self.decay)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
