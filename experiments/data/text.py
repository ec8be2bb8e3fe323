"""A corpus from your own text: one file or a folder of files."""

import gzip
import hashlib
import lzma
import re
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from experiments.data import cache as corpus_cache
from experiments.data.build import Documents, build, digest_of
from experiments.data.corpus import Corpus, CorpusError, Progress, cache_root

SUFFIXES = (".txt", ".tokens", ".raw", ".md", ".rst", ".py")
PACKED = {".xz": lzma.decompress, ".gz": gzip.decompress}
SPLIT_WORDS = {
    "train": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
}
TITLE = re.compile(r"(?:\A|(?<=\n))(?: ?\n)? = [^=\n]+ = ?\n(?= ?\n)")
"""A top-level heading as in WikiText, with the blank line before it; deeper ones repeat the equals sign."""
EVALUATION_SHARE = 0.05
LARGEST_SHARE = (
    0.05  # a longer document is cut, or it could not be kept out of one split without emptying another
)
PIECES = 100
LEAST_BYTES = 1_000
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
LEAST_PIECE = 200
SALT = "mnemograph text 1"


@dataclass(frozen=True)
class _Document:
    label: str
    text: str
    split: str | None  # what the file's name says


class TextCorpus:
    """Text files as a corpus.

    Files may be ``.txt``, ``.tokens``, ``.raw``, ``.md``, ``.rst`` or ``.py`` in UTF-8, or any of these
    packed as ``.xz`` or ``.gz``. Files that differ only by the words train, valid (validation, val, dev) and
    test, as ``wiki.train.tokens`` and ``wiki.test.tokens``, are the splits; a missing one is drawn from
    train, and other files beside them are not read. Else splits are drawn by a hash of each document's label.

    A document is a file, or an article under a heading `` = Title = `` as in WikiText. One that holds over a
    twentieth of the text to be split is cut into pieces at blank lines, so a single long file has splits too.

    Args:
        path: a file or a folder (searched to any depth).
        vocab_size: tokens to learn, 257 for raw bytes.
        cache: folder for the cache, ``$MNEMOGRAPH_CACHE`` or the user's cache folder when ``None``.
        pattern: in a folder, only files whose name matches, such as ``"*.tokens.xz"``.
        name: a short name for tables; the file's or folder's own by default.

    Raises:
        CorpusError: nothing is there, or it cannot be read as text, or is too little to split.
    """

    def __init__(
        self,
        path: str | Path,
        vocab_size: int = 2048,
        cache: str | Path | None = None,
        *,
        pattern: str = "*",
        name: str | None = None,
    ) -> None:
        self.path = Path(path).expanduser()
        self.vocab_size = vocab_size
        self.pattern = pattern
        self.name = name or self.path.name.split(".")[0] or "text"
        self._root = cache_root(cache)

    def load(self, progress: Progress | None = None) -> Corpus:
        """The corpus: from the cache when the same files were read before, else built and cached."""
        files = self._files()
        contents = {label: path.read_bytes() for label, (path, _) in files.items()}
        settings = {
            "salt": SALT,
            "vocab_size": self.vocab_size,
            "files": {label: hashlib.sha256(content).hexdigest() for label, content in contents.items()},
            "tokenizers": tokenizers.__version__,
        }
        folder = self._root / f"text-{digest_of([self.name, settings])[:24]}"
        cached = corpus_cache.load_or_warn(folder)
        if cached is not None:
            return cached
        documents = [
            document
            for label, content in contents.items()
            for document in _articles(label, _text(files[label][0], content), files[label][1])
        ]
        splits = _splits(documents, self.path)
        description = {"source": "text", "path": self.path.name, **settings}
        corpus = build(self.name, splits, self.vocab_size, description, progress)
        return corpus_cache.store(corpus, folder)

    def _files(self) -> dict[str, tuple[Path, str | None]]:
        """The files to read by label, each with the split its name gives it."""
        if not self.path.exists():
            raise CorpusError(f"{self.path} does not exist; give the path of a text file or a folder of them")
        if self.path.is_file():
            return {self.path.name: (self.path, None)}
        found = {
            path.relative_to(self.path).as_posix(): path
            for path in sorted(self.path.rglob(self.pattern))
            if path.is_file() and _is_text(path)
        }
        if not found:
            raise CorpusError(
                f"{self.path} has no files matching {self.pattern!r} that end in {', '.join(SUFFIXES)}"
                f" (or these with {' or '.join(PACKED)}); give another folder or pattern"
            )
        families: dict[str, dict[str, str]] = defaultdict(dict)
        for label in found:
            family, split = _family(label)
            if split is not None:
                families[family][split] = label
        sets = [members for members in families.values() if "train" in members and len(members) > 1]
        if len(sets) > 1:
            names = ", ".join(sorted(members["train"] for members in sets))
            raise CorpusError(f"{self.path} has several sets of splits ({names}); choose one by pattern=")
        if sets:
            return {label: (found[label], split) for split, label in sets[0].items()}
        return {label: (path, None) for label, path in found.items()}


def _is_text(path: Path) -> bool:
    name = path.with_suffix("") if path.suffix in PACKED else path
    return name.suffix in SUFFIXES


def _family(label: str) -> tuple[str, str | None]:
    """The label with the word for the split taken out, and that split."""
    head, _, name = label.rpartition("/")
    if name.endswith(".py"):
        return label, None  # test.py beside train.py is a program
    words = re.split(r"([._-])", name)
    for place, word in enumerate(words):
        if word.lower() in SPLIT_WORDS:
            rest = "".join([*words[:place], "*", *words[place + 1 :]])
            return f"{head}/{rest}", SPLIT_WORDS[word.lower()]
    return label, None


def _text(path: Path, content: bytes) -> str:
    try:
        return PACKED.get(path.suffix, bytes)(content).decode()
    except UnicodeDecodeError as error:
        # Text in UTF-16 holds zero bytes too, and begins with its mark.
        if b"\0" in content and path.suffix not in PACKED and not content.startswith(UTF16_MARKS):
            raise CorpusError(
                f"{path} looks binary, for it holds zero bytes; give a text file, or a folder of them"
            ) from error
        encoding = "utf-16" if content.startswith(UTF16_MARKS) else "latin1"
        raise CorpusError(
            f"{path} is not UTF-8 text (byte {error.start} is {content[error.start : error.start + 1]!r});"
            f" convert it: iconv -f {encoding} -t utf-8 {path.name} > {path.stem}-utf8{path.suffix}"
            if path.suffix not in PACKED
            else f"{path} does not hold UTF-8 text; unpack and convert it with iconv"
        ) from error
    except (lzma.LZMAError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorpusError(
            f"{path} cannot be unpacked ({error}); fetch it again or unpack it by hand"
        ) from error


def _articles(label: str, text: str, split: str | None) -> Iterator[_Document]:
    """The articles of a file with WikiText headings, or the file as it is."""
    starts = [match.start() for match in TITLE.finditer(text)]
    if len(starts) < 2 or Path(label).name.split(".", 1)[-1].startswith(("md", "rst", "py")):
        if text.strip():
            yield _Document(label, text, split)
        return
    starts[0] = 0  # what stands before the first title goes with it, so no byte is lost
    for rank, (start, end) in enumerate(zip(starts, [*starts[1:], len(text)], strict=True)):
        yield _Document(f"{label}#{rank}", text[start:end], split)


def _splits(documents: list[_Document], path: Path) -> list[Documents]:
    """Named splits as they are; a missing one is drawn from the other documents."""
    splits = {name: [d for d in documents if d.split == name] for name in ("train", "valid", "test")}
    missing = [name for name in ("test", "valid") if not splits[name]]
    if missing:
        pool = [document for document in documents if document.split in (None, "train")]
        total = sum(len(document.text.encode()) for document in pool)
        if total < LEAST_BYTES:
            raise CorpusError(
                f"{path} holds {total} bytes of text, too little to split into train, valid and test;"
                f" give at least {LEAST_BYTES}"
            )
        # Keyed by text: what is there twice must not be in two splits.
        pieces = {piece.text: piece for document in pool for piece in _pieces(document, total)}
        remaining = sorted(pieces.values(), key=lambda piece: _hash(piece.label))
        if len(remaining) < 3:
            raise CorpusError(
                f"{path} gives {len(remaining)} different documents, and train, valid and test need one each;"
                " give more text"
            )
        for name in missing:
            size = 0
            while size < EVALUATION_SHARE * total and len(remaining) > 2:
                splits[name].append(remaining.pop())
                size += len(splits[name][-1].text.encode())
            if not splits[name]:
                splits[name].append(remaining.pop())
        splits["train"] = remaining
    return [_ordered(name, members) for name, members in splits.items()]


def _pieces(document: _Document, total: int) -> Iterator[_Document]:
    """The document, or pieces of about a hundredth of all text when it holds too much of it."""
    text = document.text
    if len(text.encode()) <= LARGEST_SHARE * total:
        yield document
        return
    size = max(LEAST_PIECE, total // PIECES)
    start = 0
    while start < len(text):
        end = start + size
        for boundary in ("\n\n", "\n"):
            found = text.find(boundary, end, end + size)
            if found >= 0:
                end = found + len(boundary)
                break
        if len(text) - end < size // 2:
            end = len(text)
        yield _Document(f"{document.label}@{start}", text[start:end], document.split)
        start = end


def _ordered(split: str, documents: list[_Document]) -> Documents:
    """Documents in an order that has nothing to do with their names, as samples from the front need it."""
    ordered = sorted(documents, key=lambda document: _hash(document.label))
    return Documents(split, [d.label for d in ordered], [d.text for d in ordered])


def _hash(label: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{SALT}:{label}".encode()).digest()[:8], "big")
