"""What networks with a memory beside a controller have in common: one step a token, documents, state, loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mann.context import Context
from mann.language_model import LanguageModel
from mann.norm import rms_norm, sum_dtype
from mann.readout import Readout, SoftmaxReadout
from mann.shift import without_autocast
from mann.state import Streaming

# Squared length below which a vector counts as empty: an empty row is like nothing, and its gradient is bounded.
EMPTY = 1e-6
# Beyond it a softmax is one-hot in float32, and gradients are nothing but rounding.
MOST_STRENGTH = 100.0
CONTROLLERS = ("lstm", "feedforward")


class MemoryNetwork(Streaming, LanguageModel):
    r"""A controller that works on a memory once a token; what kind of memory, a subclass says.

    .. math::
        h_t, c_t = \mathrm{LSTM}(x_t, [h_{t-1}; r_{t-1}], c_{t-1}), \qquad
        r_t, M_t = \mathrm{access}(h_t, M_{t-1}), \qquad
        y_t = \mathrm{readout}(\mathrm{rms}(W_o [h_t; r_t]))

    The controller is an LSTM, or one layer that remembers nothing itself, :math:`h_t = \tanh(W x_t + U r_{t-1} + b)`.
    Noise on its cell keeps the LSTM from counting steps finely, which does not carry over to longer sequences.
    Each document begins with an empty memory. A :class:`~mann.State` carries everything to the next segment.

    Reference:
        Jim, Giles and Horne, "An analysis of noise in recurrent neural networks: convergence and generalization", 1996.
        IEEE Transactions on Neural Networks 7, 1424: ``cell_noise``.

    Args:
        vocab_size: Number of tokens.
        d_model: Width of embeddings, and of what the readout sees.
        d_hidden: Width of the controller.
        d_read: Numbers read at each step.
        readout: ``readout(d_model, vocab_size)``.
        controller: ``"lstm"`` or ``"feedforward"``.
        cell_noise: Standard deviation of noise that is added to the LSTM's cell after each step in training.

    Shapes:
        tokens: ``[batch, time]``; output: log-probabilities ``[batch, time, vocab]``.

    Raises:
        ValueError: If a size is smaller than 1, there is no such controller, or it has no cell for the noise.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        d_hidden: int,
        d_read: int,
        readout: Callable[[int, int], Readout] = SoftmaxReadout,
        controller: str = "lstm",
        cell_noise: float = 0.0,
    ) -> None:
        super().__init__()
        at_least_one(vocab_size=vocab_size, d_model=d_model, d_hidden=d_hidden, d_read=d_read)
        if controller not in CONTROLLERS:
            raise ValueError(f"controller={controller!r}: give one of {', '.join(CONTROLLERS)}")
        if cell_noise < 0 or (cell_noise and controller != "lstm"):
            raise ValueError(
                f"cell_noise={cell_noise} of controller={controller!r}: give 0 or more, and an LSTM"
            )
        self.vocab_size, self.d_model, self.d_hidden, self.d_read = vocab_size, d_model, d_hidden, d_read
        self.controller, self.cell_noise = controller, cell_noise
        recalls = controller == "lstm"
        width = 4 * d_hidden if recalls else d_hidden
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.input = nn.Linear(d_model, width)
        self.recurrent = nn.Linear(d_hidden * recalls + d_read, width, bias=False)
        if recalls:
            for layer in (self.input, self.recurrent):
                # The gates and the candidate, each made orthogonal by itself.
                layer.weight.matrices = 4  # type: ignore[attr-defined]
            with torch.no_grad():
                # What the LSTM holds stays, until it learns to forget.
                self.input.bias[d_hidden : 2 * d_hidden] = 1.0
        self.output = nn.Linear(d_hidden + d_read, d_model, bias=False)
        self.readout = readout(d_model, vocab_size)
        self.state_key = "network"

    @abstractmethod
    def start(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        """The memory at the beginning of a document, rows of the batch in front; expanded is enough.

        Args:
            batch: Rows.
            like: A tensor of its type and device.
        """

    @abstractmethod
    def access(
        self, hidden: Float[Tensor, "batch hidden"], memory: Any
    ) -> tuple[Float[Tensor, "batch read"], Any]:
        """One step: what is read, and the memory afterwards.

        Args:
            hidden: The controller's.
            memory: What :meth:`start`, or the step before, gave.
        """

    def open(self, memory: dict[str, Tensor]) -> Any:
        """What :meth:`access` works on, from what :meth:`start` or a state gives."""
        return memory

    def close(self, memory: Any, read: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What a state keeps after the last step, and all that was read."""
        return memory, read

    def renew(self, memory: Any, fresh: Bool[Tensor, " batch"], start: Mapping[str, Tensor]) -> Any:
        """The memory before a step in which a new document begins in some rows."""
        return _chosen(fresh, start, memory)

    def hidden(self, context: Context) -> Float[Tensor, "batch time width"]:
        """The normalised state that the readout sees."""
        x = rms_norm(self.embedding(context.tokens)).to(self.embedding.weight.dtype)
        gates = self.input(x)
        with without_autocast(x):
            gates = gates.to(sum_dtype(x))
            y = self._steps(gates, context)
        return rms_norm(self.output(y.to(x.dtype)))

    def _steps(
        self, gates: Float[Tensor, "batch time gates"], context: Context
    ) -> Float[Tensor, "batch time hidden_and_read"]:
        batch = len(context.tokens)
        nothing = gates.new_zeros(())
        own = {"last_read": nothing.expand(batch, self.d_read)}
        if self.controller == "lstm":
            own |= {name: nothing.expand(batch, self.d_hidden) for name in ("lstm_hidden", "lstm_cell")}
        begin = self.start(batch, gates)
        held = own | begin if context.state is None else context.state.read(self, own | begin)
        memory = self.open({name: held[name] for name in begin})
        own_held = {name: held[name] for name in own}
        fresh = None
        if context.documents is not None:
            fresh = (context.documents[:, 1:] != context.documents[:, :-1]).unbind(1)
        weight, found = self.recurrent.weight.t(), []
        for t, gate in enumerate(gates.unbind(1)):
            if fresh is not None and t:
                memory = self.renew(memory, fresh[t - 1], begin)
                own_held = _chosen(fresh[t - 1], own, own_held)
            if self.controller == "lstm":
                joined = torch.cat([own_held["lstm_hidden"], own_held["last_read"]], 1)
                hidden, cell = _lstm(torch.addmm(gate, joined, weight), own_held["lstm_cell"])
                if self.training and self.cell_noise:
                    cell = cell + self.cell_noise * torch.randn_like(cell)
                own_held = {"lstm_hidden": hidden, "lstm_cell": cell}
            else:
                hidden, own_held = torch.tanh(torch.addmm(gate, own_held["last_read"], weight)), {}
            read, memory = self.access(hidden, memory)
            own_held["last_read"] = read
            found.append(torch.cat([hidden, read], 1))
        left, y = self.close(memory, torch.stack(found, 1))
        if context.state is not None:
            context.state.write(self, **own_held, **left)
        return y


def at_least_one(**sizes: int) -> None:
    """Check sizes.

    Args:
        sizes: Each by its name.

    Raises:
        ValueError: If any is smaller than 1.
    """
    if min(sizes.values()) < 1:
        told = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(f"{told}: all must be at least 1")


def inverse_length(x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch"]:
    """One over the length of vectors, of empty ones bounded."""
    return torch.rsqrt(x.square().sum(-1) + EMPTY)


def content_scores(
    keys: Float[Tensor, "batch heads width"],
    memory: Float[Tensor, "batch rows width"],
    strength: Float[Tensor, "batch heads"],
) -> Float[Tensor, "batch heads rows"]:
    """Cosine of each key and row, times the strength of the key.

    Args:
        keys: What to look for.
        memory: Rows to compare.
        strength: How much likeness counts.

    Shapes:
        keys: ``[batch, heads, width]``; memory: ``[batch, rows, width]``; strength: ``[batch, heads]``; output:
        ``[batch, heads, rows]``.
    """
    keys = keys * (strength * inverse_length(keys))[..., None]
    return torch.bmm(keys, memory.mT) * inverse_length(memory)[:, None]


def _chosen(
    fresh: Bool[Tensor, " batch"], start: Mapping[str, Tensor], held: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    return {
        name: torch.where(fresh.view(-1, *[1] * (value.ndim - 1)), start[name], value)
        for name, value in held.items()
    }


def _lstm(
    gates: Float[Tensor, "batch gates"], cell: Float[Tensor, "batch hidden"]
) -> tuple[Float[Tensor, "batch hidden"], Float[Tensor, "batch hidden"]]:
    """Hidden state and cell from the gates' arguments: input, forget, output and candidate."""
    width = cell.shape[1]
    admit, keep, show = torch.sigmoid(gates[:, : 3 * width]).chunk(3, 1)
    cell = torch.addcmul(keep * cell, admit, torch.tanh(gates[:, 3 * width :]))
    return show * torch.tanh(cell), cell
