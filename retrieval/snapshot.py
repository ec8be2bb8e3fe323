"""Folders that are there whole or not at all, and say what they are.

A snapshot is written beside its place and renamed into it, every file flushed to the disk first. ``manifest.json``
names the kind and version of the format and the length and checksum of each file, so a damaged, cut or foreign
folder is refused by name instead of being searched.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["SnapshotError", "open_snapshot", "writing_snapshot"]

_MANIFEST = "manifest.json"


class SnapshotError(RuntimeError):
    """A folder is not the snapshot it should be; the message says why and what to do."""


@contextmanager
def writing_snapshot(path: str | Path, kind: str, version: int, about: Mapping[str, Any]) -> Iterator[Path]:
    """Folder to write files into; it becomes ``path`` when the block ends well and vanishes when it does not.

    Args:
        path: Where the snapshot shall be. What is there is replaced.
        kind: What it is, for example ``"neighbor table"``.
        version: Version of that kind's format.
        about: Anything JSON-able to keep in the manifest; read when the block ends, so it may be filled inside.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.writing-{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
        files = {}
        for file in sorted(beside.iterdir()):
            files[file.name] = {"bytes": file.stat().st_size, "sha256": _checksum(file)}
            _flush(file)
        manifest = {"kind": kind, "version": version, "files": files, "about": dict(about)}
        (beside / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _flush(beside / _MANIFEST)
        _flush(beside)
        if path.exists():
            # A folder cannot be renamed onto a full one: step the old one aside, readers keep their open files.
            old = path.with_name(f".{path.name}.old-{os.getpid()}")
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
            beside.rename(path)
            shutil.rmtree(old)
        else:
            beside.rename(path)
        _flush(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def open_snapshot(path: str | Path, kind: str, version: int, *, verify: bool = True) -> dict[str, Any]:
    """What a snapshot says about itself, after checking that it is whole.

    Args:
        path: The snapshot's folder.
        kind: What it must be.
        version: Newest version of the format that the caller reads.
        verify: Whether to compare checksums; lengths are always compared.

    Raises:
        SnapshotError: If there is none, it is of another kind or a newer format, or a file is missing or damaged.
    """
    path = Path(path)
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        found, newest, files, about = (manifest[name] for name in ("kind", "version", "files", "about"))
    except FileNotFoundError:
        what = f"{path} holds no {kind}" if path.exists() else f"there is no {kind} at {path}"
        raise SnapshotError(f"{what}: build it first") from None
    except (ValueError, KeyError, TypeError, NotADirectoryError):
        raise SnapshotError(
            f"{path / _MANIFEST} is damaged or foreign: delete {path} and build it again"
        ) from None
    if found != kind:
        raise SnapshotError(f"{path} is a {found}, not a {kind}: give another path")
    if newest > version:
        raise SnapshotError(
            f"{path} has format {newest} of a {kind}, this version reads up to {version}: update mnemograph, or build "
            "it again"
        )
    for name, is_ in files.items():
        file = path / name
        if not file.is_file():
            raise SnapshotError(f"{file} is missing: delete {path} and build it again")
        if file.stat().st_size != is_["bytes"]:
            raise SnapshotError(
                f"{file} has {file.stat().st_size} bytes, not {is_['bytes']}: delete {path} and build it again"
            )
        if verify and _checksum(file) != is_["sha256"]:
            raise SnapshotError(f"{file} is damaged (its checksum differs): delete {path} and build it again")
    return about


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)
