"""Neural Turing machine: heads that find rows by content or by moving on from where they were."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mann.networks.base import MOST_STRENGTH, MemoryNetwork, at_least_one, content_scores
from mann.readout import Readout, SoftmaxReadout

# Beyond it sharpening is one-hot in float32.
MOST_SHARPNESS = 100.0
# Weight below which sharpening sees none: what it takes the logarithm of.
NO_WEIGHT = 1e-8
# The initial memory: so little that every row counts as empty.
INITIAL = 1e-6


class NTM(MemoryNetwork):
    r"""Neural Turing machine: a controller with heads on a memory of ``n_rows`` rows.

    Each head turns what the controller says into weights over the rows, by content, then by place:

    .. math::
        w^c = \mathrm{softmax}_i(\beta \cos(k, M_i)), \quad
        w^g = g w^c + (1 - g) w_{t-1}, \quad
        \tilde w_i = \sum_j s_j \, w^g_{(i - j) \bmod N}, \quad
        w_i = \tilde w_i^\gamma / \textstyle\sum_j \tilde w_j^\gamma

    with strength :math:`\beta`, gate :math:`g`, shift :math:`s` (a distribution over moves of up to ``shifts`` rows)
    and sharpness :math:`\gamma \ge 1`. All heads look at the memory before this step; write heads erase and add, and
    read heads read what then is there:

    .. math::
        M_t = M_{t-1} \prod_h (1 - w_h e_h^\top) + \sum_h w_h a_h^\top, \qquad r_h = w_h^\top M_t

    Every head begins at row 0, for on a circle one row is as good as another, and the memory is constant, from which
    Collier and Beel found it to learn fastest. Strengths begin at about :math:`\log N`, with which a row that fits has
    half of the weight if all others are empty. Parameters do not depend on ``n_rows``.

    References:
        Graves et al., "Neural Turing machines", 2014. arXiv:1410.5401;
        Collier and Beel, "Implementing neural Turing machines", 2018. arXiv:1807.08518.

    Args:
        vocab_size: Number of tokens.
        d_model: Width of embeddings, and of what the readout sees.
        d_hidden: Width of the controller.
        n_rows: Rows of the memory.
        d_row: Numbers of a row.
        n_read: Read heads.
        n_write: Write heads.
        shifts: Rows that a head can move by in one step, either way.
        readout: ``readout(d_model, vocab_size)``.
        controller: ``"lstm"``, or ``"feedforward"``, which remembers nothing but what the memory holds.
        cell_noise: Of the LSTM in training; see :class:`~mann.networks.MemoryNetwork`.

    Shapes:
        tokens: ``[batch, time]``; output: log-probabilities ``[batch, time, vocab]``.

    Raises:
        ValueError: If a size is smaller than 1, or a head could move all around the memory.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 32,
        d_hidden: int = 100,
        n_rows: int = 128,
        d_row: int = 20,
        n_read: int = 1,
        n_write: int = 1,
        shifts: int = 1,
        readout: Callable[[int, int], Readout] = SoftmaxReadout,
        controller: str = "lstm",
        cell_noise: float = 0.0,
    ) -> None:
        at_least_one(n_rows=n_rows, d_row=d_row, n_read=n_read, n_write=n_write)
        if not 0 <= 2 * shifts < n_rows:
            raise ValueError(f"shifts={shifts} of {n_rows} rows: give 0 to {(n_rows - 1) // 2}")
        super().__init__(vocab_size, d_model, d_hidden, n_read * d_row, readout, controller, cell_noise)
        self.n_rows, self.d_row, self.n_read, self.n_write = n_rows, d_row, n_read, n_write
        self.shifts = shifts
        heads = n_read + n_write
        # Parts that go through the same function stand together: tanh, sigmoid, softplus, softmax.
        self.parts = [
            (heads + n_write) * d_row,
            n_write * d_row + heads,
            2 * heads,
            heads * (2 * shifts + 1),
        ]
        self.heads = nn.Linear(d_hidden, sum(self.parts))
        with torch.no_grad():
            # As strong as it takes to give a row that fits half of the weight, if all others are empty.
            strength = self.heads.bias[sum(self.parts[:2]) :][:heads]
            strength += math.log(n_rows)

    def start(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        weights = F.pad(like.new_ones(1), (0, self.n_rows - 1))
        return {
            "memory": like.new_full((), INITIAL).expand(batch, self.n_rows, self.d_row),
            "weights": weights.expand(batch, self.n_read + self.n_write, -1),
        }

    def access(
        self, hidden: Float[Tensor, "batch hidden"], memory: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "batch read"], dict[str, Tensor]]:
        rows, heads = memory["memory"], self.n_read + self.n_write
        vectors, gates, strengths, moves = self.heads(hidden).split(self.parts, 1)
        vectors = torch.tanh(vectors).view(-1, heads + self.n_write, self.d_row)
        keys, added = vectors.split([heads, self.n_write], 1)
        erased, mixed = torch.sigmoid(gates).split([self.n_write * self.d_row, heads], 1)
        strength, sharpness = F.softplus(strengths).chunk(2, 1)
        moves = torch.softmax(moves.view(-1, heads, 2 * self.shifts + 1), -1)

        content = torch.softmax(content_scores(keys, rows, strength.clamp(max=MOST_STRENGTH)), -1)
        weights = torch.lerp(memory["weights"], content, mixed[..., None])
        weights = sharpen(circular_shift(weights, moves), 1 + sharpness.clamp(max=MOST_SHARPNESS))
        writing, reading = weights.split([self.n_write, self.n_read], 1)
        rows = erase_and_add(rows, writing, erased.view(-1, self.n_write, self.d_row), added)
        read = torch.bmm(reading, rows).flatten(1)
        return read, {"memory": rows, "weights": weights}


def circular_shift(
    weights: Float[Tensor, "batch heads rows"], moves: Float[Tensor, "batch heads places"]
) -> Float[Tensor, "batch heads rows"]:
    """Weights moved around the circle of rows by each possible move, and averaged.

    Args:
        weights: Over the rows.
        moves: How likely each move is, from as far back as possible to as far on.

    Shapes:
        weights and output: ``[batch, heads, rows]``; moves: ``[batch, heads, places]``, an odd number of places.
    """
    rows, reach = weights.shape[-1], moves.shape[-1] // 2
    if not reach:
        return weights
    around = torch.cat([weights[..., -reach:], weights, weights[..., :reach]], -1)
    total = None
    for place, move in enumerate(moves.split(1, -1)):
        # A move by n takes the weight from n rows before.
        begin = 2 * reach - place
        part = around[..., begin : begin + rows]
        total = part * move if total is None else torch.addcmul(total, part, move)
    return weights if total is None else total


def sharpen(
    weights: Float[Tensor, "batch heads rows"], sharpness: Float[Tensor, "batch heads"]
) -> Float[Tensor, "batch heads rows"]:
    """Weights to a power, adding up to one again; in logarithms, where no power is too small.

    Args:
        weights: Over the rows.
        sharpness: The power.

    Shapes:
        weights and output: ``[batch, heads, rows]``; sharpness: ``[batch, heads]``.
    """
    return torch.softmax(torch.log(weights + NO_WEIGHT) * sharpness[..., None], -1)


def erase_and_add(
    rows: Float[Tensor, "batch rows width"],
    weights: Float[Tensor, "batch heads rows"],
    erased: Float[Tensor, "batch heads width"],
    added: Float[Tensor, "batch heads width"],
) -> Float[Tensor, "batch rows width"]:
    """The memory after all heads have erased, and then added.

    Args:
        rows: The memory.
        weights: Of each head over the rows.
        erased: Share of each number that a head takes away where its weight is one.
        added: What it adds there.

    Shapes:
        rows and output: ``[batch, rows, width]``; weights: ``[batch, heads, rows]``; erased and added: ``[batch, heads,
        width]``.
    """
    for head in range(weights.shape[1]):
        share = torch.bmm(weights[:, head, :, None], erased[:, head, None])
        rows = torch.addcmul(rows, rows, share, value=-1)
    return torch.baddbmm(rows, weights.mT, added)
