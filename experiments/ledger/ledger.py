"""The ledger: everything torch computes inside a ``with`` block, priced operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx._symbolic_trace import is_fx_symbolic_tracing
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode_stack,
    is_traceable_wrapper_subclass_type,
)

from experiments.ledger.bill import RECOMPUTE, Bill
from experiments.ledger.flex import FLEX, FLEX_BACKWARD, flex_cost
from experiments.ledger.free import VIEWED
from experiments.ledger.price import Call, Cost, Price
from experiments.ledger.prices import Operator, by_name, found_in, in_parts, price_of
from experiments.ledger.spelling import spell
from experiments.ledger.trace import Trace
from experiments.ledger.unpriced import UnpricedOperator, caller, shapes


class Ledger(Bill):
    """Counts FLOPs and bytes of everything torch runs inside it; refuses what it cannot price.

    .. code-block:: python

        with Ledger(model) as ledger:
            loss(model(tokens)).backward()
        print(ledger)

    A multiply-add is two FLOPs; ``docs/counting.md`` lists every price. The bill does not depend on the device, on
    train or eval, or on whether gradients are recorded. Work is put down to

    * a *phase*: "backward" while autograd runs, "recompute" for what a checkpoint computes again meanwhile,
      "optimizer" inside ``Optimizer.step`` (but not inside its closure), "search" for operators of that name, else
      "forward"; :meth:`phase` overrides all of them;
    * a *module*: in backward, the one whose forward made the node that runs, so parallel branches stay apart;
    * an *operator*.

    Opening the same ledger again adds to it. Only the thread that opened it is watched. Several ledgers may be open at
    once, and each bills everything. What compiled code computed before the ledger was opened, it goes back through
    unseen: open the ledger before the forward.

    Args:
        model: Gives the names in ``by_module``; without it each outermost module is listed under its class name.
        prices: Prices for operators the table lacks, or other ones than the table's.

    Raises:
        UnpricedOperator: When an operator runs that has no price.
    """

    def __init__(
        self, model: nn.Module | None = None, prices: Mapping[Operator, Price] | None = None
    ) -> None:
        super().__init__(type(model).__name__ if model is not None else "")
        self._own_prices = by_name(prices or {})
        self._trace = Trace(model, self.root)
        self._watch = _Watch(self)
        self._phases: list[str] = []
        self._optimizers = 0
        self._quiet = 0
        self._seen: set[tuple[int, int]] = set()
        self._exit: ExitStack | None = None

    def __enter__(self) -> Ledger:
        if self._exit is not None:
            raise RuntimeError(
                "this ledger is already open: leave its with block first, or open another Ledger()"
            )
        with ExitStack() as stack:
            self._trace.open(stack)
            for handle in (
                register_optimizer_step_pre_hook(self._before_step),
                register_optimizer_step_post_hook(self._after_step),
            ):
                stack.callback(handle.remove)
            spell(self, stack)
            stack.enter_context(self._watch)
            self._optimizers = self._quiet = 0
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, self._exit = self._exit, None
        if stack is not None:
            stack.close()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Bill everything inside to the phase ``name``, whatever it is."""
        self._phases.append(name)
        try:
            yield
        finally:
            self._phases.pop()

    def watching(self) -> bool:
        """Whether operators called from here would be billed one by one."""
        return self._exit is not None and self._trace.here() and not self._quiet

    @contextmanager
    def as_one(self, operator: str, forward: Cost, backward: Cost) -> Iterator[None]:
        """Bill everything inside, and its backward, as one operator.

        Args:
            operator: Name to bill.
            forward: Cost of running it.
            backward: Cost of its gradients, billed if and when they are computed.
        """
        start = torch.autograd._get_sequence_nr()
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1
        self._put_down(operator, forward)
        self._trace.close_region(start, operator, backward)

    def dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator and bill it."""
        # What torch traces, to derive a backward from, it does not compute.
        if self._quiet or is_fx_symbolic_tracing():
            return func(*args, **kwargs)
        region = self._trace.region()
        if region is not None:
            run = torch._C._current_graph_task_id(), region.start
            if run not in self._seen:
                self._seen.add(run)
                self._record(self._phase(region.operator), region.operator, region.module, region.backward)
            return func(*args, **kwargs)
        found = self._find(func)
        if found is None:
            return self._by_its_parts(func, args, kwargs)
        name, price = found
        out = func(*args, **kwargs)
        self._put_down(name, price(Call(func, args, kwargs, out)))
        return out

    def _find(self, func: Any) -> tuple[str, Callable[[Call], Cost]] | None:
        if not isinstance(func, torch._ops.OpOverload):
            return None
        name = str(func._overloadpacket)
        own = found_in(self._own_prices, func)
        return (name, own) if own is not None else price_of(func)

    def _by_its_parts(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Without autograd, torch shows composite operators whole; views are free; the rest has no price."""
        if isinstance(func, torch._ops.HigherOrderOperator):
            return self._higher_order(func, args, kwargs)
        if isinstance(func, torch._ops.OpOverload):
            with self._watch:
                out = in_parts(func, args, kwargs)
            if out is not NotImplemented:
                return out
            if func.is_view:
                out = func(*args, **kwargs)
                self._put_down(str(func._overloadpacket), VIEWED(Call(func, args, kwargs, out)))
                return out
        raise UnpricedOperator(str(func), self._trace.module(), caller(), shapes(args))

    def _higher_order(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """FlexAttention has a price; any other operator that runs functions costs what they do."""
        name = func.name()
        if name in (FLEX, FLEX_BACKWARD):
            self.upper_bound |= args[0].is_meta
            self._put_down(name, flex_cost(name, args, self._count))
            return func(*args, **kwargs)
        return func(*(self._watched(given) for given in args), **kwargs)

    def _watched(self, given: Any) -> Any:
        """A function that is seen while an operator runs it; anything else as it is."""
        if isinstance(given, Tensor) or not callable(given):
            return given

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self._watch:
                return given(*args, **kwargs)

        return watched

    def _count(self, function: Callable[[], Any]) -> int:
        bill = Ledger()
        bill._own_prices = self._own_prices
        with bill, torch.no_grad():
            function()
        return bill.flops

    def _put_down(self, operator: str, cost: Cost) -> None:
        self._record(self._phase(operator), operator, self._trace.module(), cost)

    def _record(self, phase: str, operator: str, module: str, cost: Cost) -> None:
        if cost != Cost():
            self.record(phase, operator, module, cost)

    def _phase(self, operator: str) -> str:
        if self._phases:
            return self._phases[-1]
        if operator.endswith(".search"):
            return "search"
        if self._trace.recomputing():
            return RECOMPUTE
        if torch._C._current_graph_task_id() != -1:
            return "backward"
        # Inside the step but with gradients on, or inside a module: that is its closure computing the loss.
        if self._optimizers and not torch.is_grad_enabled() and not self._trace.in_module:
            return "optimizer"
        return "forward"

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._optimizers += self._trace.here()

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._optimizers -= self._trace.here()


class _Watch(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def __exit__(self, *error: Any) -> None:
        """Take this mode off the stack, from wherever it is: ledgers may be closed in any order."""
        stack = _get_current_dispatch_mode_stack()
        if self not in stack:
            raise RuntimeError("a ledger is closed by the thread that opened it, and this is another one")
        later = stack[stack.index(self) + 1 :]
        for mode in reversed(later):
            TorchDispatchMode.__exit__(mode, None, None, None)
        super().__exit__(*error)
        for mode in later:
            TorchDispatchMode.__enter__(mode)

    def __torch_dispatch__(self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None) -> Any:
        for kind in types:
            # Jagged and sharded tensors: billed is what is done to the plain tensors they are made of.
            if is_traceable_wrapper_subclass_type(kind):
                with self:
                    run: Callable[..., Any] = getattr(kind, "__torch_dispatch__")  # noqa: B009 - unknown to its type
                    return run(func, types, args, kwargs or {})
        return self._ledger.dispatch(func, args, kwargs or {})
