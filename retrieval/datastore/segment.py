"""One immutable part of a store of a corpus: columns in files, memory-mapped."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from retrieval.datastore.derived import DerivedIndex
from retrieval.datastore.entries import Layout
from retrieval.rounding import lengths
from retrieval.snapshot import SnapshotError, open_snapshot

__all__ = ["SEGMENT", "SEGMENT_VERSION", "Part", "Segment", "reading"]

SEGMENT, SEGMENT_VERSION = "segment of a datastore", 1


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """A block that reads what a manifest says; one that lacks something is refused.

    Raises:
        SnapshotError: If it does; names the file.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SnapshotError(
            f"{file} is foreign or of another version ({type(error).__name__}: {error}): take it from a copy, or build "
            f"{file.parent} again"
        ) from error


class Segment:
    """Entries that never change, in the order of their ids.

    Opening maps the files and reads no entry. A file that is replaced or deleted afterwards stays readable here.

    Args:
        path: Folder of the segment.
        verify: Whether to compare checksums; lengths are always compared.

    Attributes:
        columns: Mapped arrays by name: ``keys``, ``values``, ``documents``, ``positions``.
        first_id: Smallest id.

    Raises:
        SnapshotError: If the segment is missing, damaged, foreign or of a newer format.
    """

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        self.path = path
        about = open_snapshot(path, SEGMENT, SEGMENT_VERSION, verify=verify)
        self._areas: list[mmap.mmap] = []
        self.columns: dict[str, np.ndarray] = {}
        with reading(path / "manifest.json"):
            self.layout = Layout(about["d"], about["dtype"], about["d_value"])
            self.first_id: int = about["first_id"]
            self._n: int = about["entries"]
            for name, (dtype, shape) in self.layout.columns.items():
                self.columns[name] = self._mapped(name, dtype, (self._n, *shape))
            # Ids without a gap need no file.
            self._ids = None if about["dense"] else self._mapped("ids", np.dtype(np.int64), (self._n,))
        self._tensors: dict[str, Tensor] = {}
        self._longest: dict[tuple[int, int], float] = {}

    def __len__(self) -> int:
        return self._n

    @property
    def name(self) -> str:
        """Name of its folder, which no other segment of the store ever had."""
        return self.path.name

    @property
    def last_id(self) -> int:
        """Largest id."""
        return self.first_id + self._n - 1 if self._ids is None else int(self._ids[-1])

    def ids(self, places: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        """Ids of the entries at these places."""
        return places + self.first_id if self._ids is None else self._ids[places]

    def places(self, ids: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Places of ids, -1 of those that are not here."""
        if self._ids is None:
            places = ids - self.first_id
            return np.where((ids >= self.first_id) & (places < self._n), places, -1)
        places = np.minimum(np.searchsorted(self._ids, ids), self._n - 1)
        return np.where(self._ids[places] == ids, places, -1)

    def float_keys(
        self, begin: int, end: int, room: Float[np.ndarray, "most d"]
    ) -> tuple[Float[np.ndarray, "n d"], float]:
        """Some keys in 32-bit floats, in that room if they are stored otherwise, and the length of the longest."""
        if self.layout.dtype == "float32":
            keys = self.columns["keys"][begin:end]
        else:  # through torch: numpy takes several times as long
            keys = room[: end - begin]
            torch.from_numpy(keys).copy_(self._tensor("keys")[begin:end])
        if (begin, end) not in self._longest:
            self._longest[begin, end] = float(lengths(keys).max())
        return keys, self._longest[begin, end]

    def take(self, column: str, places: Int[np.ndarray, " n"]) -> Shaped[Tensor, "n ..."]:
        """Rows of a column; places in ascending order are several times as fast as in any.

        Shapes:
            places: ``[n]``, result: ``[n, ...]``
        """
        # Rows of a mapped file through torch: numpy takes five times as long.
        return self._tensor(column).index_select(0, torch.from_numpy(places))

    def release(self) -> None:
        """Give back the memory of what was read; it is read again when it is wanted."""
        for area in self._areas:
            if hasattr(area, "madvise"):
                area.madvise(mmap.MADV_DONTNEED)

    def _tensor(self, column: str) -> Tensor:
        if column not in self._tensors:
            with warnings.catch_warnings():
                # That it is read-only is the point; nothing here writes.
                warnings.filterwarnings("ignore", message=".*not writable")
                self._tensors[column] = torch.from_numpy(self.columns[column])
        return self._tensors[column]

    def _mapped(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        file = self.path / f"{name}.npy"
        try:
            with file.open("rb") as stream:
                np.lib.format.read_magic(stream)
                found, _, type_ = np.lib.format.read_array_header_1_0(stream)
                offset = stream.tell()
                self._areas.append(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            raise SnapshotError(f"{file} cannot be read ({error}): {self._again}") from None
        if type_ != dtype or found != shape:
            raise SnapshotError(
                f"{file} holds {type_} {list(found)}, not {dtype} {list(shape)}: {self._again}"
            )
        return np.frombuffer(self._areas[-1], dtype, int(np.prod(shape)), offset).reshape(shape)

    @property
    def _again(self) -> str:
        return f"take {self.path.parent} from a copy, or build it again"


@dataclass(frozen=True)
class Part:
    """A segment as one generation of a store sees it.

    Args:
        segment: The entries.
        dead: Which of them are deleted; ``None`` if none is.
        index: What finds candidates in it; without one every key is looked at.
    """

    segment: Segment
    dead: np.ndarray | None = None
    index: DerivedIndex | None = None

    @property
    def live(self) -> int:
        """Entries that are not deleted."""
        return len(self.segment) - (0 if self.dead is None else int(self.dead.sum()))

    def live_places(self, begin: int, end: int) -> np.ndarray:
        """Places from ``begin`` up to ``end`` that are not deleted."""
        if self.dead is None:
            return np.arange(begin, min(end, len(self.segment)))
        return begin + np.flatnonzero(~self.dead[begin:end])

    @property
    def folders(self) -> list[str]:
        """Names of the folders it lies in."""
        return [self.segment.name] + ([] if self.index is None else [self.index.path.name])

    def files(self) -> Iterator[Path]:
        """All of its files."""
        for name in self.folders:
            yield from (self.segment.path.parent / name).glob("*")

    def describe(self) -> dict[str, Any]:
        """As a manifest names it."""
        return {"segment": self.segment.name, "index": None if self.index is None else self.index.path.name}
