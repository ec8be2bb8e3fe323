"""The manifest of a store of a corpus: the one file that says what the store is now."""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrieval.datastore.derived import DerivedIndex
from retrieval.datastore.entries import Layout
from retrieval.datastore.generation import Generation, Settings, bury
from retrieval.datastore.lock import WriterLock
from retrieval.datastore.segment import Part, Segment, reading
from retrieval.runtime import faiss
from retrieval.snapshot import (
    SnapshotError,
    clear_leftovers,
    describe_file,
    flush,
    read_manifest,
    remove_snapshot,
    replace_manifest,
)

__all__ = ["changing", "commit", "engine", "load", "replaced"]

_KIND, _VERSION = "datastore", 1
_MANIFEST = "manifest.json"
# Everything a store consists of, and what its writers keep beside it.
_OURS = re.compile(r"seg-\d{6,}|index-\d{6,}-\d{6,}|deleted-\d{6,}\.npy")
_BESIDE = re.compile(r"writer\.(lock|json)|\..*\.writing-.*")
_SETTINGS = ("metric", "factory", "encoder", "tokenizer", "rows", "identity", "nprobe", "ef", "k_factor")
# What the system says when nothing more fits.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# How often a reader begins anew because a writer swept away what it was opening.
_TRIES = 20


def engine() -> dict[str, str]:
    """Versions of what writes and reads a store."""
    return {"faiss": faiss.__version__, "torch": torch.__version__, "numpy": np.__version__}


def commit(generation: Generation) -> Generation:
    """Write down that this is what a store is now; until the last step it is what it was."""
    path, files = generation.path, {}
    for part in generation.parts:
        for name in part.folders:
            files[f"{name}/{_MANIFEST}"] = describe_file(path / name / _MANIFEST)
    if len(generation.deleted):
        name = _tombstones(generation)
        content = io.BytesIO()  # numpy's own writing to a file may lose its end on a full disk and not say so
        np.save(content, generation.deleted)
        (path / name).write_bytes(content.getvalue())
        flush(path / name)
        files[name] = describe_file(path / name)
    settings = asdict(generation.settings)
    about = settings.pop("layout") | {
        **settings,
        "generation": generation.number,
        "entries": generation.live,
        "deleted": len(generation.deleted),
        "next_id": generation.next_id,
        "next_segment": generation.next_segment,
        "engine": engine(),
        "parts": [part.describe() for part in generation.parts],
    }
    flush(path)
    replace_manifest(path / _MANIFEST, _KIND, _VERSION, files, about)
    return generation


def load(path: Path, *, verify: bool, known: Generation | None = None) -> Generation:
    """What a store is now.

    Args:
        path: Folder of the store.
        verify: Whether to compare checksums; lengths are always compared.
        known: An earlier generation, whose segments are not opened again.

    Raises:
        SnapshotError: If there is no store, or it is damaged, foreign, of a newer format, or another than it was.
    """
    for left in reversed(range(_TRIES)):
        files, about = read_manifest(path / _MANIFEST, _KIND, _VERSION)
        try:
            with reading(path / _MANIFEST):
                return _opened(path, files, about, verify, known)
        except (SnapshotError, FileNotFoundError):
            if not left or read_manifest(path / _MANIFEST, _KIND, _VERSION)[1] == about:
                raise
    raise AssertionError


def replaced(path: Path) -> tuple[int, int]:
    """Numbers with which the first generation and the first segment of a store begin that replaces what is there.

    Raises:
        FileExistsError: If there is something else than a store.
        SnapshotError: If the store is of a newer format, or its manifest is damaged.
    """
    if (path / _MANIFEST).exists():
        _, about = read_manifest(path / _MANIFEST, _KIND, _VERSION)
        with reading(path / _MANIFEST):
            return about["generation"] + 1, about["next_segment"]
    foreign = path.is_dir() and [
        entry.name
        for entry in path.iterdir()
        if not (_OURS.fullmatch(entry.name) or _BESIDE.fullmatch(entry.name))
    ]
    if foreign or (path.exists() and not path.is_dir()):
        raise FileExistsError(
            f"{path} holds something else ({(foreign or ['a file'])[0]}): give another path"
        )
    return 0, 1


@contextmanager
def changing(lock: WriterLock, *, build: bool = False) -> Iterator[None]:
    """Hold the right to write to a store for a block, and leave nothing behind that no generation needs.

    Args:
        lock: Of the store.
        build: Whether there need not be a store yet; then what an earlier attempt has left goes.

    Raises:
        StoreBusyError: If another process has it.
        SnapshotError: If there is no store any more.
        OSError: If the disk is full; says that the store is as it was.
    """
    if not build:  # a lock would make the folder of a store anew that was moved or deleted
        read_manifest(lock.folder / _MANIFEST, _KIND, _VERSION)
    try:
        with lock.held():
            _sweep(lock.folder, build)
            try:
                yield
            finally:
                _sweep(lock.folder, build)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        kept = f"{os.strerror(error.errno)}: nothing was changed, and what was at {lock.folder} is as it was before"
        raise OSError(error.errno, f"{kept}. Make room and try again", error.filename) from error


def _sweep(path: Path, build: bool) -> None:
    """Delete older generations and what a writer that was killed has left; files that are not a store's stay."""
    clear_leftovers(path)
    kept: set[str] = set()
    if (path / _MANIFEST).exists() or not build:
        files, _ = read_manifest(path / _MANIFEST, _KIND, _VERSION)
        kept = {name.removesuffix(f"/{_MANIFEST}") for name in files}
    for entry in path.iterdir():
        if _OURS.fullmatch(entry.name) and entry.name not in kept:
            if entry.is_dir():
                remove_snapshot(entry)
            else:
                entry.unlink(missing_ok=True)


def _opened(
    path: Path, files: Mapping[str, Any], about: Mapping[str, Any], verify: bool, known: Generation | None
) -> Generation:
    if known is not None and known.settings.identity != about["identity"]:
        raise SnapshotError(f"{path} was replaced by another store meanwhile: open it again")
    deleted = np.zeros(0, np.int64)
    for name, is_ in files.items():
        file = path / name
        if not file.is_file():
            raise SnapshotError(f"{file} is missing: take it from a copy, or build {path} again")
        # Of manifests and tombstones, which are small, the content is always compared.
        if describe_file(file) != is_:
            raise SnapshotError(
                f"{file} is damaged or of another store: take it from a copy, or build {path} again"
            )
        if not name.endswith(_MANIFEST):
            deleted = np.load(file, allow_pickle=False)
    old = {part.segment.name: part for part in known.parts} if known and not verify else {}
    parts = []
    for entry in about["parts"]:
        same = old.get(entry["segment"])
        segment = same.segment if same else Segment(path / entry["segment"], verify=verify)
        index = None
        if entry["index"] is not None:
            index = same.index if same else None
            if index is None or index.path.name != entry["index"]:
                index = DerivedIndex(path / entry["index"])
            if verify:
                index.verify()
        parts.append(Part(segment, None, index))
    return Generation(
        path=path,
        number=about["generation"],
        settings=Settings(
            layout=Layout(about["d"], about["dtype"], about["d_value"]),
            **{name: about[name] for name in _SETTINGS},
        ),
        parts=tuple(bury(parts, deleted)),
        deleted=deleted,
        next_id=about["next_id"],
        next_segment=about["next_segment"],
    )


def _tombstones(generation: Generation) -> str:
    return f"deleted-{generation.number:06d}.npy"
