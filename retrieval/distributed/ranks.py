"""The memory of each rank on disk, all of them together as one.

A memory that differs from rank to rank cannot travel in a checkpoint: Lightning calls ``on_save_checkpoint`` on every
rank, but writes the dictionary of rank 0 alone, so that after a resume all ranks hold the memory of rank 0. Buffers are
no way out, since DDP overwrites those of all ranks with those of rank 0. So every rank writes a folder of its own::

    name = save_ranks("run/epoch-3.memory", lambda folder: memory.save(folder / "memory"))
    memory = open_ranks("run/epoch-3.memory", lambda folder: Memory.open(folder / "memory"), generation=name)

called on every rank (``on_save_checkpoint`` is such a place), one path for each checkpoint that is kept. ``name`` goes
into the checkpoint, so that it is never joined with the memory of another one.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from retrieval.distributed.group import Ranks, agreed
from retrieval.snapshot import (
    SnapshotError,
    check_files,
    checksum,
    describe_file,
    flush,
    read_manifest,
    replace_manifest,
)

__all__ = ["open_ranks", "save_ranks"]

Result = TypeVar("Result")

_ALL, _ONE = "memory of all ranks", "memory of one rank"
_VERSION = 1
_MANIFEST = "manifest.json"


def save_ranks(
    path: str | Path, write: Callable[[Path], object], *, group: dist.ProcessGroup | None = None
) -> str:
    """Write one folder per rank, ``rank-r-of-w``; all of them take the place of the earlier ones at once.

    They are written into a new generation, a folder in ``path``. Once every rank has flushed its files to the disk,
    rank 0 names that generation in ``manifest.json``, which is one rename, and removes the earlier one. Who fails or
    dies before leaves the earlier generation as it was; who dies after, the new one, which is whole by then. What an
    interrupted save has left is removed by the next. One job at a time may write to ``path``.

    Args:
        path: A folder on a file system that all ranks share.
        write: Puts this rank's files into the empty folder it is given; folders in it are fine.
        group: The ranks; see :class:`retrieval.distributed.group.Ranks`. All of them must call.

    Returns:
        The name of the generation.

    Raises:
        RankError: If another rank failed, died or did not come in time.
        SnapshotError: If ``path`` holds something else, or is not shared.
        Exception: Whatever ``write`` raised.
    """
    ranks, path = Ranks(group), Path(path)
    first = ranks.rank == 0
    name = ranks.together("save_ranks", lambda: {"name": _begin(path) if first else ""})[0]["name"]
    try:
        notes = ranks.together("save_ranks, writing", lambda: {"sha256": _write(path / name, ranks, write)})
    except BaseException:
        if first:  # a full disk gets its room back
            shutil.rmtree(path / name, ignore_errors=True)
        raise
    checksums = [note["sha256"] for note in notes]
    ranks.together("save_ranks, ending", lambda: _commit(path, name, checksums) if first else {})
    return name


def open_ranks(
    path: str | Path,
    read: Callable[[Path], Result],
    *,
    generation: str | None = None,
    verify: bool = True,
    group: dist.ProcessGroup | None = None,
) -> Result:
    """Read what this rank has saved with :func:`save_ranks`.

    Args:
        path: The folder.
        read: Called with this rank's folder.
        generation: What :func:`save_ranks` returned when the checkpoint was written; by default any.
        verify: Whether to compare checksums; lengths are always compared.
        group: The ranks; see :class:`retrieval.distributed.group.Ranks`. All of them must call.

    Returns:
        What ``read`` returned.

    Raises:
        RankError: If another rank failed, died or did not come in time.
        SnapshotError: If it was saved by another number of ranks, or is missing, damaged, of another generation or
            of a newer format.
        Exception: Whatever ``read`` raised.
    """
    ranks, path = Ranks(group), Path(path)
    results: list[Result] = []

    def check() -> dict[str, str]:
        return {"generation": _checked(path, ranks, generation, verify)}

    notes = ranks.together("open_ranks", check)
    agreed(notes, "generation")

    def load() -> dict[str, str]:
        results.append(read(path / notes[0]["generation"] / _folder(ranks)))
        return {}

    ranks.together("open_ranks, reading", load)
    return results[0]


def _folder(ranks: Ranks) -> str:
    return _name(ranks.rank, ranks.size)


def _name(rank: int, size: int) -> str:
    return f"rank-{rank}-of-{size}"


def _begin(path: Path) -> str:
    """Make room for a new generation; what an interrupted save has left is removed."""
    current = ""
    if (path / _MANIFEST).exists():
        current = read_manifest(path / _MANIFEST, _ALL, _VERSION)[1]["generation"]
    path.mkdir(parents=True, exist_ok=True)
    _remove_all_but(path, current)
    for left in path.glob(f".{_MANIFEST}.writing-*"):
        left.unlink(missing_ok=True)
    name = f"generation-{secrets.token_hex(8)}"
    (path / name).mkdir()
    return name


def _remove_all_but(path: Path, name: str) -> None:
    for other in path.glob("generation-*"):
        if other.name != name:
            shutil.rmtree(other, ignore_errors=True)


def _write(generation: Path, ranks: Ranks, write: Callable[[Path], object]) -> str:
    """Checksum of the manifest of what this rank has written, all of it flushed to the disk."""
    if not generation.is_dir():
        raise SnapshotError(
            f"rank {ranks.rank} does not see {generation}, which rank 0 has made: give the same path on every rank, on "
            "a file system that all of them share"
        )
    folder = generation / _folder(ranks)
    folder.mkdir()
    write(folder)
    files = {}
    for file in sorted(folder.rglob("*")):
        flush(file)
        if file.is_file():
            name = file.relative_to(folder).as_posix()
            files[name] = describe_file(file)
    flush(folder)
    manifest = generation / f"{folder.name}.json"
    replace_manifest(manifest, _ONE, _VERSION, files, {})
    return checksum(manifest)


def _commit(path: Path, name: str, checksums: Sequence[str]) -> dict[str, Any]:
    """Name the new generation in place of the earlier one, then remove that."""
    flush(path / name)
    files = {
        f"{name}/{_name(rank, len(checksums))}.json": {"sha256": sha256}
        for rank, sha256 in enumerate(checksums)
    }
    replace_manifest(path / _MANIFEST, _ALL, _VERSION, files, {"ranks": len(checksums), "generation": name})
    _remove_all_but(path, name)
    return {}


def _checked(path: Path, ranks: Ranks, generation: str | None, verify: bool) -> str:
    """Name of the generation, after checking that it is what was asked for and this rank's part is whole."""
    parts, about = read_manifest(path / _MANIFEST, _ALL, _VERSION)
    size, name = about["ranks"], about["generation"]
    if size != ranks.size:
        raise SnapshotError(
            f"{path} was saved by {size} ranks, this run has {ranks.size}: start it with {size}, or build the memory "
            "anew"
        )
    if generation not in (None, name):
        raise SnapshotError(
            f"{path} holds {name}, the checkpoint was saved with {generation}: give the checkpoint and the path that "
            "were saved together"
        )
    manifest = path / name / f"{_folder(ranks)}.json"
    if not manifest.is_file() or checksum(manifest) != parts[f"{name}/{manifest.name}"]["sha256"]:
        raise SnapshotError(f"{manifest} is missing or damaged: resume from an earlier checkpoint")
    files, _ = read_manifest(manifest, _ONE, _VERSION)
    folder = path / name / _folder(ranks)
    check_files(folder, files, verify=verify, advice="resume from an earlier checkpoint")
    return name
