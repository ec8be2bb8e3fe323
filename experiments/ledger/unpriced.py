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
        name = operator.rsplit(".", 1)[0] if operator.count(".") > 1 else operator
        self.operator, self.module, self.line = operator, module, line
        super().__init__(
            f"{operator}({arguments}) has no price.\n"
            f"  module: {module}\n"
            f"  called at: {line}\n"
            "Price it, for one FLOP an output element:\n"
            "  from experiments.ledger import elementwise\n"
            f'  Ledger(model, prices={{torch.ops.{name}: elementwise(1, "why")}})\n'
            "or for everyone, in the table of experiments/ledger it belongs to "
            "(matmul, attention, elementwise, reductions, losses, pooling, linalg, indexing, free):\n"
            f'  **priced(elementwise(1, "why"), "{name.split(".", 1)[-1].removesuffix("_")}"),\n'
            "An operator of your own takes torch.utils.flop_counter.register_flop_formula."
        )


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
