"""One forward pass of a model with something attached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mann.attachment.history import History, history_of, reach
from mann.context import Context

__all__ = ["Call", "begin"]


@dataclass
class Call:
    """What slots may look at in this forward pass, and what they leave for the next.

    Args:
        tokens: Those that a cache holds, and the new ones.
        labels: Document of each; ``None``: one for each row.
        time: How many are new.
        history: What was read before.
        context: One for the new tokens, if there is one already.
        targets: Tokens to be scored, if there are any.

    Shapes:
        tokens and labels: ``[batch, all]``; targets: ``[batch, time]``.
    """

    tokens: Int[Tensor, "batch all"]
    labels: Int[Tensor, "batch all"] | None
    time: int
    history: History | None = None
    context: Context | None = None
    targets: Int[Tensor, "batch time"] | None = None
    states: dict[str, Tensor] = field(default_factory=dict)
    final: Tensor | None = None
    loss: Tensor | None = None
    _contexts: dict[tuple[int, torch.device], Context] = field(default_factory=dict)

    def context_of(self, time: int, device: torch.device) -> Context:
        """That of the last positions."""
        if self.context is not None and device == self.tokens.device:
            return self.context
        key = (time, device)
        if key not in self._contexts:
            labels = None if self.labels is None else self.labels[:, -time:].to(device)
            self._contexts[key] = Context(self.tokens[:, -time:].to(device), labels)
        return self._contexts[key]

    def widen(
        self, name: str, module: nn.Module, x: Float[Tensor, "batch time width"], asked: int
    ) -> Float[Tensor, "batch more width"]:
        """The states a part needs for what it says at the last positions, those in front of them included.

        Args:
            name: Of the part.
            module: The part.
            x: States of the new positions.
            asked: How many of the last positions are asked for.

        Shapes:
            x: ``[batch, time, width]``; output: ``[batch, more, width]``.
        """
        back = 0 if name.startswith("feedforward") else reach(module)
        if self.context is not None:
            return x
        if back is not None:
            # Of earlier positions it needs tokens alone: what it says there is not used.
            more = min(back, self.tokens.shape[1] - asked)
            return F.pad(x[:, -asked:], (0, 0, more, 0))
        if self.history is not None:
            x = torch.cat([self.history.states[name].to(x), x], 1)
        self.states[name] = x
        return x

    def read(self) -> History:
        """All there is now."""
        return History(self.tokens, self.labels, self.states)


def begin(given: Mapping[str, Any]) -> Call:
    """Takes note of what a model is called with.

    Args:
        given: Arguments of its forward pass that are not None.

    Raises:
        ValueError: If they do not say what the tokens are.
    """
    tokens = given.get("input_ids")
    if tokens is None or "inputs_embeds" in given:
        raise ValueError("memories look tokens up: give input_ids, not inputs_embeds")
    for name in ("cache_params", "state"):
        if name in given:
            raise ValueError(
                f"a memory cannot follow {name}, which says nothing of tokens: give use_cache=False"
            )
    history = history_of(given.get("past_key_values"), len(tokens))
    time = tokens.shape[1]
    if history is not None:
        tokens = torch.cat([history.tokens.to(tokens.device), tokens], 1)
    return Call(tokens, _labels(given, tokens, history), time, history)


def _labels(given: Mapping[str, Any], tokens: Tensor, history: History | None) -> Tensor | None:
    """Padding is a document of its own, and so is what begins anew with its positions, as transformers has it."""
    mask, places = given.get("attention_mask"), given.get("position_ids")
    if mask is not None:
        if not isinstance(mask, Tensor) or tuple(mask.shape) != tuple(tokens.shape):
            shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(
                f"attention_mask must be {tuple(tokens.shape)}, one number for each token and those in the cache, got "
                f"{shape}: documents in one row are told by position_ids that begin anew, without a mask"
            )
        change = mask[:, 1:] != mask[:, :-1]
    elif history is not None:
        if history.labels is None:
            return None
        more = tokens.shape[1] - history.labels.shape[1]
        return torch.cat([history.labels, history.labels[:, -1:].expand(-1, more)], 1)
    elif isinstance(places, Tensor) and places.ndim == 2:
        change = places.expand(len(tokens), -1).diff(dim=1) != 1
    else:
        return None
    return F.pad(change.cumsum(1), (1, 0)).to(tokens.device) if change.any() else None
