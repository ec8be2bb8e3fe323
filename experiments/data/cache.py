"""Corpora on disk: one folder each, written beside and renamed, every file checksummed, nothing pickled."""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np

from experiments.data.corpus import Corpus, CorpusError, Split
from experiments.data.tokenizer import Tokenizer

FORMAT = "mnemograph corpus"
VERSION = 1


class DamagedCacheError(CorpusError):
    """A cached corpus that does not match its own checksums."""


def load(folder: Path) -> Corpus | None:
    """The corpus in `folder`, memory-mapped once every checksum agrees; ``None`` if there is none.

    Raises:
        DamagedCacheError: the folder is there and is not a whole, unchanged corpus of this format.
    """
    if not folder.exists():
        return None
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamagedCacheError(
            f"{folder} has no readable manifest.json; delete the folder to build it again"
        ) from error
    if not isinstance(manifest, dict) or (manifest.get("format"), manifest.get("version")) != (
        FORMAT,
        VERSION,
    ):
        raise DamagedCacheError(
            f"{folder} is not a corpus of format {VERSION}; delete the folder to build it again"
        )
    for name, expected in manifest["files"].items():
        path = folder / name
        if (
            not path.is_file()
            or path.stat().st_size != expected["bytes"]
            or digest(path) != expected["sha256"]
        ):
            raise DamagedCacheError(f"{path} is missing or was changed; delete {folder} to build it again")
    splits = {
        name: Split(name, _map(folder / f"{name}.tokens.npy"), np.load(folder / f"{name}.offsets.npy"))
        for name in manifest["splits"]
    }
    return Corpus(
        name=manifest["name"],
        fingerprint=manifest["fingerprint"],
        description=manifest["description"],
        vocab_size=manifest["vocab_size"],
        token_bytes=np.load(folder / "token_bytes.npy"),
        tokenizer=Tokenizer.from_json((folder / "tokenizer.json").read_text()),
        folder=folder,
        **splits,
    )


def load_or_warn(folder: Path) -> Corpus | None:
    """As :func:`load`, but a damaged folder gives a warning and ``None``: :func:`store` will replace it."""
    try:
        return load(folder)
    except DamagedCacheError as error:
        warnings.warn(f"building the corpus again: {error}", RuntimeWarning, stacklevel=3)
        return None


def store(corpus: Corpus, folder: Path) -> Corpus:
    """Write a corpus to `folder` and open it from there.

    The files are written to a folder beside it and renamed at the end, so a reader sees all or nothing. When
    another process was faster its copy, which holds the same data, is kept.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(corpus, beside)
        _move(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    stored = load(folder)
    if stored is None:
        raise CorpusError(f"{folder} vanished while it was written; run again, one process at a time")
    return stored


def write_json(path: Path, value: object) -> None:
    """Write a small JSON file beside and rename it."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(value, file, indent=1, sort_keys=True)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def digest(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(corpus: Corpus, folder: Path) -> None:
    if corpus.tokenizer is None:
        raise CorpusError(f"corpus {corpus.name!r} has no tokenizer, so it cannot be cached")
    for name, split in corpus.splits.items():
        np.save(folder / f"{name}.tokens.npy", split.tokens, allow_pickle=False)
        np.save(folder / f"{name}.offsets.npy", split.offsets, allow_pickle=False)
    np.save(folder / "token_bytes.npy", corpus.token_bytes, allow_pickle=False)
    (folder / "tokenizer.json").write_text(corpus.tokenizer.to_json())
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": digest(path)} for path in sorted(folder.iterdir())
    }
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "name": corpus.name,
        "fingerprint": corpus.fingerprint,
        "description": corpus.description,
        "vocab_size": corpus.vocab_size,
        "splits": list(corpus.splits),
        "files": files,
    }
    write_json(folder / "manifest.json", manifest)


def _move(source: Path, target: Path) -> None:
    """Rename `source` to `target`; a damaged `target` makes way, a whole one wins."""
    for _ in range(3):
        try:
            os.rename(source, target)
            return
        except OSError:
            if not target.exists():
                raise
        try:
            load(target)
            return
        except DamagedCacheError:
            aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-damaged-", dir=target.parent))
            try:
                os.rename(target, aside / "was")
            except FileNotFoundError:
                pass  # another process moved it first
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    raise CorpusError(f"{target} cannot be replaced; delete it and run again")


def _map(path: Path) -> np.ndarray:
    """A memory-mapped array without the memmap class, whose indexing is slower."""
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
