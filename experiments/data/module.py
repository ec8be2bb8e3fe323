"""Windows as a Lightning data module: the same batches for every arm of a seed, resumable at any step."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

import lightning
import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from experiments.data.babi import BabiCorpus
from experiments.data.copying_tasks import CopyCorpus
from experiments.data.corpus import Corpus, CorpusError
from experiments.data.recall import RecallCorpus
from experiments.data.windows import Windows, evaluation_rows, training_order
from retrieval.neighbors import Neighbors


class NeighborRows(Protocol):
    """Neighbours found in advance: row `i` belongs to the `i`-th window of an order."""

    def rows(self, index: Int[Tensor, " n"]) -> Neighbors:
        """Neighbours of every position of these windows, ``[n, time, k]``."""
        ...


class Batches:
    """Batches of a list of windows, in order; iterating begins at the first, or where a loaded state says.

    Args:
        windows: where the windows come from.
        order: the windows to visit; the last batch may be smaller.
        batch_size: windows in a batch.
        neighbors: neighbours found in advance, if any.
        rows: the row of `neighbors` of each window in `order`; by default its place in `order`.
        done: says how many batches have been used, where somebody else counts; by default those handed out.
    """

    def __init__(
        self,
        windows: Windows,
        order: Int[np.ndarray, " n"],
        batch_size: int,
        *,
        neighbors: NeighborRows | None = None,
        rows: Int[np.ndarray, " n"] | None = None,
        done: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.windows = windows
        self.order = order
        self.batch_size = batch_size
        self.neighbors = neighbors
        self.rows = np.arange(len(order)) if rows is None else rows
        self.position = 0
        self._begin = 0
        self._done = done

    def __len__(self) -> int:
        """The number of batches from the beginning to the end, wherever iterating begins."""
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, step: int) -> dict[str, Any]:
        """The batch of one step."""
        if not 0 <= step < len(self):
            raise IndexError(f"batch {step} of {len(self)}")
        here = slice(step * self.batch_size, (step + 1) * self.batch_size)
        batch: dict[str, Any] = self.windows.batch(self.order[here])
        if self.neighbors is not None:
            batch["neighbors"] = self.neighbors.rows(torch.from_numpy(self.rows[here]))
            if getattr(self.neighbors, "exclude", False):
                batch["exclude"] = batch["documents"]
        return batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Whoever stops at the last batch, as Lightning does, never comes back to the end of this function.
        first, self._begin = self._begin, 0
        for step in range(first, len(self)):
            batch = self[step]
            self.position = step + 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How many batches have been used."""
        done = self._done()
        return {"batch": self.position if done is None else done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Begin after that many batches, once: the next pass is whole."""
        self.position = self._begin = state["batch"] % max(1, len(self))


class WindowData(lightning.LightningDataModule):
    """Batches of windows for training and evaluation.

    Training is one long pass of the whole budget (one Lightning epoch); when the budget exceeds the split,
    further passes visit all windows again in other orders. Batches are the dictionaries of
    :meth:`experiments.data.windows.Windows.batch`, with ``"neighbors"`` when a table is given. A checkpoint
    holds the number of batches used, so a resumed run goes on with the very next one.

    Args:
        corpus: the text.
        length: positions in a window.
        batch_size: windows in a batch.
        n_tokens: tokens to train on, rounded up to whole batches; ``None`` for one pass.
        seed: decides the order, alone.
        evaluation_tokens: about how many tokens of each other split to evaluate; ``None`` for all.
        evaluation_batch_size: windows in a batch of evaluation.
        neighbors: for the splits named, neighbours found in advance: row `i` belongs to the `i`-th window in
            training order (first pass), or to the `i`-th of ``evaluation_rows``.
    """

    def __init__(
        self,
        corpus: Corpus,
        length: int = 256,
        batch_size: int = 4,
        *,
        n_tokens: int | None = None,
        seed: int = 0,
        evaluation_tokens: int | None = 262_144,
        evaluation_batch_size: int = 16,
        neighbors: Mapping[str, NeighborRows] | None = None,
    ) -> None:
        super().__init__()
        self.corpus = corpus
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.evaluation_tokens = evaluation_tokens
        self.evaluation_batch_size = evaluation_batch_size
        self.neighbors = dict(neighbors or {})
        unknown = set(self.neighbors) - set(corpus.splits)
        if unknown:
            raise CorpusError(f"neighbors for {sorted(unknown)}; the corpus has {sorted(corpus.splits)}")
        self.windows = Windows(corpus.train, length)
        per_batch = batch_size * length
        budget = len(self.windows) * length if n_tokens is None else n_tokens
        self.steps = budget // per_batch if n_tokens is None else -(-budget // per_batch)
        if self.steps < 1:
            raise CorpusError(
                f"{budget} tokens of training give no batch of {batch_size} x {length};"
                " use more tokens or smaller batches"
            )
        self._first_order = training_order(len(self.windows), seed)

    @property
    def n_tokens(self) -> int:
        """Tokens trained on."""
        return self.steps * self.batch_size * self.length

    @property
    def order(self) -> Int[np.ndarray, " n"]:
        """The windows trained on, in order; they repeat once the split is used up."""
        count = self.steps * self.batch_size
        passes = -(-count // len(self.windows))
        orders = [self._first_order] + [
            training_order(len(self.windows), self.seed, epoch) for epoch in range(1, passes)
        ]
        return np.concatenate(orders)[:count]

    def training(self) -> Batches:
        """The batches of training, from the first on."""
        order = self.order
        row_of_window = np.empty(len(self.windows), dtype=np.int64)
        row_of_window[self._first_order] = np.arange(len(self.windows))
        return Batches(
            self.windows,
            order,
            self.batch_size,
            neighbors=self.neighbors.get("train"),
            rows=row_of_window[order],
            done=self._batches_done,
        )

    def evaluation(self, name: str) -> Batches:
        """The batches of evaluation on a split."""
        if name not in self.corpus.splits:
            raise CorpusError(f"no split {name!r}; the corpus has {sorted(self.corpus.splits)}")
        split = self.corpus.splits[name]
        return Batches(
            Windows(split, self.length),
            evaluation_rows(split, self.length, self.evaluation_tokens),
            self.evaluation_batch_size,
            neighbors=self.neighbors.get(name),
        )

    def train_dataloader(self) -> Batches:
        """As Lightning asks for it."""
        return self.training()

    def val_dataloader(self) -> Batches:
        """As Lightning asks for it."""
        return self.evaluation("valid")

    def test_dataloader(self) -> list[Batches]:
        """Test, and held-out sources after it where there are any."""
        return [self.evaluation(name) for name in ("test", "heldout") if name in self.corpus.splits]

    def state_dict(self) -> dict[str, Any]:
        """What decides the batches, so that a run is not resumed on other data."""
        return {
            "corpus": self.corpus.fingerprint,
            "seed": self.seed,
            "length": self.length,
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint of a run on other data."""
        ours = self.state_dict()
        other = [key for key, value in state_dict.items() if ours.get(key) != value]
        if other:
            told = ", ".join(f"{key} {state_dict[key]!r} (here {ours.get(key)!r})" for key in other)
            raise CorpusError(f"the checkpoint was trained with {told}; resume with the same data settings")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move tensors and neighbours; Lightning itself refuses a frozen dataclass."""
        moved: dict[str, Any] = {
            key: value.to(device) for key, value in batch.items() if isinstance(value, Tensor)
        }
        if "neighbors" in batch:
            found: Neighbors = batch["neighbors"]
            moved["neighbors"] = replace(
                found, scores=found.scores.to(device), ids=found.ids.to(device), mask=found.mask.to(device)
            )
        return moved

    def _batches_done(self) -> int | None:
        """Batches the trainer has trained on; one it holds when it is interrupted does not count."""
        if self.trainer is None or self.trainer.state.fn != "fit" or self.trainer.state.finished:
            return None
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return progress.processed


class RecallData(WindowData):
    """:class:`RecallCorpus` as batches for Lightning; windows hold whole examples, shorter ones several.

    Args:
        corpus: By default one of 8,192 tokens, with 4 to 64 pairs.
        batch_size: Windows in a batch.
        settings: As for :class:`WindowData`.
    """

    def __init__(self, corpus: RecallCorpus | None = None, batch_size: int = 16, **settings: Any) -> None:
        corpus = corpus or RecallCorpus()
        super().__init__(corpus.load(), corpus.longest + 1, batch_size, **settings)


class CopyData(WindowData):
    """:class:`CopyCorpus` as batches for Lightning; a window is an example.

    Args:
        corpus: By default copy of 1 to 20 symbols.
        batch_size: Windows in a batch.
        settings: As for :class:`WindowData`.
    """

    def __init__(self, corpus: CopyCorpus | None = None, batch_size: int = 16, **settings: Any) -> None:
        corpus = corpus or CopyCorpus()
        super().__init__(corpus.load(), corpus.longest + 1, batch_size, **settings)


class BabiData(WindowData):
    """:class:`BabiCorpus` as batches for Lightning; a window is a story.

    Args:
        corpus: By default task 1, its stories made here.
        batch_size: Windows in a batch.
        settings: As for :class:`WindowData`.
    """

    def __init__(self, corpus: BabiCorpus | None = None, batch_size: int = 16, **settings: Any) -> None:
        corpus = corpus or BabiCorpus()
        super().__init__(corpus.load(), corpus.longest + 1, batch_size, **settings)
