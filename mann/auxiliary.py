"""Terms of the training loss that are not of the text: a module says its own, whoever trains adds them."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Auxiliary", "auxiliary_loss"]


class Auxiliary(ABC):
    """Mixed into a module that wants something of its parameters or of its last forward pass besides a good text.

    :class:`~mann.LanguageModule` adds it to what it minimises, and to no loss that it reports or by which a model is
    scored. Whoever writes the training loop adds :func:`auxiliary_loss` of the network.
    """

    @abstractmethod
    def auxiliary_loss(self) -> Float[Tensor, ""]:
        """What is added to the mean loss of a token, weighted already."""


def auxiliary_loss(network: nn.Module) -> Float[Tensor, ""] | None:
    """The sum over all modules of a network that are :class:`Auxiliary`; ``None`` if none is.

    Args:
        network: Any.
    """
    terms = [module.auxiliary_loss() for module in network.modules() if isinstance(module, Auxiliary)]
    return sum(terms[1:], terms[0]) if terms else None
