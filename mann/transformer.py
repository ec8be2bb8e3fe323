"""The backbone and its four kinds of slot."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from mann.context import Context
from mann.feedforward import ReluSquared
from mann.language_model import LanguageModel
from mann.memory.base import Memory
from mann.mixer import CausalAttention
from mann.norm import rms_norm
from mann.readout import Readout, SoftmaxReadout
from mann.state import Streaming


class Block(nn.Module):
    r"""One layer of the backbone, each part of it a slot.

    .. math:: x \leftarrow x + \mathrm{mixer}(\hat x), \qquad x \leftarrow x + \mathrm{feedforward}(\hat x)

    Args:
        d_model: Width of the residual stream.
        mixer: How positions exchange.
        feedforward: What each position computes alone; called as ``feedforward(x, context)`` where it takes a context,
            as ``feedforward(x)`` where it does not.

    Shapes:
        input and output: ``[batch, time, width]``.
    """

    def __init__(self, d_model: int, mixer: nn.Module, feedforward: nn.Module) -> None:
        super().__init__()
        self.d_model = d_model
        self.mixer = mixer
        self.feedforward = feedforward
        self._asks = "context" in inspect.signature(feedforward.forward).parameters

    def forward(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> Float[Tensor, "batch time width"]:
        x = x + self.mixer(rms_norm(x), context)
        if self._asks:
            return x + self.feedforward(rms_norm(x), context)
        return x + self.feedforward(rms_norm(x))


class Transformer(LanguageModel):
    r"""A causal transformer whose parts are slots; the defaults are the dense baseline.

    Args:
        vocab_size: Number of tokens.
        d_model: Width of the residual stream.
        n_layers: Number of blocks.
        n_heads: Attention heads; the default gives heads of width 32.
        mixer: ``mixer(d_model, n_heads)``, called as ``mixer(x, context)``.
        feedforward: ``feedforward(d_model)``, called as ``feedforward(x)``, or as ``feedforward(x, context)`` if it
            takes a context.
        mixer_at: Layer number -> mixer of that block, in place of ``mixer``.
        feedforward_at: Layer number -> feedforward of that block, in place of ``feedforward``.
        memory: Layer number -> ``memory(d_model)``; its update is added *before* that block, and the key
            ``n_layers`` stands for "before the readout".
        readout: ``readout(d_model, vocab_size)``.

    Shapes:
        tokens: ``[batch, time]``; output: log-probabilities ``[batch, time, vocab]``.

    Raises:
        ValueError: If a memory is asked for at a layer that does not exist, or a size makes no model.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        n_layers: int,
        n_heads: int | None = None,
        *,
        mixer: Callable[[int, int], nn.Module] = CausalAttention,
        feedforward: Callable[[int], nn.Module] = ReluSquared,
        mixer_at: Mapping[int, Callable[[int, int], nn.Module]] | None = None,
        feedforward_at: Mapping[int, Callable[[int], nn.Module]] | None = None,
        memory: Mapping[int, Callable[[int], Memory]] | None = None,
        readout: Callable[[int, int], Readout] = SoftmaxReadout,
    ) -> None:
        super().__init__()
        if min(vocab_size, d_model) < 1:
            raise ValueError(f"vocab_size={vocab_size} and d_model={d_model} must both be at least 1")
        memory = dict(memory or {})
        unknown = [layer for layer in memory if not 0 <= layer <= n_layers]
        if unknown:
            raise ValueError(
                f"memory at layers {unknown}, but the model has blocks 0..{n_layers - 1} "
                f"(and {n_layers} means before the readout)"
            )
        mixers = _by_layer("mixer_at", mixer_at, mixer, n_layers)
        feedforwards = _by_layer("feedforward_at", feedforward_at, feedforward, n_layers)
        heads = n_heads if n_heads is not None else max(1, d_model // 32)
        self.vocab_size = vocab_size
        self.d_model = d_model
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.blocks = nn.ModuleList(
            Block(d_model, mix(d_model, heads), feed(d_model))
            for mix, feed in zip(mixers, feedforwards, strict=True)
        )
        self.readout = readout(d_model, vocab_size)
        # Built last, so that every arm of one seed draws the same initial backbone.
        self.memory = nn.ModuleDict({str(layer): build(d_model) for layer, build in sorted(memory.items())})
        for name, module in self.named_modules():
            if isinstance(module, Streaming):
                module.state_key = name

    def hidden(self, context: Context) -> Float[Tensor, "batch time width"]:
        """The normalised state that the readout sees."""
        x = rms_norm(self.embedding(context.tokens)).to(self.embedding.weight.dtype)
        for layer, block in enumerate(self.blocks):
            x = block(self._remember(layer, x, context), context)
        x = self._remember(len(self.blocks), x, context)
        return rms_norm(x)

    def _remember(self, layer: int, x: Tensor, context: Context) -> Tensor:
        key = str(layer)
        return x + self.memory[key](x, context) if key in self.memory else x


def _by_layer(name: str, given: Mapping[int, Any] | None, default: Any, n_layers: int) -> list[Any]:
    """What builds a slot of each block."""
    given = dict(given or {})
    unknown = [layer for layer in given if not 0 <= layer < n_layers]
    if unknown:
        raise ValueError(f"{name} has layers {unknown}, but the model has blocks 0..{n_layers - 1}")
    return [given.get(layer, default) for layer in range(n_layers)]
