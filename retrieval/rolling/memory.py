"""Memory of a training run: past keys and values of each row and head, the latest ``capacity`` of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retrieval.neighbors import Neighbors
from retrieval.rolling.lists import RingLists
from retrieval.rolling.recall import Recalled, run_recall
from retrieval.rolling.ring import Ring
from retrieval.rolling.search import Found, anywhere, dense, exact, without_strange
from retrieval.runtime import counters_lock
from retrieval.search import Searchable, run_search
from retrieval.snapshot import SnapshotError, open_snapshot, writing_snapshot
from retrieval.work import Work

__all__ = ["Backend", "RollingMemory"]

Backend = Literal["auto", "dense", "exact", "ivf"]
Rows = Int[Tensor, " batch"] | Bool[Tensor, " rows"]

_KIND, _VERSION = "rolling memory", 1
_SIZES = ("rows", "heads", "capacity", "d_key", "d_value", "nlist", "nprobe", "retrain")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class RollingMemory(Searchable):
    r"""For every row of a batch and every head, the latest keys and values, searched by inner product.

    The memory of `Memorizing Transformers <https://arxiv.org/abs/2203.08913>`_. An entry is named by its write index,
    a 64-bit integer that counts what its row was given over all its life; it is kept at ``index % capacity``, and the
    index beside it is compared whenever it is read. So the name of an entry that was overwritten or reset finds
    nothing, never another entry, and a key always finds its own value.

    A search gives for each query the ``k`` entries with the largest :math:`q \cdot x`, by (score descending, write
    index ascending), whatever else is in the batch; a row with fewer entries, or none, ends in masked places. What is
    stored has no gradient. An attention over neighbours, whose gradient reaches the queries::

        memory = RollingMemory(rows=8, heads=4, capacity=2048, d_key=64, d_value=64)
        found = memory.search(queries, k=32)
        past = memory.gather(found)
        scores = torch.einsum("bhtd,bhtkd->bhtk", queries, past.keys) / 8
        weights = scores.masked_fill(~past.mask, -torch.inf).softmax(-1).nan_to_num()  # a row may have no past
        read = torch.einsum("bhtk,bhtkd->bhtd", weights, past.values)
        memory.add(keys, values)

    **Gradient checkpointing** runs a block again in the backward pass. Search and gather outside of the block, or add
    after ``backward()``: a block that adds is refused then, and so is a search if the memory was written to since the
    last one of the forward pass. **Compiling:** :meth:`add` and :meth:`reset` break the graph; the rest are operators.

    **No buffers.** This is no module and holds plain tensors: ``DistributedDataParallel`` sends the first rank's
    buffers to all, which would overwrite every other rank's memory. So it does not move with ``module.to(device)`` and
    is not in ``module.state_dict()``: call :meth:`to`, and keep :meth:`state_dict` with the checkpoint of its own rank.

    Args:
        rows: Rows of the largest batch.
        heads: Heads.
        capacity: Entries kept of each row and head.
        d_key: Dimension of keys and queries.
        d_value: Dimension of values.
        backend: ``"dense"``: products of matrices, in bfloat16 where the processor has instructions for it, from a copy
            of the keys; results stay exact. ``"exact"``: FAISS flat, one search for each row and head; the same
            results. ``"ivf"``: inverted lists, whose centroids are found anew as the memory turns over; approximate
            unless ``nprobe`` is ``nlist``, and needs the keys twice. ``"auto"``: dense up to 16,384 entries, then ivf.
        dtype: How keys and values are kept: ``torch.float32``, ``torch.bfloat16`` or ``torch.float16``. Scores are
            32-bit floats.
        device: Where they are kept. Off the CPU there is ``"dense"`` only, which there rounds as the device does.
        nlist: Inverted lists of each row and head; by default :math:`2 \sqrt{\mathrm{capacity}}`.
        nprobe: Lists that a search looks into.
        retrain: Entries written to a row between two trainings of its centroids, at most; by default ``capacity``, one
            turn of the ring.

    Attributes:
        work: What ``"train"`` and ``"add"`` of inverted lists have cost; the other backends need nothing of the kind.

    Raises:
        ValueError: If a size is smaller than 1, or backend, dtype and device do not go together.
    """

    # Where inverted lists begin to be worth an approximation. Milliseconds of a step of 8 x 512 queries, k = 32, 64
    # dimensions, one AVX2 core, dense / exact / ivf with all upkeep: at 512 entries 33 / 60 / 89, at 2,048 79 / 102 /
    # 130, at 8,192 195 / 192 / 172, at 32,768 693 / 534 / 302 (`python -m benchmarks.rolling`).
    crossover = 16384

    def __init__(
        self,
        rows: int,
        heads: int,
        capacity: int,
        d_key: int,
        d_value: int,
        *,
        backend: Backend = "auto",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        nlist: int | None = None,
        nprobe: int = 16,
        retrain: int | None = None,
    ) -> None:
        nlist = max(1, min(capacity, round(2 * math.sqrt(max(capacity, 0))))) if nlist is None else nlist
        retrain = capacity if retrain is None else retrain
        sizes = (rows, heads, capacity, d_key, d_value, nlist, nprobe, retrain)
        self.settings: dict[str, int] = dict(zip(_SIZES, sizes, strict=True))
        if small := [f"{name} >= 1, got {size}" for name, size in self.settings.items() if size < 1]:
            raise ValueError(f"RollingMemory needs {small[0]}")
        if nlist > capacity:
            raise ValueError(f"{nlist} lists for {capacity} entries: give nlist <= capacity")
        if backend not in ("auto", "dense", "exact", "ivf"):
            raise ValueError(f"backend must be 'auto', 'dense', 'exact' or 'ivf', got {backend!r}")
        if dtype not in _DTYPES.values():
            raise ValueError(f"dtype must be torch.{', torch.'.join(_DTYPES)}, got {dtype}")
        self.asked_backend: Backend = backend
        self._ring = Ring(rows, heads, capacity, d_key, d_value, dtype, torch.device(device))
        self._lists: RingLists | None = None
        self._check_device(self._ring.device)
        if self.backend == "ivf":
            self._lists = RingLists(self._ring, nlist, nprobe, retrain)

    @property
    def backend(self) -> Literal["dense", "exact", "ivf"]:
        """What searches: what was asked for, or what ``"auto"`` stands for at this capacity."""
        if self.asked_backend != "auto":
            return self.asked_backend
        return "ivf" if self._ring.capacity > self.crossover and self.device.type == "cpu" else "dense"

    @property
    def device(self) -> torch.device:
        """Where keys and values are kept."""
        return self._ring.device

    @property
    def dtype(self) -> torch.dtype:
        """How keys and values are kept."""
        return self._ring.keys.dtype

    @property
    def written(self) -> Int[Tensor, " rows"]:
        """Write index of each row's next entry."""
        return torch.from_numpy(self._ring.written.copy())

    @property
    def work(self) -> dict[str, Work]:
        """What training and filling inverted lists has cost."""
        return {} if self._lists is None else dict(self._lists.work)

    def __len__(self) -> int:
        """Entries in all rows and heads together."""
        return int(self._ring.live.sum()) * self._ring.heads

    def __repr__(self) -> str:
        ring = self._ring
        return (
            f"RollingMemory(rows={ring.rows}, heads={ring.heads}, capacity={ring.capacity}, d_key={ring.d_key}, "
            f"d_value={ring.d_value}, backend={self.backend!r}, dtype={self.dtype}, {len(self):,} entries)"
        )

    def add(
        self,
        keys: Float[Tensor, "batch heads n d_key"],
        values: Float[Tensor, "batch heads n d_value"],
        *,
        rows: Rows | None = None,
    ) -> Int[Tensor, "batch n"]:
        """Store entries, over the oldest ones of a row that is full; gradients end here.

        Args:
            keys: What later queries are compared with.
            values: What they shall read.
            rows: Whose they are: numbers, or a mask over all rows; by default the first ``batch`` rows.

        Shapes:
            keys: ``[batch, heads, n, d_key]``, values: ``[batch, heads, n, d_value]``, result: ``[batch, n]``

        Returns:
            The write indices. Of more than ``capacity`` entries at once only the last are kept.

        Raises:
            ValueError: If shapes or types do not fit, or a number is not finite in the type of the memory. Nothing is
                stored then.
        """
        self._check("keys", keys, self._ring.d_key)
        self._check("values", values, self._ring.d_value)
        if keys.shape[:3] != values.shape[:3]:
            raise ValueError(
                f"keys {tuple(keys.shape)} and values {tuple(values.shape)} must agree in batch, heads and n"
            )
        with counters_lock:
            at, n = self._ring.chosen(rows, len(keys)), keys.shape[2]
            ids = self.written[at, None] + torch.arange(n, device="cpu")
            self._ring.add(keys, values, at)
            if self._lists is not None:
                self._lists.added(at, n)
        return ids

    def search(
        self,
        queries: Float[Tensor, "batch heads time d_key"],
        k: int,
        *,
        rows: Rows | None = None,
    ) -> Neighbors:
        """The ``k`` nearest entries of each query in its own row and head; ids are write indices.

        Places without a neighbour are masked: where a row has fewer entries, where a score is no finite number.

        Args:
            queries: What to look for; the caller's gradient goes through :meth:`gather`'s keys, not through scores.
            k: Neighbours of each query.
            rows: Whose they are, as in :meth:`add`.

        Shapes:
            queries: ``[batch, heads, time, d_key]``, result: ``[batch, heads, time, k]``

        Raises:
            ValueError: If shapes or types do not fit, or ``k < 1``.
        """
        if k < 1:
            raise ValueError(f"search needs k >= 1, got {k}")
        self._check("queries", queries, self._ring.d_key)
        return run_search(self, [queries] if rows is None else [queries, rows], k)

    def gather(
        self,
        found: Neighbors | Int[Tensor, "batch heads time k"],
        *,
        rows: Rows | None = None,
    ) -> Recalled:
        """Keys and values of neighbours, in the memory's own type; zeros where the mask is ``False``.

        An entry that was overwritten or reset since the search is masked.

        Args:
            found: What :meth:`search` gave, or write indices.
            rows: Whose they are, as given to the search.

        Shapes:
            found: ``[batch, heads, time, k]``; the result as in :class:`retrieval.rolling.recall.Recalled`

        Raises:
            ValueError: If shapes do not fit.
        """
        ids = found.ids if isinstance(found, Neighbors) else found
        mask = found.mask if isinstance(found, Neighbors) else ids >= 0
        if ids.ndim != 4 or ids.shape[1] != self._ring.heads or ids.shape[0] > self._ring.rows:
            raise ValueError(
                f"ids need shape [batch <= {self._ring.rows}, heads = {self._ring.heads}, time, k], got "
                f"{tuple(ids.shape)}"
            )
        return run_recall(self._ring, ids, mask, rows)

    def reset(self, rows: Rows | None = None) -> None:
        """Empty rows whose document has ended; the others stay.

        Args:
            rows: Numbers, or a mask over all rows; by default all.
        """
        with counters_lock:
            at = self._ring.chosen(rows, None)
            self._ring.reset(at)
            if self._lists is not None:
                self._lists.reset(at)

    def to(self, device: torch.device | str) -> RollingMemory:
        """Move the memory, in place; ``module.to`` does not.

        Raises:
            ValueError: If the backend works on the CPU only.
        """
        with counters_lock:
            self._check_device(torch.device(device))
            self._ring.to(device)
        return self

    def neighbors(self, inputs: Sequence[Tensor], k: int) -> Neighbors:
        """The search behind the operator; call :meth:`search`."""
        queries, ring = inputs[0], self._ring
        batch, heads, time, d = queries.shape
        x = np.ascontiguousarray(queries.float().numpy()).reshape(batch * heads, time, d)
        x, strange = without_strange(x)
        with counters_lock:
            ring.reading()
            at = ring.chosen(inputs[1] if len(inputs) > 1 else None, batch).tolist()
            found = self._found(x, [(row, head) for row in at for head in range(heads)], k)
        found.ids[strange] = -1
        shape = batch, heads, time, k
        scores, ids = (torch.from_numpy(part).view(shape) for part in (found.scores, found.ids))
        return Neighbors.of(scores, ids, **found.work.counts)

    def _found(self, x: np.ndarray, memories: list[tuple[int, int]], k: int) -> Found:
        if self.device.type != "cpu":
            return anywhere(self._ring, torch.from_numpy(x), memories, k)
        if self._lists is not None:
            return self._lists.search(x, memories, k)
        return (dense if self.backend == "dense" else exact)(self._ring, x, memories, k)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and integers by which :meth:`load_state_dict` goes on exactly where this memory is; copies."""
        with counters_lock:
            lists = {} if self._lists is None else self._lists.state()
            return {"version": _VERSION, **self.settings, **self._ring.state(), **lists}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            ValueError: If it is of a memory of another kind or damaged; it says what differs. Nothing is changed then.
        """
        if state.get("version") != _VERSION:
            raise ValueError(
                f"this is no state of a RollingMemory of format {_VERSION}, but of {state.get('version')}"
            )
        names = _SIZES if self._lists is not None else _SIZES[:5]
        faults = [
            f"{name} is {state.get(name)} there and {self.settings[name]} here"
            for name in names
            if state.get(name) != self.settings[name]
        ]
        parts = [self._ring] if self._lists is None else [self._ring, self._lists]
        with counters_lock:
            for part in parts:
                faults = faults or part.faults(dict(state))
            if faults:
                raise ValueError(
                    f"this state does not fit the memory: {'; '.join(faults)}. Build the memory as it was"
                )
            for part in parts:
                part.load(dict(state))

    def save(self, path: str | Path) -> None:
        """Write the memory to a folder, whole or not at all.

        Args:
            path: Where. What is there is replaced.
        """
        state = self.state_dict()
        numbers = {name: value for name, value in state.items() if isinstance(value, int)}
        about = numbers | {"dtype": str(self.dtype).removeprefix("torch."), "backend": self.asked_backend}
        with writing_snapshot(path, _KIND, _VERSION, about) as folder:
            for name, value in state.items():
                if isinstance(value, Tensor):
                    plain = value.view(torch.int16) if value.dtype == torch.bfloat16 else value
                    np.save(folder / f"{name}.npy", plain.numpy(), allow_pickle=False)

    @classmethod
    def open(cls, path: str | Path, *, device: torch.device | str = "cpu") -> RollingMemory:
        """The memory that :meth:`save` wrote.

        Args:
            path: Where it is.
            device: Where to keep it.

        Raises:
            SnapshotError: If it is missing, damaged, of another kind or of a newer format.
        """
        about = open_snapshot(path, _KIND, _VERSION)
        try:
            dtype, backend, state = _DTYPES[about.pop("dtype")], about.pop("backend"), dict(about)
            made = cls(**{name: about[name] for name in _SIZES}, dtype=dtype, backend=backend, device=device)
            for file in Path(path).glob("*.npy"):
                value = torch.from_numpy(np.load(file, allow_pickle=False))
                state[file.stem] = value.view(dtype) if value.dtype == torch.int16 else value
            made.load_state_dict(state)
        except (KeyError, TypeError, ValueError) as error:
            raise SnapshotError(f"{path} is no whole {_KIND}: {error}") from error
        return made

    def __getstate__(self) -> dict[str, Any]:
        about = {"backend": self.asked_backend, "dtype": self.dtype, "device": self.device}
        return {"state": self.state_dict(), "about": {**self.settings, **about}}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__init__(**saved["about"])  # a copy has lists of its own
        self.load_state_dict(saved["state"])

    def _check(self, name: str, x: Tensor, d: int) -> None:
        ring = self._ring
        if x.ndim != 4 or x.shape[1] != ring.heads or x.shape[3] != d or x.shape[0] > ring.rows:
            raise ValueError(
                f"{name} need shape [batch <= {ring.rows}, heads = {ring.heads}, n, {d}], got {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating-point numbers, got {x.dtype}")

    def _check_device(self, device: torch.device) -> None:
        if device.type != "cpu" and (self.asked_backend in ("exact", "ivf") or self._lists is not None):
            raise ValueError(
                f"backend {self.asked_backend!r} works on the CPU, not on {device}: give backend='dense', or keep the "
                "memory on the CPU"
            )
