"""Which module the running operator belongs to, also in backward and through parallel branches."""

from __future__ import annotations

import threading
from bisect import bisect_right
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from experiments.ledger.bill import OUTSIDE
from experiments.ledger.price import Cost


@dataclass(frozen=True)
class Region:
    """Autograd nodes ``start <= sequence number < stop``, whose backward is billed as one operator."""

    start: int
    stop: int
    operator: str
    module: str
    backward: Cost


class Trace:
    """Follows modules forward, and autograd nodes back to the module that made them.

    Autograd numbers its nodes in the order they are made. Noting that number whenever a module is entered or left
    says, for any node that runs later, in whichever order, which module it came from.

    Args:
        model: Root of the names; without it each outermost module is its own root, named by its class.
        root: Name of ``model`` itself.
    """

    def __init__(self, model: nn.Module | None, root: str) -> None:
        self._rooted = model is not None
        self._names: dict[nn.Module, str] = {}
        self._owners: dict[int, str] = {}
        self._stack: list[tuple[nn.Module, str, int]] = []
        self._starts: list[int] = []
        self._places: list[str] = []
        self._regions: list[Region] = []
        self._last = OUTSIDE
        self._thread = 0
        if model is not None:
            self._adopt(model, root, "")

    def open(self, stack: ExitStack) -> None:
        """Follow modules of this thread until ``stack`` unwinds."""
        self._thread = threading.get_ident()
        self._stack.clear()
        self._mark()
        for handle in (
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ):
            stack.callback(handle.remove)

    def here(self) -> bool:
        """Whether this is the thread being followed."""
        return threading.get_ident() == self._thread

    @property
    def in_module(self) -> bool:
        """Whether a module is running forward."""
        return bool(self._stack)

    def module(self) -> str:
        """The module that the operator now running belongs to."""
        node = self._backward_node()
        if node is None:
            return self._here() if self._running_forward() else self._last
        if node.name().endswith("AccumulateGrad"):
            # Such a node belongs to a parameter, not to a moment.
            return self._owners.get(id(node.variable), self._last)
        self._last = self._made_by(node._sequence_nr())
        return self._last

    def region(self) -> Region | None:
        """The region whose backward is running, if one is."""
        # With gradients on, this is no backward formula but a forward computed again by a checkpoint.
        node = None if torch.is_grad_enabled() else self._backward_node()
        if node is None or not self._regions:
            return None
        number = node._sequence_nr()
        position = bisect_right(self._regions, number, key=lambda region: region.start) - 1
        return self._regions[position] if position >= 0 and number < self._regions[position].stop else None

    def recomputing(self) -> bool:
        """Whether a checkpoint is computing its forward again, inside backward."""
        if torch._C._current_graph_task_id() == -1 or not torch.is_grad_enabled():
            return False
        if self._running_forward():
            return True
        node = torch._C._current_autograd_node()
        # Work of a checkpointed function outside any module: told by the node, or by who keeps its tensors.
        keepers = torch._C._autograd._top_saved_tensors_default_hooks(True)  # type: ignore[attr-defined]
        again = keepers is not None and "_recomputation_hook" in keepers[0].__qualname__
        return again or (node is not None and "CheckpointFunction" in node.name())

    def close_region(self, start: int, operator: str, backward: Cost) -> None:
        """Bill the nodes made since ``start`` as one operator."""
        stop = torch.autograd._get_sequence_nr()
        if stop > start:
            self._regions.append(Region(start, stop, operator, self.module(), backward))

    def _running_forward(self) -> bool:
        """Also true while a checkpoint computes its modules again inside backward."""
        task = torch._C._current_graph_task_id()
        return task == -1 or bool(self._stack and self._stack[-1][2] == task)

    def _backward_node(self) -> Any:
        return None if self._running_forward() else torch._C._current_autograd_node()

    def _here(self) -> str:
        return self._stack[-1][1] if self._stack else OUTSIDE

    def _made_by(self, number: int) -> str:
        position = bisect_right(self._starts, number) - 1
        return self._places[position] if position >= 0 else OUTSIDE

    def _mark(self) -> None:
        self._starts.append(torch.autograd._get_sequence_nr())
        self._places.append(self._here())

    def _enter(self, module: nn.Module, args: Any) -> None:
        if not self.here():
            return
        if not self._rooted and not self._stack and module not in self._names:
            base = type(module).__name__
            taken = set(self._names.values())
            same = (f"{base}#{number}" for number in range(2, len(taken) + 3))
            root = base if base not in taken else next(name for name in same if name not in taken)
            self._adopt(module, root, f"{root}.")
        # A module outside the tree of names works for the one that calls it.
        name = self._names.get(module, self._here())
        self._stack.append((module, name, torch._C._current_graph_task_id()))
        self._mark()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.here() and self._stack and self._stack[-1][0] is module:
            self._stack.pop()
            self._mark()

    def _adopt(self, model: nn.Module, root: str, prefix: str) -> None:
        for name, module in model.named_modules():
            self._names.setdefault(module, prefix + name if name else root)
            for parameter in module.parameters(recurse=False):
                self._owners.setdefault(id(parameter), self._names[module])
