"""Entries, queries and labels of ``mnemograph store``, read from arrays on disk."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from experiments.errors import RunError
from retrieval import Entries, StoreBusyError

__all__ = ["Column", "Columns", "check_space", "mistakes", "read_columns", "read_labels", "read_queries"]

COLUMNS = ("keys", "values", "documents", "positions")
# Keys read at once; the rest of a batch is small beside them.
BATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class Column:
    """An array on disk, of which only what is asked for is read.

    Args:
        file: Where it is.
        tensor: Its name in a safetensors file; ``None`` for an ``.npy`` file.
        shape: Its shape.
    """

    file: Path
    tensor: str | None
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    def __str__(self) -> str:
        return str(self.file) if self.tensor is None else f"{self.file} ({self.tensor})"

    def __getitem__(self, part: slice) -> Tensor:
        # Mapped anew each time: pages that were read stay in memory for as long as a map does.
        with _mapped(self.file, self.tensor) as rows:
            return _tensor(rows[part])

    def sample(self, n: int) -> Tensor:
        """Some rows, evenly spread: at most ``n``."""
        step = max(1, -(-len(self) // n))
        with _mapped(self.file, self.tensor) as rows:
            return torch.cat([_tensor(rows[i : i + 1]) for i in range(0, len(self), step)])


@dataclass(frozen=True)
class Columns:
    """The columns of entries.

    Args:
        keys: What entries are found by, two axes.
        others: Values, documents, positions: those that there are.
        first: Number of the first entry, where numbers are the values.
    """

    keys: Column
    others: dict[str, Column]
    first: int = 0

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def d_value(self) -> int:
        """Dimensions of a value; 0 where values are whole numbers."""
        shape = self.others["values"].shape if "values" in self.others else ()
        return shape[1] if len(shape) == 2 else 0

    def batches(self) -> Iterator[Entries]:
        """All entries, a batch at a time."""
        rows = max(1, BATCH_BYTES // (4 * max(1, self.keys.shape[1])))
        for begin in range(0, len(self), rows):
            part = slice(begin, min(begin + rows, len(self)))
            others = {name: column[part] for name, column in self.others.items()}
            others.setdefault("values", self.first + torch.arange(part.start, part.stop))
            yield Entries(self.keys[part], **others)

    def sample(self, n: int) -> tuple[Tensor, None]:
        """Some keys, evenly spread: at most ``n``; and that there are no queries that go with them."""
        return self.keys.sample(n).float(), None


def read_columns(files: dict[str, Path | None], *, first: int = 0) -> Columns:
    """Columns of entries from the files that options name.

    Args:
        files: By name of the column; of those that are missing, a safetensors file of keys may hold some.
        first: Number of the first entry, which is its value where there are no others.

    Raises:
        RunError: If a file is missing or no array, or lengths differ.
    """
    keys = files["keys"]
    assert keys is not None
    found = {name: _column(file, name) for name, file in files.items() if file is not None}
    if keys.suffix == ".safetensors":
        there = _tensors(keys)
        found |= {name: _column(keys, name) for name in COLUMNS if name in there and name not in found}
    if len(found["keys"].shape) != 2:
        raise RunError(
            f"{found['keys']} has the shape {list(found['keys'].shape)}: keys are floats [n, d], a row for each "
            "entry"
        )
    lengths = {str(column): column.shape[0] if column.shape else 0 for column in found.values()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        raise RunError(f"the files have different numbers of rows ({told}): each needs a row for every entry")
    return Columns(found.pop("keys"), found, first)


def read_queries(file: Path, d: int) -> Tensor:
    """Queries ``[n, d]``, or one of ``d`` numbers.

    Args:
        file: An ``.npy`` file, or a ``.safetensors`` file with a tensor ``queries``, or one only.
        d: Dimensions of the store's keys.

    Raises:
        RunError: If it cannot be read, or has other dimensions.
    """
    column = _column(file, "queries")
    if len(column.shape) not in (1, 2) or column.shape[-1] != d:
        raise RunError(
            f"{column} has the shape {list(column.shape)}, the store has keys of {d} dimensions: queries are "
            f"floats [n, {d}], from what made the keys"
        )
    queries = column[:]
    if not queries.is_floating_point():
        raise RunError(f"{column} holds {str(queries.dtype).removeprefix('torch.')}: queries are floats")
    return queries.float().reshape(-1, d)


def read_labels(given: Sequence[str], option: str, n: int | None = None) -> Tensor:
    """Whole numbers, typed or from an ``.npy`` file.

    Args:
        given: What was typed: numbers, or one file.
        option: Its name, for errors.
        n: How many there must be; one stands for all of them.

    Raises:
        RunError: If they are no whole numbers, or not as many.
    """
    if len(given) == 1 and given[0].endswith((".npy", ".safetensors")):
        name = option.lstrip("-").replace("-", "_")
        labels = _column(Path(given[0]), name)[:]
        if labels.is_floating_point() or labels.ndim != 1:
            raise RunError(
                f"{option} {given[0]} holds {list(labels.shape)} {labels.dtype}: whole numbers [n]"
            )
    else:
        try:
            labels = torch.tensor([int(word) for word in given])
        except ValueError:
            raise RunError(
                f"{option} {' '.join(given)}: give whole numbers, or one .npy file of them"
            ) from None
    if n is not None and len(labels) == 1:
        labels = labels.expand(n)
    if n is not None and len(labels) != n:
        raise RunError(f"{option} has {len(labels):,} numbers for {n:,} queries: give one for each, or one")
    return labels.long()


def check_space(path: Path, needed: int) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        path: The store.
        needed: Bytes of its entries.

    Raises:
        RunError: If fewer are free.
    """
    there = path.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed:
        raise RunError(
            f"{path} would take {needed / 1e9:,.2f} GB, and {free / 1e9:,.2f} GB are free there: free some, give "
            "another path, or --dtype float16"
        )


@contextmanager
def mistakes(path: Path, source: str = "") -> Iterator[None]:
    """What the library says of a user's mistake, as an error of this command.

    Args:
        path: The store.
        source: Where the entries are from.

    Raises:
        RunError: In place of the library's own errors.
    """
    try:
        yield
    except RunError:
        raise
    except (ValueError, NotImplementedError, FileExistsError, StoreBusyError) as error:
        told = str(error).replace("dtype='float32'", "--dtype float32")
        told = re.sub(r"memory_bytes=([\d,]+)(.*: give )([\d,]+)", _in_gigabytes, told)
        raise RunError(f"{source}: {told}" if source and " of row " in told else told) from error
    except KeyError as error:
        raise RunError(str(error.args[0])) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise RunError(
            f"the disk of {path} is full: free some of it and try again; the store is as it was before"
        ) from error


def _in_gigabytes(said: re.Match[str]) -> str:
    """The library's ceiling of memory, in bytes, as the option has it; rounded up."""
    given, least = (int(said[at].replace(",", "")) / 1e9 for at in (1, 3))
    return f"--memory-gb {given:g}{said[2]}{least + 5e-5:.4f}"


def _column(file: Path, name: str) -> Column:
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise RunError(f"--{name} {file} {what}: give an .npy or .safetensors file")
    tensor = None
    if file.suffix == ".safetensors":
        there = _tensors(file)
        tensor = there[0] if name not in COLUMNS and len(there) == 1 else name
        if tensor not in there:
            raise RunError(f"{file} has no tensor {name!r} (it has {', '.join(there)}): name it so")
    try:
        with _mapped(file, tensor) as rows:
            if tensor is not None:
                return Column(file, tensor, tuple(rows.get_shape()))
            if not isinstance(rows, np.ndarray):
                raise RunError(f"{file} holds several arrays: give each in an .npy file of its own")
            if rows.dtype.kind not in "fiu" or rows.dtype.itemsize > 8:
                raise RunError(f"{file} holds {rows.dtype}, no numbers: write some with numpy.save")
            return Column(file, None, rows.shape)
    except RunError:
        raise
    except (ValueError, EOFError, OSError) as error:
        raise RunError(
            f"{file} cannot be read as an array of numbers ({error}): write it again with "
            "numpy.save, whole and without objects in it"
        ) from error


@contextmanager
def _mapped(file: Path, tensor: str | None) -> Iterator[Any]:
    """What takes slices of a file's array."""
    if tensor is None:
        yield np.load(file, mmap_mode="r", allow_pickle=False)
    else:
        with safe_open(file, framework="pt") as opened:
            yield opened.get_slice(tensor)


def _tensor(rows: Tensor | np.ndarray) -> Tensor:
    # Copied: PyTorch takes neither maps that cannot be written nor foreign orders of bytes.
    return (
        rows.clone()
        if isinstance(rows, Tensor)
        else torch.from_numpy(np.array(rows, rows.dtype.newbyteorder("=")))
    )


def _tensors(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise RunError(f"{file} cannot be read as safetensors ({error}): write it again") from error
