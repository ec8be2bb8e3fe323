"""The error for an operator that has no price, and the line of the user's code that called it."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_NOT_THE_CALLER = (Path(torch.__file__).parent, Path(__file__).parent)


class UnpricedOperator(RuntimeError):  # noqa: N818 - named for what went unpriced, as the bill's readers know it
    """An operator ran that the ledger cannot bill, so the bill would be too small.

    Args:
        operator: Name with overload, such as ``aten.foo.default``.
        module: Module it ran in.
        line: Line of code that called it.
        arguments: Shapes it was called with.
    """

    def __init__(self, operator: str, module: str, line: str, arguments: str) -> None:
        self.operator, self.module, self.line = operator, module, line
        super().__init__(
            f"{operator}({arguments}) has no price.\n"
            f"  module: {module}\n"
            f"  called at: {line}\n"
            f"{remedy(operator)}"
        )


def remedy(operator: str) -> str:
    """Lines to type that give an operator a price, here one FLOP for each element it puts out.

    Args:
        operator: Name with overload, such as ``aten.foo.default``.
    """
    namespace, _, rest = operator.partition(".")
    name = rest.split(".")[0]
    here = (
        "Price it, for one FLOP an output element, in this ledger:\n"
        "  from experiments.ledger import Ledger, elementwise\n"
        f'  ledger = Ledger(prices={{torch.ops.{namespace}.{name}: elementwise(1, "why")}})\n'
    )
    if namespace == "aten":
        return here + (
            "or for everyone, in the table of experiments/ledger it belongs to "
            "(matmul, elementwise, reductions, losses, pooling, linalg, indexing, free):\n"
            f'  **priced(elementwise(1, "why"), "{name.removesuffix("_")}"),'
        )
    # The table is torch's own; what others define is registered beside the definition.
    return here + (
        "or for every ledger, and torch's own counter, where it is defined:\n"
        "  from torch.utils.flop_counter import register_flop_formula\n"
        f"  register_flop_formula(torch.ops.{namespace}.{name})({_one_each(operator)})"
    )


def _one_each(operator: str) -> str:
    overload: Any = torch.ops
    for part in operator.split("."):
        overload = getattr(overload, part, None)
    returns = [] if overload is None else [str(given.type) for given in overload._schema.returns]
    if not returns:
        return "lambda *shapes, out_shape, **options: 1"
    several = returns != ["Tensor"]
    each = "sum(out.numel() for out in out_shape)" if several else "out_shape.numel()"
    return f"lambda *shapes, out_shape, **options: {each}"


def caller() -> str:
    """The innermost line of the stack that is neither torch nor the ledger."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        inside = any(folder in path.parents for folder in _NOT_THE_CALLER)
        if not inside and not frame.filename.startswith("<"):
            return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return "unknown"


def shapes(arguments: Any) -> str:
    """Tensors by type and shape, everything else as it prints."""
    if isinstance(arguments, Tensor):
        return f"{str(arguments.dtype).removeprefix('torch.')}{list(arguments.shape)}"
    if isinstance(arguments, (list, tuple)):
        return ", ".join(shapes(argument) for argument in arguments)
    return repr(arguments)
