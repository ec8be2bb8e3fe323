"""What callbacks that count in forward passes have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

import lightning as L
from torch import nn

__all__ = ["Counted", "WatchingCallback"]


class Counted(Protocol):
    """What was counted of one part of a model."""

    def result(self) -> Mapping[str, Any]:
        """What was counted so far."""
        ...

    def reset(self) -> None:
        """Forget what was counted."""
        ...


class WatchingCallback(L.Callback):
    """Counts while a model is trained, and logs ``PREFIX/NAME/WHAT`` every so many steps.

    Args:
        every: Steps between two logs; each tells of the steps since the one before.

    Attributes:
        prefix: What the names of logs begin with.
        told: What is logged of a result.

    Raises:
        ValueError: If ``every`` is not at least 1.
    """

    prefix: ClassVar[str]
    told: ClassVar[tuple[str, ...]]

    def __init__(self, every: int = 100) -> None:
        if every < 1:
            raise ValueError(f"every={every}: give the number of steps between two logs")
        self.every = every
        self.counted: Mapping[str, Counted] = {}
        self._watching: AbstractContextManager[Mapping[str, Counted]] | None = None

    @abstractmethod
    def watch(self, model: nn.Module) -> AbstractContextManager[Mapping[str, Counted]]:
        """Counts within a block, by the name of each part."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Begin to count."""
        self._watching = self.watch(module)
        self.counted = self._watching.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Log and begin anew, every so many steps."""
        if (trainer.global_step + 1) % self.every:
            return
        for name, counts in self.counted.items():
            result = counts.result()
            for what in self.told:
                module.log(f"{self.prefix}/{name}/{what}", result[what], batch_size=1)
            counts.reset()

    def on_train_end(self, *_: Any) -> None:
        """Count no more."""
        self._stop()

    def on_exception(self, *_: Any) -> None:
        """As at the end."""
        self._stop()

    def _stop(self) -> None:
        if self._watching is not None:
            self._watching.__exit__(None, None, None)
            self._watching = None
