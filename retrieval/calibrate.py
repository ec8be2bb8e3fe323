"""Which index is the fastest that finds enough, measured on this machine and on these keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from retrieval.audit import check_answerable
from retrieval.audit import recall as share_found
from retrieval.exact import Metric
from retrieval.index import Index

__all__ = ["Calibration", "Trial", "calibrate"]

# Lists and candidates are tried in doubling numbers.
_NPROBE = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_EF = (16, 32, 64, 128, 256, 512)
# Timed so often, and the median taken.
_REPEATS = 5
# Looking at twice as much has to find at least so much more of the neighbours.
_GAIN = 0.005
_QUERIES = 256


@dataclass(frozen=True)
class Trial:
    """One index with one setting.

    Args:
        factory: FAISS factory string.
        nprobe: Inverted lists visited.
        ef: Candidates kept in a graph.
        recall: Share of the true ``k`` nearest that it found, by score.
        seconds_per_query: Median time of a batch over its queries.
        flops_per_query: Operations of a query.
        bytes_per_query: Bytes moved for a query.
        build_seconds: Time of training and adding.
    """

    factory: str
    nprobe: int
    ef: int
    recall: float
    seconds_per_query: float
    flops_per_query: float
    bytes_per_query: float
    build_seconds: float


@dataclass(frozen=True)
class Calibration:
    """What was measured, and what follows.

    Args:
        n: Stored vectors.
        d: Their dimension.
        k: Neighbours wanted.
        batch: Queries asked at once.
        target: Recall wanted.
        metric: ``"ip"`` or ``"l2"``.
        trials: All that was measured.
        chosen: The fastest that reaches the target.
        skipped: Kinds that were not measured, and why.
    """

    n: int
    d: int
    k: int
    batch: int
    target: float
    metric: Metric
    trials: Sequence[Trial]
    chosen: Trial
    skipped: Sequence[str] = field(default=())

    def index(self) -> Index:
        """An empty index of the kind that was chosen."""
        return Index(self.chosen.factory, self.metric, nprobe=self.chosen.nprobe, ef=self.chosen.ef)

    @property
    def why(self) -> str:
        """The choice in a sentence."""
        exact = next(trial for trial in self.trials if trial.factory == "Flat")
        best = self.chosen
        if best is exact:
            return (
                f"Flat: nothing faster finds {self.target:.0%} of the {self.k} nearest of {self.n:,} vectors of "
                f"{self.d} dimensions, {self.batch} queries at a time"
            )
        times = exact.seconds_per_query / best.seconds_per_query
        pays = best.build_seconds / self._saved(exact)
        return (
            f"{best.factory} with {_setting(best)}: {times:.1f} times as fast as exact search, with "
            f"{best.recall:.1%} of the {self.k} nearest (wanted: {self.target:.0%}); building takes "
            f"{best.build_seconds:.1f} s, as long as {pays:,.0f} queries save"
        )

    def _saved(self, exact: Trial) -> float:
        return max(exact.seconds_per_query - self.chosen.seconds_per_query, 1e-12)

    def __str__(self) -> str:
        rows = [
            f"{'index':<28} {'setting':<12} {'recall':>7} {'us/query':>10} {'kFLOP':>9} {'kB':>9} {'build s':>8}"
        ]
        for trial in self.trials:
            mark = "  <- chosen" if trial is self.chosen else ""
            rows.append(
                f"{trial.factory:<28} {_setting(trial):<12} {trial.recall:>7.3f} "
                f"{1e6 * trial.seconds_per_query:>10.1f} {trial.flops_per_query / 1e3:>9.0f} "
                f"{trial.bytes_per_query / 1e3:>9.0f} {trial.build_seconds:>8.1f}{mark}"
            )
        return "\n".join([*rows, *self.skipped, "", self.why])


def calibrate(
    keys: Float[Tensor, "n d"],
    queries: Float[Tensor, "m d"] | None = None,
    *,
    k: int = 32,
    batch: int = 256,
    recall: float = 0.9,
    metric: Metric = "ip",
    factories: Sequence[str] | None = None,
    progress: Callable[[Trial], None] | None = None,
) -> Calibration:
    """Measure indexes on some keys and choose the fastest that reaches a recall.

    Each kind is built once; where it has lists or candidates to visit, their number is doubled until the target is
    reached or it no longer helps. Recall is by score: a hit counts if it is no farther than the true ``k``-th
    neighbour, because of equally near entries any will do. Times are medians of five batches, on as many threads as
    are set.

    Args:
        keys: What will be stored, or a part of it that is as large as the store will be.
        queries: What will be asked; by default some of the keys, which find themselves too easily.
        k: Neighbours wanted.
        batch: Queries asked at once.
        recall: Share of them that must be found.
        metric: ``"ip"`` or ``"l2"``.
        factories: FAISS factory strings to try; by default those that pay at this size (:func:`candidates`).
        progress: Called with each trial.

    Shapes:
        keys: ``[n, d]``, queries: ``[m, d]``

    Raises:
        ValueError: If there are no keys, no queries or some that are not finite, the target is not in (0, 1], or
            ``k`` or ``batch`` is smaller than 1.
    """
    if not len(keys):
        raise ValueError("there are no keys to calibrate on: give some of those that will be stored")
    if not 0 < recall <= 1:
        raise ValueError(f"recall must be in (0, 1], got {recall}")
    if k < 1 or batch < 1:
        raise ValueError(f"calibrate needs k >= 1 and batch >= 1, got k={k} and batch={batch}")
    if queries is not None:
        check_answerable(queries)
    n, d = keys.shape
    asked = keys[:: max(1, n // _QUERIES)][:_QUERIES] if queries is None else queries[:_QUERIES]
    group = asked.repeat(-(-batch // len(asked)), 1)[:batch]
    exact = Index("Flat", metric).add(keys)
    truth = exact.search(asked, k)
    trials, skipped = [], []

    def measure(index: Index) -> Trial:
        found = index.search(asked, k)
        times = []
        for _ in range(_REPEATS):
            begin = time.perf_counter()
            cost = index.search(group, k)
            times.append(time.perf_counter() - begin)
        trial = Trial(
            index.factory,
            index.nprobe,
            index.ef,
            share_found(found, truth, asked, keys.__getitem__, metric),
            sorted(times)[_REPEATS // 2] / len(group),
            cost.flops / len(group),
            cost.bytes / len(group),
            index.seconds,
        )
        trials.append(trial)
        if progress is not None:
            progress(trial)
        return trial

    measure(exact)
    for factory in candidates(n, d) if factories is None else factories:
        if factory == "Flat":
            continue
        index = Index(factory, metric)
        try:
            index.add(keys)
        except (ValueError, NotImplementedError) as error:
            skipped.append(f"{factory} was not tried: {error}")
            continue
        before = -1.0
        for index.nprobe, index.ef in _settings(factory):
            found = measure(index).recall
            # Codes lose what no longer list brings back.
            if found >= recall or found - before < _GAIN:
                break
            before = found
    good = [trial for trial in trials if trial.recall >= recall]
    chosen = min(good, key=lambda trial: trial.seconds_per_query)
    return Calibration(n, d, k, batch, recall, metric, tuple(trials), chosen, tuple(skipped))


def candidates(n: int, d: int) -> list[str]:
    """Factory strings worth trying for ``n`` vectors of ``d`` dimensions.

    Inverted lists of four to eight times the square root of ``n``, as is usual for FAISS, their vectors whole, in half
    floats, in bytes, or in 4-bit codes that are scored again; and a graph. Below 2,000 vectors nothing beats scanning
    them.
    """
    if n < 2000:
        return ["Flat"]
    lists = 2 ** max(4, round(4 * n**0.5).bit_length())
    lists = min(lists, n // 39)
    parts = next((m for m in (d // 2, d // 4, d // 8) if m and d % m == 0), 1)
    codes = ("Flat", "SQfp16", "SQ8", f"PQ{parts}x4fsr,RFlat")
    found = ["Flat", *(f"IVF{lists},{code}" for code in codes)]
    return found + (["HNSW16"] if n <= 200_000 else [])


def _settings(factory: str) -> Iterator[tuple[int, int]]:
    """Numbers of lists and of candidates to try, the cheapest first."""
    if "IVF" in factory or "IMI" in factory:
        yield from ((nprobe, 64) for nprobe in _NPROBE)
    elif "HNSW" in factory:
        yield from ((8, ef) for ef in _EF)
    else:
        yield 8, 64


def _setting(trial: Trial) -> str:
    if "IVF" in trial.factory or "IMI" in trial.factory:
        return f"nprobe={trial.nprobe}"
    return f"ef={trial.ef}" if "HNSW" in trial.factory else ""
