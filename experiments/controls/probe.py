"""The copying probe: has a model learned to repeat what it has just read?"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Nll = Callable[[Int[Tensor, "batch time"], Int[Tensor, "batch time"]], Float[Tensor, "batch time"]]


@dataclass(frozen=True)
class Copying:
    """Mean nats per token on the two copies of random strings; the second is low when the model copies.

    Args:
        first: on the first copy, which nothing can predict.
        second: on the second, which is known word for word.
    """

    first: float
    second: float

    def to_dict(self) -> dict[str, float]:
        """As it stands in a line of results."""
        return {"first": self.first, "second": self.second}


@torch.no_grad()
def copying(
    nll: Nll,
    vocab_size: int,
    *,
    length: int = 120,
    n_strings: int = 32,
    batch_size: int = 8,
    seed: int = 0,
) -> Copying:
    """Read random strings twice and compare, as for induction heads.

    `In-context Learning and Induction Heads <https://arxiv.org/abs/2209.11895>`_. The strings are drawn
    evenly from all tokens but the marker, which stands before each; their generator is their own.

    Args:
        nll: from tokens and targets to the negative log-probability of each target.
        vocab_size: the number of tokens.
        length: tokens in a string; a model sees twice as many positions.
        n_strings: how many strings.
        batch_size: how many at once.
        seed: of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    strings = torch.randint(1, vocab_size, (n_strings, length), generator=generator)
    stream = torch.cat([torch.zeros(n_strings, 1, dtype=torch.int64), strings, strings], dim=1)
    sums = torch.zeros(2, dtype=torch.float64)
    for rows in stream.split(batch_size):
        losses = nll(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()).detach().double().cpu()
        if losses.shape != (len(rows), 2 * length):
            raise ValueError(f"nll gave shape {tuple(losses.shape)}, not {(len(rows), 2 * length)}")
        sums += torch.stack([losses[:, :length].sum(), losses[:, length:].sum()])
    first, second = (sums / (n_strings * length)).tolist()
    return Copying(first, second)
