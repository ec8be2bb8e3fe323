"""The default corpus: Python source of the installed packages this library depends on."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import tokenizers

from experiments.data import cache as corpus_cache
from experiments.data.build import Documents, build, digest_of
from experiments.data.corpus import Corpus, CorpusError, Progress, cache_root

TRAIN_PACKAGES = ("torch", "sympy", "networkx", "torch_geometric")
HELDOUT_PACKAGES = ("lightning", "torchmetrics")
OURS = frozenset({"experiments", "gnn", "mann", "retrieval"})
BUILD_FILES = frozenset({"version.py", "_version.py", "__config__.py"})
"""Files that say how a package was built and so differ between builds of one version."""
GENERATED = frozenset({"generated", "_antlr", "__pycache__"})
"""Folders written by programs: parser tables and argument lists, partly at build time."""
SALT = "mnemograph code 1"
SHARES = (0.94, 0.97)
"""Where valid and test begin when the hash of a path is read as a number from 0 to 1."""


@dataclass(frozen=True)
class _File:
    label: str  # the path inside the package's folder, with forward slashes: the same on every machine
    path: Path
    recorded: str  # what the installer knows of its content, for finding a cached corpus without reading


class CodeCorpus:
    """Python source code of installed packages; a document is a file.

    The packages are located, never imported. Files that differ between builds of one version, generated
    files, very small and very large ones, and repeated ones (white space aside) are left out. A file belongs
    to train, valid or test by the hash of its path. ``heldout`` is whole packages that train has nothing of.

    Args:
        vocab_size: tokens to learn, 257 for raw bytes.
        cache: folder for the cache, ``$MNEMOGRAPH_CACHE`` or the user's cache folder when ``None``.
        packages: packages that train, valid and test are made of.
        heldout: packages only ``heldout`` is made of; may be empty.
        min_bytes: smaller files are left out.
        max_bytes: larger ones too: mostly tables, and one of them would fill a whole evaluation split.

    Raises:
        CorpusError: a package is not installed.
    """

    def __init__(
        self,
        vocab_size: int = 2048,
        cache: str | Path | None = None,
        *,
        packages: Sequence[str] = TRAIN_PACKAGES,
        heldout: Sequence[str] = HELDOUT_PACKAGES,
        min_bytes: int = 256,
        max_bytes: int = 300_000,
    ) -> None:
        both = set(packages) & set(heldout)
        if both:
            raise CorpusError(f"{sorted(both)} are both trained on and held out; name each package once")
        if OURS & {*packages, *heldout}:
            raise CorpusError(
                f"{sorted(OURS & {*packages, *heldout})} are this library's own code; leave them out"
            )
        self.vocab_size = vocab_size
        self.packages = tuple(packages)
        self.heldout = tuple(heldout)
        self.min_bytes = min_bytes
        self.max_bytes = max_bytes
        self._root = cache_root(cache)

    def load(self, progress: Progress | None = None) -> Corpus:
        """The corpus: from the cache when it is there and whole, else built (about 20 seconds) and cached."""
        files = {package: list(_files(package)) for package in (*self.packages, *self.heldout)}
        settings = {
            "salt": SALT,
            "vocab_size": self.vocab_size,
            "packages": list(self.packages),
            "heldout": list(self.heldout),
            "versions": {package: _version(package) for package in files},
            "min_bytes": self.min_bytes,
            "max_bytes": self.max_bytes,
            "tokenizers": tokenizers.__version__,
        }
        recorded = {
            package: [(file.label, file.recorded) for file in found] for package, found in files.items()
        }
        folder = self._root / f"code-{digest_of([settings, recorded])[:24]}"
        cached = corpus_cache.load_or_warn(folder)
        if cached is not None:
            return cached
        return corpus_cache.store(self._build(files, settings, progress), folder)

    def _build(self, files: dict[str, list[_File]], settings: dict, progress: Progress | None) -> Corpus:
        report = progress or (lambda stage, share: None)
        seen: set[bytes] = set()
        kept: dict[str, list[tuple[str, str]]] = {"train": [], "valid": [], "test": [], "heldout": []}
        digests: list[tuple[str, str]] = []
        left_out = {"size": 0, "repeated": 0, "undecodable": 0}
        # Packages that are trained on come first, so a file found in both kinds is no held-out document.
        for rank, package in enumerate(files):
            for file in files[package]:
                content = file.path.read_bytes()
                if not self.min_bytes <= len(content) <= self.max_bytes:
                    left_out["size"] += 1
                    continue
                essence = hashlib.sha256(b"".join(content.split())).digest()
                if essence in seen:
                    left_out["repeated"] += 1
                    continue
                try:
                    text = content.decode()
                except UnicodeDecodeError:
                    left_out["undecodable"] += 1
                    continue
                seen.add(essence)
                digests.append((file.label, hashlib.sha256(content).hexdigest()))
                kept["heldout" if package in self.heldout else _split_of(file.label)].append(
                    (file.label, text)
                )
            report("reading", (rank + 1) / len(files))
        if not self.heldout:
            del kept["heldout"]
        splits = [
            Documents(name, *zip(*sorted(pairs, key=lambda pair: _hash(pair[0])), strict=True))
            if pairs
            else Documents(name, (), ())
            for name, pairs in kept.items()
        ]
        description = {
            "source": "code",
            **settings,
            "files": digest_of(sorted(digests)),
            "left_out": left_out,
        }
        return build("code", splits, self.vocab_size, description, progress)


def _hash(label: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{SALT}:{label}".encode()).digest()[:8], "big")


def _split_of(label: str) -> str:
    share = _hash(label) / 2**64
    return "train" if share < SHARES[0] else "valid" if share < SHARES[1] else "test"


def _version(package: str) -> str:
    """The public version: a local part such as ``+cpu`` names a build, not a source."""
    return _distribution(package).version.partition("+")[0]


def _distribution(package: str) -> metadata.Distribution:
    try:
        return metadata.distribution(package)
    except metadata.PackageNotFoundError:
        names = metadata.packages_distributions().get(package)
        if names:
            return metadata.distribution(names[0])
    raise CorpusError(f"package {package!r} is not installed; run: pip install {package.replace('_', '-')}")


def _files(package: str) -> Iterator[_File]:
    """The package's source files in order of their paths, without importing it."""
    distribution = _distribution(package)
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise CorpusError(f"package {package!r} has no folder of source files; choose another package")
    folder = Path(next(iter(spec.submodule_search_locations)))
    listed = {
        file.as_posix(): file.hash.value
        for file in distribution.files or ()
        if file.parts[0] == package and file.suffix == ".py" and file.hash is not None
    }
    if not listed:  # an editable or system install has no list of its files
        for path in folder.rglob("*.py"):
            status = path.stat()
            listed[f"{package}/{path.relative_to(folder).as_posix()}"] = (
                f"{status.st_size}-{status.st_mtime_ns}"
            )
    for label in sorted(listed):
        parts = label.split("/")
        path = folder.parent / label
        if parts[-1] not in BUILD_FILES and not GENERATED.intersection(parts) and path.is_file():
            yield _File(label, path, listed[label])
