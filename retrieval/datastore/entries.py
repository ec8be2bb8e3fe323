"""What a store of a corpus is given: entries, checked before any of them is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["LONGEST", "Checked", "Entries", "Layout", "whole_numbers"]

# Longer keys overflow 32-bit floats in a score.
LONGEST = 1e18


@dataclass(frozen=True)
class Entries:
    """Some entries of a store; a tuple of the same four does as well.

    Args:
        keys: What an entry is found by.
        values: What is found: token ids, or vectors.
        documents: Label of the document each entry comes from, 0 or more; by default all of document 0.
        positions: Stamp of each entry, which ``visible_at`` of a search is compared with; by default 0.

    Shapes:
        keys: ``[n, d]``, values: ``[n]`` of integers or ``[n, d_value]`` of floats, documents, positions: ``[n]``
    """

    keys: Tensor | np.ndarray
    values: Tensor | np.ndarray
    documents: Tensor | np.ndarray | None = None
    positions: Tensor | np.ndarray | None = None


@dataclass(frozen=True)
class Layout:
    """Types and sizes that all entries of a store share.

    Args:
        d: Dimensions of a key.
        dtype: How a key's numbers are stored: ``"float16"`` or ``"float32"``.
        d_value: Dimensions of a value; 0 where values are token ids.
    """

    d: int
    dtype: str
    d_value: int

    @property
    def columns(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Type of each file's numbers, and shape of a row."""
        value = (np.dtype(np.float32), (self.d_value,)) if self.d_value else (np.dtype(np.int32), ())
        return {
            "keys": (np.dtype(self.dtype), (self.d,)),
            "values": value,
            "documents": (np.dtype(np.int64), ()),
            "positions": (np.dtype(np.int64), ()),
        }

    @property
    def entry_bytes(self) -> int:
        """Bytes of an entry in the files."""
        return sum(dtype.itemsize * int(np.prod(shape)) for dtype, shape in self.columns.values())


@dataclass(frozen=True)
class Checked:
    """Entries in the types in which they are stored.

    Args:
        layout: What those are.
        columns: Arrays by name, all of one length.
    """

    layout: Layout
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["keys"])

    @classmethod
    def of(cls, batch: Any, dtype: str, layout: Layout | None, begin: int) -> Checked:
        """Check a batch and bring it into the stored types.

        Args:
            batch: :class:`Entries`, or a tuple of its fields.
            dtype: Type in which keys are stored.
            layout: What it must agree with; ``None`` for the first one.
            begin: Number of entries before it, for the row that an error names.

        Raises:
            ValueError: If shapes differ from each other or from ``layout``, a number is not finite or does not fit
                the stored type, or a document's label is negative; it names the row.
        """
        fields = (
            (batch.keys, batch.values, batch.documents, batch.positions)
            if isinstance(batch, Entries)
            else batch
        )
        if not isinstance(fields, tuple | list) or not 2 <= len(fields) <= 4:
            raise ValueError(
                "a batch is Entries(keys, values, documents, positions) or a tuple of these, got "
                f"{type(batch).__name__}"
            )
        keys, values, documents, positions = map(_array, (*fields, None, None)[:4])
        if keys is None or keys.ndim != 2 or keys.dtype.kind != "f" or not keys.shape[1]:
            raise ValueError(f"keys must be floats [n, d], got {_shape(keys)}")
        tokens = values is not None and values.ndim == 1 and values.dtype.kind in "iu"
        vectors = values is not None and values.ndim == 2 and values.dtype.kind == "f"
        if values is None or not (tokens or (vectors and values.shape[1])):
            raise ValueError(f"values must be token ids [n] or floats [n, d_value], got {_shape(values)}")
        found = cls(
            layout=Layout(keys.shape[1], dtype, values.shape[1] if vectors else 0),
            columns={
                "keys": _finite("key", keys, np.dtype(dtype), begin),
                "values": _finite("value", values, np.dtype(np.float32), begin)
                if vectors
                else _integers("value", values, np.dtype(np.int32), begin),
                "documents": _integers("document", documents, np.dtype(np.int64), begin, len(keys)),
                "positions": _integers("position", positions, np.dtype(np.int64), begin, len(keys)),
            },
        )
        lengths = {name: len(column) for name, column in found.columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"a batch has columns of different lengths: {lengths}")
        negative = np.flatnonzero(found.columns["documents"] < 0)
        if len(negative):
            raise ValueError(f"the document of row {begin + negative[0]} is negative: labels are 0 or more")
        if layout is not None and found.layout != layout:
            raise ValueError(
                f"row {begin} has {_described(found.layout)}, the rows before it {_described(layout)}"
            )
        return found


def whole_numbers(what: str, given: Any) -> Tensor:
    """Ids or labels as ``int64``, of whatever shape.

    Raises:
        TypeError: If they are no integers: rounding one, or taking a mask for ids, would name other entries.
    """
    numbers = given if isinstance(given, Tensor) else torch.as_tensor(given)
    if numbers.numel() and (
        numbers.dtype == torch.bool or numbers.is_floating_point() or numbers.is_complex()
    ):
        mask = numbers.dtype == torch.bool
        how = "of a mask give mask.nonzero()" if mask else f"give {what}.long() if they are whole"
        raise TypeError(f"{what} must be integers, got {numbers.dtype}: {how}")
    return numbers.long()


def _described(layout: Layout) -> str:
    value = f"values of {layout.d_value} dimensions" if layout.d_value else "token ids for values"
    return f"keys of {layout.d} dimensions and {value}"


def _array(field: Tensor | np.ndarray | None) -> np.ndarray | None:
    if not isinstance(field, Tensor):
        return None if field is None else np.asarray(field)
    field = field.detach().cpu()
    return (field.float() if field.dtype == torch.bfloat16 else field).numpy()


def _shape(array: np.ndarray | None) -> str:
    return "none" if array is None else f"{array.dtype} {list(array.shape)}"


def _finite(what: str, array: np.ndarray, dtype: np.dtype, begin: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(array, dtype)
    wide = stored.astype(np.float32, copy=False)
    length = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    wrong = np.flatnonzero(~(length < LONGEST))
    if len(wrong):
        row = wrong[0]
        if not np.isfinite(np.asarray(array[row], np.float64)).all():
            why = "is not finite"
        elif dtype == np.float16 and not np.isfinite(stored[row]).all():
            why = "does not fit float16 (65504 is the largest): use dtype='float32' or scale the keys"
        else:
            why = f"is longer than {LONGEST:g}: scale the {what}s"
        raise ValueError(f"the {what} of row {begin + row} {why}; nothing was stored")
    return stored


def _integers(
    what: str, array: np.ndarray | None, dtype: np.dtype, begin: int, default: int = 0
) -> np.ndarray:
    if array is None:
        return np.zeros(default, dtype)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{what}s must be integers [n], got {_shape(array)}")
    limits = np.iinfo(dtype)
    wrong = np.flatnonzero((array < limits.min) | (array > limits.max)) if array.dtype != dtype else []
    if len(wrong):
        raise ValueError(f"the {what} of row {begin + wrong[0]} does not fit {dtype}; nothing was stored")
    return np.ascontiguousarray(array, dtype)
