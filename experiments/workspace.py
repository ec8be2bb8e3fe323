"""What every run of a study shares: the text, the folders, the machine."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from filelock import FileLock

from experiments.arms import ARMS, SAME_TOKENS, Arm
from experiments.data import Corpus, Windows, training_order
from experiments.errors import RunError
from experiments.neighborhood import PIECE, LazySource, Neighborhood
from experiments.revision import code_digest
from retrieval import Passages, Source

# Stores of single runs that a process keeps.
KEPT = 3
_PACKAGES = ("torch", "torch-geometric", "faiss-cpu", "lightning", "numpy", "tokenizers", "mnemograph")


class CorpusSpec(Protocol):
    """Anything that can load a corpus: :class:`experiments.data.CodeCorpus`, ``TextCorpus``, your own."""

    def load(self, progress: Callable[[str, float], None] | None = None) -> Corpus:
        """The corpus, from its cache where possible."""
        ...


@dataclass
class Workspace:
    """Where runs happen.

    Args:
        spec: Loads the corpus.
        out: Folder of the study's results, checkpoints and W&B files.
        cache: Folder for neighbour tables and stores, shared by studies.
        wandb: Log each run to Weights & Biases, and how.
        arms: The arms by name.
    """

    spec: CorpusSpec
    out: Path
    cache: Path
    wandb: Literal["off", "offline", "online"] = "off"
    arms: Mapping[str, Arm] = field(default_factory=lambda: ARMS)

    @cached_property
    def corpus(self) -> Corpus:
        """The text, loaded once per process."""
        return self.spec.load()

    @cached_property
    def versions(self) -> dict[str, str]:
        """Versions of what results depend on."""
        found = {}
        for name in _PACKAGES:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = "not installed"
        return found

    @property
    def revision(self) -> str:
        """Digest of the code that numbers depend on."""
        return code_digest()

    def source(self, arm: Arm, regime: str, windows: Windows, seed: int, stored: int) -> LazySource:
        """The store an arm may read: the first ``stored`` windows of its order, or the whole training split."""
        assert arm.source is not None
        if regime == SAME_TOKENS:
            order = training_order(len(windows), seed)[:stored]
            passages = windows.passages(order, self.corpus.vocab_size)
        else:
            passages = self._whole
        lazy = self._lazy(arm.source, passages)
        # Of the stores of one run's tokens only the latest stay in memory; the whole corpus' is used again and again.
        whole = self.__dict__.get("_whole")
        single = [key for key, kept in self._sources.items() if kept.passages is not whole]
        if regime == SAME_TOKENS:
            for key in single[:-KEPT]:
                del self._sources[key]
        return self._sources.setdefault(lazy.fingerprint, lazy)

    def _lazy(self, build: Callable[[Passages], Source], passages: Passages) -> LazySource:
        # Tables outlive the code that made them: other search code, other tables.
        code = code_digest(("retrieval", "experiments.data", "experiments.neighborhood"))
        text = f"{_named(build)} {code} {self.versions['faiss-cpu']} {passages.fingerprint}"
        fingerprint = hashlib.sha256(text.encode()).hexdigest()

        def built() -> Source:
            self.cache.mkdir(parents=True, exist_ok=True)
            # Two processes must not build the same large store at once: the machine's memory holds one.
            with FileLock(str(self.cache / f"{fingerprint[:24]}.lock")):
                return build(passages)

        return LazySource(passages, built, fingerprint)

    @cached_property
    def _whole(self) -> Passages:
        return self.corpus.train.passages(self.corpus.vocab_size)

    @cached_property
    def _sources(self) -> dict[str, LazySource]:
        return {}

    def neighborhood(
        self,
        source: Source,
        windows: Windows,
        order: Any,
        label: str,
        k: int,
        *,
        exclude: bool,
        every: int = 1,
    ) -> Neighborhood:
        """Neighbours of windows, in the shared cache; arguments are those of :class:`Neighborhood`."""
        # Which windows: a list that begins alike may share its tables, one that is spread otherwise may not.
        first = np.ascontiguousarray(order[:PIECE], dtype=np.int64).tobytes()
        about = (
            f"{source.fingerprint} {self.corpus.fingerprint} {label} {windows.length} {k} {exclude} {every}"
        )
        key = hashlib.sha256(about.encode() + first).hexdigest()[:24]
        return Neighborhood(
            self.cache / "neighbors" / key, source, windows, order, k, exclude=exclude, every=every
        )

    def __getstate__(self) -> dict[str, Any]:
        kept = ("spec", "out", "cache", "wandb", "arms")
        return {name: self.__dict__[name] for name in kept}


def _named(build: Any) -> str:
    """What a store is made with, as text that changes when it does."""
    if isinstance(build, functools.partial):
        return f"{_named(build.func)} {build.args!r} {sorted(build.keywords.items())!r}"
    name = f"{getattr(build, '__module__', '')}.{getattr(build, '__qualname__', '')}"
    if "<" in name or not hasattr(build, "__qualname__"):
        raise RunError(
            f"the source {build!r} has no name that tells it from another: give Arm(source=...) a class, or "
            "functools.partial of one"
        )
    return f"{name} {code_digest((build.__module__,))}"
