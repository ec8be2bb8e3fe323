"""A causal language model with memories attached to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mann.attachment.call import Call
from mann.attachment.hooked import Hooked, cast
from mann.attachment.layers import find_layers, keeps_documents_apart
from mann.attachment.saved import is_given_again, load, save
from mann.attachment.slots import Build, Slot, Where, arguments_of, plan
from mann.context import Context
from mann.norm import sum_dtype
from mann.readout.base import IGNORE
from mann.state import State
from retrieval import Neighbors

__all__ = ["Attached", "attach"]


class Attached(Hooked):
    r"""A causal language model of Hugging Face and what :func:`mann.attach` has added to it.

    While it is attached, calls and ``generate`` of the model itself go through the memories, and ``model.eval()`` is
    for both. :meth:`loss` makes it a network that :class:`~mann.LanguageModule` trains; :meth:`detach`, or the end of a
    ``with`` block, gives the model back as it was.

    Args:
        model: The model.
        slots: What is added where.
        train: ``"memory"`` freezes the model, ``"all"`` does not.
        names: Where things are in the model, as :func:`mann.attach` takes them.

    Attributes:
        model: The model, in its own class.
        parts: What was added, by kind and layer: ``parts["memory"]["1"]``, ``parts["readout"]``.

    Raises:
        ValueError: If the model is none that something can be attached to, or has something attached.
    """

    def __init__(
        self,
        model: nn.Module,
        slots: Sequence[Slot],
        train: str = "memory",
        names: Mapping[str, str | None] | None = None,
    ) -> None:
        if train not in ("memory", "all"):
            raise ValueError(f"train must be 'memory' or 'all', got {train!r}")
        super().__init__(model, slots, {"path": None, "attention": None, "mlp": None} | dict(names or {}))
        self._apart: bool | None = None
        self._wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self.training = model.training
        self.parts.train(model.training)
        if train == "memory":
            self.freeze()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model itself is called."""
        return self.model(*args, **kwargs)

    def memory_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of what was added."""
        return self.parts.parameters()

    def freeze(self) -> None:
        """Train nothing but what was added."""
        self.model.requires_grad_(False)

    def unfreeze(self) -> None:
        """Train what was trained before, too."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._wanted.get(name, True))

    def loss(
        self,
        tokens: Int[Tensor, "batch time"],
        targets: Int[Tensor, "batch time"],
        documents: Int[Tensor, "batch time"] | None = None,
        neighbors: Neighbors | None = None,
        state: State | None = None,
        exclude: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time"]:
        """Negative log-probability of each target in nats; 0 where the target is -100.

        Documents are told to the model by positions that begin anew. A state is for what was added: the model itself
        begins anew in each segment.

        Args:
            tokens: Token ids.
            targets: What comes next.
            documents: Document label of each position.
            neighbors: Found beforehand.
            state: Of streaming parts.
            exclude: Label of the stored document that each position must not be given.

        Shapes:
            tokens, targets, documents, exclude and output: ``[batch, time]``.

        Raises:
            ValueError: If there are several documents in a row of a model that cannot tell them apart, or nothing is
                attached any more.
        """
        call, output = self._run(Context(tokens, documents, neighbors, state, exclude), targets)
        if call.loss is not None:
            return call.loss
        logits = output.logits.flatten(0, 1)
        wide = logits.to(sum_dtype(logits))
        return F.cross_entropy(wide, targets.flatten(), ignore_index=IGNORE, reduction="none").view_as(
            targets
        )

    def hidden(self, context: Context) -> Float[Tensor, "batch time width"]:
        """The state that the readout sees, and by which a store for kNN-LM is filled.

        Args:
            context: The tokens.

        Shapes:
            output: ``[batch, time, width]``.
        """
        call, output = self._run(context, None)
        if call.final is None:
            raise ValueError(
                f"{type(self.model).__name__} has no base_model that would give its last hidden state"
            )
        if self.readout is None:
            return call.final
        x = cast(call.final, self.readout)
        self._own_head().know(x, output.logits)
        return x

    def _run(self, context: Context, targets: Tensor | None) -> tuple[Call, Any]:
        if not self._handles:
            raise ValueError("nothing is attached any more: attach again")
        places = {} if context.documents is None else self._places(context.documents)
        self._next = {"context": context, "targets": targets}
        try:
            output = self.model(input_ids=context.tokens, use_cache=False, **places)
            return self._next["call"], output
        finally:
            self._next = {}

    def _places(self, documents: Tensor) -> dict[str, Tensor]:
        """Positions that begin anew with each document, if there are several in a row."""
        begins = F.pad(documents.diff(dim=1) != 0, (1, 0))
        if not begins.any():
            return {}
        if self._apart is None:
            self._silent, self._apart = True, False
            try:
                self._apart = "position_ids" in self._arguments and keeps_documents_apart(self.model)
            finally:
                self._silent = False
        if not self._apart:
            raise ValueError(
                f"{type(self.model).__name__} does not tell documents in one row apart by position_ids: give rows of "
                "one document each, and documents=None"
            )
        at = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
        return {"position_ids": at - at.masked_fill(~begins, 0).cummax(1).values}

    def detach(self) -> nn.Module:
        """Take everything off; the model is as it was before, and what was added stays in :attr:`parts`."""
        for handle in self._handles:
            handle.remove()
        for parameter, _ in self._lent:
            del parameter.role  # type: ignore[attr-defined]
        if self._handles:
            self.unfreeze()
        self._handles, self._lent, self._call = [], [], None
        return self.model

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def __deepcopy__(self, memo: dict[int, Any]) -> Attached:
        for slot in self.slots:
            for value in arguments_of(slot.build).values():
                if is_given_again(value):
                    memo[id(value)] = value
        memo[id(self)] = copy = type(self).__new__(type(self))
        copy.__dict__.update(deepcopy(self.__dict__, memo))
        # A copy of a parameter has none of its attributes.
        for parameter in self.parameters():
            for name, value in vars(parameter).items():
                setattr(memo[id(parameter)], name, value)
        return copy

    def save_pretrained(
        self, folder: str | Path, tokenizer: Any = None, sources: Mapping[str, Any] | None = None
    ) -> None:
        """Save what was added, in one step: weights as safetensors, the rest as JSON; the model is not saved.

        Args:
            folder: Where.
            tokenizer: Of the model, whose tokens tables are looked up by: another one is refused when they are loaded.
            sources: Names for stores, which are not saved; by default those of their arguments.

        Raises:
            ValueError: If something is attached that could not be loaded: classes that ``mann`` does not export, or
                arguments that are no plain values.
        """
        save(self, folder, tokenizer, sources)

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module | str | Path,
        folder: str | Path,
        *,
        sources: Mapping[str, Any] | None = None,
        tokenizer: Any = None,
        train: str = "memory",
        same_weights: bool = True,
    ) -> Attached:
        """Attach what :meth:`save_pretrained` saved; nothing in the folder is executed.

        Args:
            model: The model, or what ``AutoModelForCausalLM.from_pretrained`` takes.
            folder: Where it was saved.
            sources: Stores by the names they were saved under.
            tokenizer: Of the model, to be compared with that given to :meth:`save_pretrained`.
            train: As :func:`mann.attach` takes it.
            same_weights: Refuse a model of the same sizes with other weights than those it was saved beside.

        Raises:
            ValueError: If it was attached to another model, or a store is missing or another one.
            SnapshotError: If the folder is damaged, of a newer format, or no such thing.
        """
        return load(partial(attach, train=train), model, folder, sources, tokenizer, same_weights)


def attach(
    model: nn.Module,
    layers: Sequence[int] | Mapping[int, Build] | None = None,
    memory: Where = None,
    *,
    mixer: Where = None,
    feedforward: Where = None,
    readout: Build | None = None,
    train: str = "memory",
    path: str | None = None,
    attention: str | None = None,
    mlp: str | None = None,
) -> Attached:
    """Give a causal language model of Hugging Face a memory, without touching its code.

    Everything that starts as a no-op in a :class:`~mann.Transformer` does here: logits are those of the bare model bit
    for bit. A readout is a mixture from the start, and makes log-probabilities of logits.

    Args:
        model: The model; GPT-2, Llama, and whatever else keeps its decoder layers in one ``nn.ModuleList``.
        layers: Decoder layers that get what follows; or ``{1: partial(NGramMemory, ...), 3: ...}``.
        memory: ``memory(d_model)``, added to the stream before these layers (the number of layers stands for "behind
            the last"); or one for each layer, as a mapping. So for the next two.
        mixer: ``mixer(d_model, n_heads)``, added beside the attention of these layers.
        feedforward: ``feedforward(d_model)``, added beside their MLP.
        readout: ``readout(d_model, vocab_size)``, which mixes with the model's distribution.
        train: ``"memory"`` freezes the model, ``"all"`` trains it too.
        path: Where the list of decoder layers is, if it is not found: ``"model.layers"``.
        attention: What a layer calls its attention, if it is not found.
        mlp: What a layer calls its MLP, if it is not found.

    Raises:
        ValueError: If the model has no such layers, or what is asked for makes no sense.
    """
    count = len(find_layers(model, path))
    parts = {"memory": memory, "mixer": mixer, "feedforward": feedforward}
    names = {"path": path, "attention": attention, "mlp": mlp}
    return Attached(model, plan(layers, parts, readout, count), train, names)


attach.from_pretrained = Attached.from_pretrained  # type: ignore[attr-defined]
