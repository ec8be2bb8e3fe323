"""Folders that are there whole or not at all, and say what they are.

A snapshot is written beside its place and takes it in one step, every file flushed to the disk first. ``manifest.json``
names the kind and version of the format and the length and checksum of each file, and carries a checksum of itself, so
a damaged, cut or foreign folder is refused by name instead of being searched.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from retrieval.exchange import exchange

__all__ = [
    "SnapshotError",
    "check_files",
    "checksum",
    "clear_leftovers",
    "describe_file",
    "flush",
    "make_folder",
    "open_snapshot",
    "read_manifest",
    "remove_snapshot",
    "replace_manifest",
    "writing_snapshot",
]

_MANIFEST = "manifest.json"
# Several threads of one process may write beside the same place.
_numbers = itertools.count()
# What the manifest's own checksum is of: everything, with nothing between these two.
_SEAL = '"sha256": "'


class SnapshotError(RuntimeError):
    """A folder is not the snapshot it should be; the message says why and what to do."""


@contextmanager
def writing_snapshot(path: str | Path, kind: str, version: int, about: Mapping[str, Any]) -> Iterator[Path]:
    """Folder to write files into; it becomes ``path`` when the block ends well and vanishes when it does not.

    Whoever is killed at any moment leaves the old snapshot or the new one. Where the system cannot exchange two folders
    in one step the old one stands aside for an instant, and :func:`open_snapshot` puts it back if that was the end.

    Nobody's files are deleted: what is replaced is an empty folder or a snapshot of the same kind with nothing else in
    it. A symbolic link stays, and what it points to is replaced.

    Args:
        path: Where the snapshot shall be.
        kind: What it is, for example ``"neighbor table"``.
        version: Version of that kind's format.
        about: Anything JSON-able to keep in the manifest; read when the block ends, so it may be filled inside.

    Raises:
        FileExistsError: If there is something else at ``path``; it stays.
    """
    path = Path(path).resolve()
    make_folder(path.parent)
    _recover(path)
    _check_ours(path, kind)
    clear_leftovers(path.parent, path.name)
    beside = path.with_name(f".{path.name}.writing-{_writer()}")
    beside.mkdir()
    try:
        yield beside
        files = {}
        for file in sorted(beside.iterdir()):
            files[file.name] = describe_file(file)
            flush(file)
        _write_manifest(beside / _MANIFEST, kind, version, files, about)
        flush(beside)
        _check_ours(path, kind)  # it may have come in the meantime
        if path.exists():
            _replace(path, beside)
        else:
            beside.rename(path)
        flush(path.parent)
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
    if not path.exists():
        _recover(path.resolve())
    files, about = read_manifest(path / _MANIFEST, kind, version)
    if any(not {"bytes", "sha256"} <= is_.keys() for is_ in files.values()):
        raise SnapshotError(_damaged(path / _MANIFEST))
    check_files(path, files, verify=verify, advice=f"delete {path} and build it again")
    return about


def check_files(folder: Path, files: Mapping[str, Mapping[str, Any]], *, verify: bool, advice: str) -> None:
    """Compare files with what a manifest says of them.

    Args:
        folder: Where they are.
        files: Their length and checksum, by name.
        verify: Whether to compare checksums; lengths are always compared.
        advice: What to do about one that differs.

    Raises:
        SnapshotError: If one is missing or differs.
    """
    for name, is_ in files.items():
        file = folder / name
        if not file.is_file():
            raise SnapshotError(f"{file} is missing: {advice}")
        if file.stat().st_size != is_["bytes"]:
            raise SnapshotError(f"{file} has {file.stat().st_size} bytes, not {is_['bytes']}: {advice}")
        if verify and checksum(file) != is_["sha256"]:
            raise SnapshotError(f"{file} is damaged (its checksum differs): {advice}")


def read_manifest(file: Path, kind: str, version: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Files and description that a manifest names, after checking that it is whole and of that kind.

    Args:
        file: The manifest; its folder is the snapshot.
        kind: What it must be of.
        version: Newest version of the format that the caller reads.

    Raises:
        SnapshotError: If there is none, it is damaged, of another kind or a newer format.
    """
    path = file.parent
    try:
        text = file.read_text(encoding="utf-8")
        found, newest, files, about = _parts(text)
        newer = newest > version
    except FileNotFoundError:
        what = f"{path} holds no {kind}" if path.exists() else f"there is no {kind} at {path}"
        raise SnapshotError(f"{what}: build it first") from None
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        NotADirectoryError,
        IsADirectoryError,
    ):
        raise SnapshotError(_damaged(file)) from None
    if found != kind:
        raise SnapshotError(f"{path} is a {found}, not a {kind}: give another path")
    if newer:
        raise SnapshotError(
            f"{path} has format {newest} of a {kind}, this version reads up to {version}: update mnemograph, or build "
            "it again"
        )
    if not _sealed(text):
        raise SnapshotError(_damaged(file))
    return files, about


def replace_manifest(
    file: Path, kind: str, version: int, files: Mapping[str, Any], about: Mapping[str, Any]
) -> None:
    """Write a manifest beside its place, flushed, and rename it into it: readers see the old one or the new one."""
    beside = file.with_name(f".{file.name}.writing-{_writer()}")
    try:
        _write_manifest(beside, kind, version, files, about)
        os.replace(beside, file)
        flush(file.parent)
    finally:
        beside.unlink(missing_ok=True)


def remove_snapshot(path: Path) -> None:
    """Take a snapshot away in one step, so that nobody opens half of it; who has it open keeps it."""
    gone = path.with_name(f".{path.name}.writing-{_writer()}")
    with suppress(OSError):  # some systems do not move what is in use: the next one to tidy up tries again
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def clear_leftovers(folder: Path, name: str = "*") -> None:
    """Delete what writers of this machine that no longer run left half written in a folder."""
    for path in folder.glob(f".{name if name == '*' else glob.escape(name)}.writing-*"):
        host, _, rest = path.name.rpartition(".writing-")[2].rpartition("@")[0].rpartition("-")
        if host == platform.node() and not _runs(rest):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those it lies in, so that they are still there after a power cut."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        flush(path.parent)


def describe_file(file: Path) -> dict[str, Any]:
    """What a manifest says of a file, as :func:`check_files` takes it."""
    return {"bytes": file.stat().st_size, "sha256": checksum(file)}


def checksum(file: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _write_manifest(
    file: Path, kind: str, version: int, files: Mapping[str, Any], about: Mapping[str, Any]
) -> None:
    manifest = {"kind": kind, "version": version, "files": dict(files), "about": dict(about), "sha256": ""}
    before, _, after = json.dumps(manifest, indent=1).rpartition(_SEAL)
    seal = hashlib.sha256((before + _SEAL + after).encode()).hexdigest()
    file.write_text(before + _SEAL + seal + after, encoding="utf-8")
    flush(file)


def _parts(text: str) -> tuple[Any, Any, dict[str, dict[str, Any]], dict[str, Any]]:
    """Kind, version, files and description in a manifest's text; an error of any kind if it is none."""
    manifest = json.loads(text)
    kind, version, files, about = (manifest[name] for name in ("kind", "version", "files", "about"))
    if not all(isinstance(entry, dict) for entry in (files, about, *files.values())):
        raise TypeError("not a manifest")
    return kind, version, files, about


def _damaged(file: Path) -> str:
    return f"{file} is damaged or foreign: delete {file.parent} and build it again"


def _check_ours(path: Path, kind: str) -> None:
    """Refuse to replace what is not a snapshot of that kind, or holds other files; a damaged one may go."""
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} is a file: give another path for the {kind}, or delete it first")
    if path == Path.cwd():
        raise FileExistsError(f"{path} is the folder you are in: give the name of a folder inside of it")
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return
    try:
        found, _, files, _ = _parts((path / _MANIFEST).read_text(encoding="utf-8"))
        known = {_MANIFEST, *files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        found, known = kind, set()
    other = [name for name in names if name not in known]
    if found != kind or other:
        what = f"something else ({other[0]})" if found == kind else f"another kind of snapshot ({found})"
        raise FileExistsError(f"{path} holds {what}: give another path for the {kind}, or delete it first")


def _sealed(text: str) -> bool:
    before, _, rest = text.rpartition(_SEAL)
    seal, after = rest[:64], rest[64:]
    return hashlib.sha256((before + _SEAL + after).encode()).hexdigest() == seal


def _replace(path: Path, beside: Path) -> None:
    if exchange(beside, path):  # what was there is now beside, and goes
        return
    # A folder cannot be renamed onto a full one: step the old one aside, readers keep their open files.
    old = path.with_name(f".{path.name}.stepped-aside")
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    beside.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _recover(path: Path) -> None:
    """Put back what a writer had stepped aside when it was killed; one that runs puts the new one there itself."""
    old = path.with_name(f".{path.name}.stepped-aside")
    for _ in range(20):
        if path.exists() or not old.exists():
            return
        time.sleep(0.01)
    try:
        old.rename(path)
    except OSError:
        if not path.exists():
            raise


def _writer() -> str:
    """Who writes: part of the name of what is half written."""
    return f"{platform.node()}-{os.getpid()}@{next(_numbers)}"


def _runs(process: str) -> bool:
    """Whether a process of this machine is there; where asking is not harmless, it is taken to be."""
    if os.name == "nt" or not process.isdecimal():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
