"""What a slot of the transformer may look at beside the hidden states."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from mann.rotary import rotary_tables
from mann.state import State, Streaming
from retrieval import Neighbors, Source


@dataclass(frozen=True)
class Context:
    r"""The inputs of one forward pass that slots may read.

    Args:
        tokens: Token ids.
        documents: Document label of each position; attention, shifts and memories never cross a change
            of label. ``None`` says that every row is one document.
        neighbors: Neighbours found beforehand for each position; ``None`` lets an
            :class:`~mann.ExternalMemory` search its own source.
        state: What streaming slots left at the end of the segment before, and leave at the end of this one; a
            context takes note of its segment in it. ``None``: every row begins anew.
        exclude: Label of the stored document that a search at each position must not be given, -1 for none: in
            training its own. ``None``: nobody has said.

    Shapes:
        tokens, documents and exclude: ``[batch, time]``; neighbors: ``[batch, time, k]``.
    """

    tokens: Int[Tensor, "batch time"]
    documents: Int[Tensor, "batch time"] | None = None
    neighbors: Neighbors | None = None
    state: State | None = None
    exclude: Int[Tensor, "batch time"] | None = None
    _found: dict[tuple[int, int], list[tuple[Tensor | None, Neighbors]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _streams: dict[int, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _windows: dict[tuple[int, int], tuple[int, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _masks: dict[tuple[int, torch.dtype], list[Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _rotations: dict[tuple[int, float, torch.dtype, int], tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2:
            raise ValueError(
                f"tokens must be [batch, time], got shape {tuple(self.tokens.shape)}: add a batch dimension"
            )
        for name, labels in (("documents", self.documents), ("exclude", self.exclude)):
            if labels is not None and labels.shape != self.tokens.shape:
                raise ValueError(
                    f"{name} {tuple(labels.shape)} must have the shape of tokens "
                    f"{tuple(self.tokens.shape)}: one document label per token"
                )
        if self.state is not None:
            self.state.begin(len(self.tokens), self.documents)
        if self.documents is not None:
            # Numbered anew, so that a label that returns further on is another document.
            change = self.documents[:, 1:] != self.documents[:, :-1]
            object.__setattr__(self, "documents", F.pad(change.cumsum(1), (1, 0)))

    def same_document(self, back: int) -> Bool[Tensor, "batch time"]:
        """True where the position ``back`` tokens earlier exists and belongs to the same document."""
        batch, time = self.tokens.shape
        inside = torch.zeros(batch, time, dtype=torch.bool, device=self.tokens.device)
        if back >= time:
            return inside
        if self.documents is None:
            inside[:, back:] = True
        else:
            inside[:, back:] = self.documents[:, back:] == self.documents[:, : time - back]
        return inside

    def stream(
        self, earlier: int
    ) -> tuple[Int[Tensor, "batch earlier_and_time"], Int[Tensor, "batch earlier_and_time"]]:
        """Tokens and documents of this segment behind those of the ``earlier`` positions before it.

        What belongs to the document that goes on has label 0, as here; what is of another one, or not there at all,
        has token 0 and label -1. The state holds them from segment to segment for whoever asks for as many.

        Args:
            earlier: Positions of earlier segments.
        """
        if earlier not in self._streams:
            tokens = self.tokens
            labels = torch.zeros_like(tokens) if self.documents is None else self.documents
            if earlier:
                nothing = torch.zeros_like(tokens[:, :1]).expand(-1, earlier)
                held = {"tokens": nothing, "inside": nothing > 0}
                slot = Streaming()
                slot.state_key = f"the last {earlier} tokens"
                if self.state is not None:
                    held = self.state.read(slot, held)
                tokens = torch.cat([held["tokens"], tokens], 1)
                labels = torch.cat([held["inside"].to(labels.dtype) - 1, labels], 1)
                if self.state is not None:
                    inside = (labels == labels[:, -1:])[:, -earlier:]
                    self.state.write(slot, tokens=tokens[:, -earlier:] * inside, inside=inside)
            self._streams[earlier] = tokens, labels
        return self._streams[earlier]

    def retrieve(self, source: Source, k: int, at: Bool[Tensor, "batch time"] | None = None) -> Neighbors:
        """The neighbours of every position: those given, else those ``source`` finds, once per forward pass.

        Args:
            source: Where to look. With a state it is asked with the tokens of earlier segments, too.
            k: Neighbours per position.
            at: True where they are wanted, as :meth:`retrieval.Source.search` takes it; by default everywhere.
        """
        if self.neighbors is not None:
            return self.neighbors
        searches = self._found.setdefault((id(source), k), [])
        for searched, found in searches:
            if searched is None or (at is not None and _alike(searched, at)):
                return found
        held = 0 if self.state is None else source.depth - 1
        tokens, labels = self.stream(held) if held else (self.tokens, self.documents)
        options: dict[str, Tensor] = {}
        if self.exclude is not None:
            options["exclude"] = F.pad(self.exclude, (held, 0), value=-1)
        if held or at is not None:
            options["at"] = F.pad(
                torch.ones_like(self.tokens, dtype=torch.bool) if at is None else at, (held, 0)
            )
        found = source.search(tokens, k, documents=labels, **options)
        if held:
            found = replace(
                found, scores=found.scores[:, held:], ids=found.ids[:, held:], mask=found.mask[:, held:]
            )
        searches.append((at, found))
        return found

    def window(self, source: Source, k: int, before: int, after: int) -> Int[Tensor, "batch time k window"]:
        """Tokens around the neighbours of every position, as :meth:`retrieval.Passages.window` gives them.

        Once read, they serve whoever asks for the same or for fewer in this forward pass.
        """
        key = (id(source), k)
        held, window = self._windows.get(key, (-1, None))
        if window is None or held < before or window.shape[-1] - 1 - held < after:
            held, window = before, source.passages.window(self.retrieve(source, k).ids, before, after)
            self._windows[key] = held, window
        return window[..., held - before : held + 1 + after]

    def attention_masks(self, block: int, dtype: torch.dtype) -> list[Tensor]:
        """What to add to the scores of each block of queries: 0 where a query may look, else minus infinity.

        Shared by all layers of one forward pass. Without documents a mask covers the diagonal square alone
        (``[block, block]``), because every earlier key is visible; with documents all keys so far
        (``[batch, block, keys]``).
        """
        key = (block, dtype)
        if key not in self._masks:
            time, documents = self.tokens.shape[1], self.documents
            positions = torch.arange(time, device=self.tokens.device)
            masks = []
            for start in range(0, time, block):
                end = min(start + block, time)
                if documents is None:
                    hidden = positions[start:end, None] < positions[start:end]
                else:
                    hidden = (documents[:, start:end, None] != documents[:, None, :end]) | (
                        positions[start:end, None] < positions[:end]
                    )
                masks.append(torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, float("-inf")))
            self._masks[key] = masks
        return self._masks[key]

    def rotations(
        self, d_head: int, base: float, dtype: torch.dtype, earlier: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The :func:`~mann.rotary.rotary_tables` of all positions, shared by all layers of one forward pass.

        Args:
            d_head: Width of a head.
            base: Base of the frequencies.
            dtype: Of the tables.
            earlier: Positions before the first of this segment, which the tables begin with.
        """
        key = (d_head, base, dtype, earlier)
        if key not in self._rotations:
            self._rotations[key] = rotary_tables(
                earlier + self.tokens.shape[1], d_head, base, self.tokens.device, dtype
            )
        return self._rotations[key]


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two masks are the same; what exists in shape only has no more to compare."""
    if one.is_meta or isinstance(one, FakeTensor):
        return one.shape == other.shape
    return torch.equal(one, other)
