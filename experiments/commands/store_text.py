"""Stores of text: files as entries, and entries as text again."""

from __future__ import annotations

import difflib
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.data.build import SAMPLE_BYTES
from experiments.data.text import PACKED, SUFFIXES, _text
from experiments.data.tokenizer import Tokenizer
from experiments.errors import RunError
from retrieval import ContextEncoder, Datastore, Entries, Passages, SnapshotError
from retrieval.snapshot import open_snapshot, writing_snapshot

__all__ = ["StoredText", "TextEntries", "forget_text", "text_files"]

_KIND, _VERSION = "text of a datastore", 1
# Entries made at once.
ROWS = 1 << 15


def text_files(paths: Sequence[Path]) -> dict[str, Path]:
    """The text files of files and folders, by the names their documents will have.

    Args:
        paths: Files, and folders that are searched to any depth.

    Raises:
        RunError: If one does not exist or holds no text, or two have one name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise RunError(f"--text {path} does not exist: give text files, or folders of them")
        inside = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        if path.is_dir():
            inside = [
                file
                for file in inside
                if (file.with_suffix("") if file.suffix in PACKED else file).suffix in SUFFIXES
            ]
        if not inside:
            raise RunError(f"--text {path} has no files that end in {', '.join(SUFFIXES)}: give another")
        for file in inside:
            name = file.name if path.is_file() else file.relative_to(path).as_posix()
            if name in found:
                raise RunError(f"{found[name]} and {file} would both be called {name}: store them one by one")
            found[name] = file
    return found


class TextEntries:
    """The positions of some documents as entries.

    Args:
        passages: The documents' tokens.
        encoder: Makes the keys.
    """

    def __init__(self, passages: Passages, encoder: ContextEncoder) -> None:
        self.passages = passages
        self.encoder = encoder
        self._places = passages.entries()
        self._ages = self._places - passages.starts(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def batches(self) -> Iterator[Entries]:
        """All entries, a batch at a time."""
        for begin in range(0, len(self), ROWS):
            part = slice(begin, begin + ROWS)
            after = self.passages.tokens[self._places[part] + 1].astype(np.int32)
            documents = self.passages.labels[self._places[part]].astype(np.int64)
            yield Entries(self.encoder.keys(self._contexts(part)), after, documents, self._ages[part])

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """Keys of some entries, evenly spread, and what one would ask for with their contexts."""
        contexts = self._contexts(slice(None, None, max(1, -(-len(self) // n))))
        return torch.from_numpy(self.encoder.keys(contexts)), torch.from_numpy(self.encoder.sketch(contexts))

    def _contexts(self, part: slice) -> np.ndarray:
        places, ages, tokens = self._places[part], self._ages[part], self.passages.tokens
        columns = [
            np.where(ages >= back, tokens[np.maximum(places - back, 0)].astype(np.int64), -1)
            for back in range(self.encoder.depth)
        ]
        return np.stack(columns, axis=1)


@dataclass
class StoredText:
    """What turns text into keys and entries into text; kept in the folder of the store.

    Args:
        tokenizer: Text to tokens and back.
        encoder: Tokens to keys.
        names: Of the documents by their labels; ``None`` where one was deleted.
    """

    tokenizer: Tokenizer
    encoder: ContextEncoder
    names: list[str | None]

    @classmethod
    def learn(cls, files: dict[str, Path], vocab_size: int, depth: int) -> tuple[StoredText, TextEntries]:
        """Learn tokens and an encoder from files; also their entries.

        Args:
            files: By name.
            vocab_size: Tokens to learn.
            depth: Tokens of context a key is made of.
        """
        sample, size = [], 0
        for file in files.values():
            if size < SAMPLE_BYTES:
                sample.append(_text(file, file.read_bytes())[:SAMPLE_BYTES])
                size += len(sample[-1])
        tokenizer = Tokenizer.train(sample, vocab_size)
        names, passages = _passages(files, tokenizer, 0)
        encoder = ContextEncoder(passages, depth=depth)
        return cls(tokenizer, encoder, list(names)), TextEntries(passages, encoder)

    @classmethod
    def open(cls, path: Path, about: dict[str, object]) -> StoredText:
        """Of a store.

        Args:
            path: The store.
            about: Its :meth:`retrieval.Datastore.info`.

        Raises:
            RunError: If it has none, or that of another store.
            SnapshotError: If it is damaged.
        """
        if not (path / "text").exists():
            raise RunError(
                f"{path} was built from arrays, not from text: give --keys or --queries, from what made its keys"
            )
        said = open_snapshot(path / "text", _KIND, _VERSION)
        if said["encoder"] != about["encoder"]:
            raise RunError(
                f"the encoder beside {path} is not what made its keys: build the store again with --text"
            )
        tokenizer = Tokenizer.from_json((path / "text" / "tokenizer.json").read_text(encoding="utf-8"))
        names = json.loads((path / "text" / "names.json").read_text(encoding="utf-8"))
        encoder = ContextEncoder.open(path / "encoder")
        if encoder.fingerprint != about["encoder"]:
            raise SnapshotError(f"{path / 'encoder'} is of another store: build {path} again with --text")
        return cls(tokenizer, encoder, names)

    @property
    def tokens_fingerprint(self) -> str:
        """Fingerprint of the tokenizer."""
        return hashlib.sha256(self.tokenizer.to_json().encode()).hexdigest()

    def save(self, path: Path, *, encoder: bool = False) -> None:
        """Write it into a store's folder.

        Args:
            path: The store.
            encoder: Whether the encoder is new too.
        """
        if encoder:
            self.encoder.save(path / "encoder")
        about = {"encoder": self.encoder.fingerprint, "tokenizer": self.tokens_fingerprint}
        with writing_snapshot(path / "text", _KIND, _VERSION, about) as folder:
            (folder / "tokenizer.json").write_text(self.tokenizer.to_json(), encoding="utf-8")
            (folder / "names.json").write_text(json.dumps(self.names), encoding="utf-8")

    def more(self, files: dict[str, Path], path: Path) -> TextEntries:
        """Entries of further files, whose names are taken in.

        Args:
            files: By name.
            path: The store, for errors.

        Raises:
            RunError: If a document has that name already.
        """
        for name in files:
            if name in self.names:
                raise RunError(
                    f"{path} has a document {name} already: take it away first "
                    f"(mnemograph store delete {path} --documents {name})"
                )
        names, passages = _passages(files, self.tokenizer, len(self.names))
        self.names += names
        return TextEntries(passages, self.encoder)

    def query(self, text: str) -> Tensor:
        """The key to look for: what would follow this text? ``[1, d]``."""
        tokens = self.tokenizer.encode([text])[0].astype(np.int64)[::-1][: self.encoder.depth]
        if not len(tokens):
            raise RunError("--text is empty: give some text, such as 'def main('")
        context = np.full((1, self.encoder.depth), -1, np.int64)
        context[0, : len(tokens)] = tokens
        return torch.from_numpy(self.encoder.sketch(context))

    def name(self, label: int) -> str:
        """What a document is called."""
        name = self.names[label] if label < len(self.names) else None
        return f"document {label}" if name is None else name

    def label(self, word: str) -> str:
        """What was typed for a document, its name as its number.

        Raises:
            RunError: If it is neither a name nor a number nor a file of numbers.
        """
        if word in self.names:
            return str(self.names.index(word))
        if word.lstrip("-").isdigit() or word.endswith((".npy", ".safetensors")):
            return word
        names = [name for name in self.names if name is not None]
        close = difflib.get_close_matches(word, names, n=1) or [name for name in names if name.endswith(word)]
        hint = f"did you mean {close[0]}?" if close else f"it has {len(names):,}, such as {names[0]}"
        raise RunError(f"the store has no document {word}: {hint}" if names else "the store has no documents")

    def around(self, store: Datastore, id_: int, before: int, after: int) -> tuple[str, str]:
        """The text that leads to an entry, and what follows.

        Args:
            store: The store.
            id_: The entry.
            before: Tokens before.
            after: Tokens after.
        """
        # The value of an entry is the token behind it, and the entries of a document have ids in a row.
        document, position = (
            int(column(torch.tensor([id_]))) for column in (store.documents, store.positions)
        )
        left = _values(store, range(id_ - 1, id_ - 1 - min(before, position), -1), document)
        right = _values(store, range(id_, id_ + after), document)
        return self.tokenizer.decode(np.array(left[::-1], int)), self.tokenizer.decode(np.array(right, int))


def forget_text(path: Path) -> None:
    """Take away what an earlier store of text has left beside a new one of arrays."""
    for name in ("text", "encoder"):
        shutil.rmtree(path / name, ignore_errors=True)


def _passages(files: dict[str, Path], tokenizer: Tokenizer, first: int) -> tuple[list[str], Passages]:
    """Names and tokens of the files that hold any text, their labels from ``first`` on."""
    names, parts = [], []
    for name, file in files.items():
        text = _text(file, file.read_bytes())
        if text.strip():
            names.append(name)
            parts += [np.zeros(1, np.uint16), tokenizer.encode([text])[0]]
    if not names:
        raise RunError(f"{next(iter(files.values()))} holds no text: give a file that does")
    lengths = [1 + len(part) for part in parts[1::2]]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels = np.arange(first, first + len(names))
    return names, Passages(np.concatenate(parts), offsets, labels, vocab_size=tokenizer.vocab_size)


def _values(store: Datastore, ids: range, document: int) -> list[int]:
    """Values of entries in a row, up to the first that is deleted or of another document."""
    found = []
    for id_ in ids:
        try:
            at = torch.tensor([id_])
            if int(store.documents(at)) != document:
                break
            found.append(int(store.values(at)))
        except KeyError:
            break
    return found
