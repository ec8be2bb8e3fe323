"""Passages and arrays inside a snapshot: written as plain ``.npy`` files, read back as maps of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from retrieval.passages import Passages
from retrieval.snapshot import SnapshotError

__all__ = ["StoredPassages", "mapped", "stored_passages", "write_header", "write_passages"]

_ARRAYS = ("tokens", "offsets", "documents")


class StoredPassages(Passages):
    """Passages of a snapshot, memory-mapped: what was checked when they were made is not read again.

    Args:
        folder: Where :func:`write_passages` wrote them.
        about: What it returned.

    Raises:
        SnapshotError: If a file is no array, or ``about`` is not of passages.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.tokens, self.offsets, self.documents = (mapped(folder, f"passages-{name}") for name in _ARRAYS)
        try:
            self.vocab_size = int(about["vocab_size"])
            self.fingerprint = str(about["fingerprint"])
        except (KeyError, TypeError, ValueError):
            raise SnapshotError(f"{folder} holds no passages: delete it and build it again") from None


def write_passages(folder: Path, passages: Passages) -> dict[str, Any]:
    """Write passages into a snapshot's folder.

    Args:
        folder: Where to.
        passages: What to write.

    Returns:
        What to keep of them in the manifest.
    """
    for name in _ARRAYS:
        np.save(folder / f"passages-{name}.npy", getattr(passages, name), allow_pickle=False)
    return {"vocab_size": passages.vocab_size, "fingerprint": passages.fingerprint}


def stored_passages(folder: Path, about: dict[str, Any], passages: Passages | None) -> Passages:
    """The passages a snapshot was built from: those given, if they are the same ones, or its own.

    Args:
        folder: The snapshot.
        about: What :func:`write_passages` returned when it was written.
        passages: The caller's, if it has them; they are read once for their fingerprint if nobody has asked for it yet.

    Raises:
        SnapshotError: If the caller's are others.
    """
    own = StoredPassages(folder, about)
    if passages is None:
        return own
    if passages.fingerprint != own.fingerprint:
        raise SnapshotError(
            f"{folder} was built from other passages: open it without any to use its own, or build it again"
        )
    return passages


def write_header(file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Write the header of an .npy file at its beginning, and go to its end.

    numpy leaves room for the first axis to grow, so it can be written again when all rows are there.

    Args:
        file: Open for writing.
        dtype: Of the numbers.
        shape: Of the array.
    """
    end = file.tell()
    file.seek(0)
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    file.seek(max(end, file.tell()))


def mapped(folder: Path, name: str) -> np.ndarray:
    """A file's array, memory-mapped and read-only.

    Args:
        folder: The snapshot.
        name: Name of the file, its ``.npy`` left out.

    Raises:
        SnapshotError: If it is missing or not an array of numbers.
    """
    file = folder / f"{name}.npy"
    try:
        # A plain array over the map: numpy's own class makes every slice of it slower.
        return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise SnapshotError(f"{file} cannot be read ({error}): delete {folder} and build it again") from None
