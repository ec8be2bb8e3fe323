"""Engram: hashed n-grams of compressed tokens, gated by how well they match the state of the network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mann.context import Context
from mann.gates import Gate
from mann.linear import Linear
from mann.memory.base import Memory
from mann.norm import rms_norm
from mann.shift import tokens_before
from mann.state import Streaming
from mann.tokenizer_compression import TokenizerCompression

# Whoever changes what a row number is computed from makes every saved table meaningless, and must count this up.
HASH_VERSION = 1
SEED_STEP = 10_007
# Below this a score counts as this much under the square root, whose slope has no bound.
LEAST_SCORE = 1e-6


class Engram(Streaming, Memory):
    r"""Embeddings of the last :math:`n` tokens, found by hashing, added as far as the state asks for them.

    With :math:`x'` the compressed tokens (before the document began: the marker), odd multipliers :math:`m` of the
    layer, and a prime :math:`p_{n,j}` of its own for each order :math:`n` and head :math:`j`,

    .. math::
        i_{n,j} = \Big(\bigoplus_{k<n} m_k \, x'_{t-k}\Big) \bmod p_{n,j}, \qquad
        e_t = \big\Vert_{n,j} E_{n,j}[i_{n,j}], \qquad
        s_t = \tfrac{1}{\sqrt d} \big\langle g \odot \widehat{W_K e_t}, \hat h_t \big\rangle

    .. math::
        \alpha_t = \sigma\big(\operatorname{sign}(s_t) \sqrt{|s_t|}\big) \ \text{ or } \ \sigma(s_t), \qquad
        \tilde v_t = \alpha_t W_V e_t, \qquad
        u_t = \tilde v_t + \operatorname{SiLU}\Big(\sum_{k<K} c_k \odot \hat{\tilde v}_{t - k n_{\max}}\Big)

    The square root is in the released code and not in the paper's formula. The gain :math:`g` is the product of those
    of the two normalisations; that of the third is part of the taps :math:`c`. :math:`W_V` and the taps start at
    zero, so the memory starts as a no-op. Shifts and convolution stay inside a document; a :class:`~mann.State` carries
    the last tokens and what the convolution reaches back to. Residual streams of several branches are not provided for.

    Every layer has its own multipliers, and no prime serves twice in a model, so each must know which layer it is:
    :meth:`at_layers` tells them.

    References:
        Cheng et al., "Conditional Memory via Scalable Lookup" (Engram), 2026. arXiv:2601.07372;
        Huang et al., "Over-Tokenized Transformer", 2025. arXiv:2501.16975.

    Args:
        d_model: Width of the residual stream.
        orders: Lengths of the n-grams.
        n_heads: Hash functions per order.
        n_rows: Least number of rows of each order and head; the primes begin there.
        d_row: Numbers per row.
        layer: Which layer of the model this is.
        layers: All layers of the model that have such a memory; by default all up to this one.
        compression: Which tokens count as the same; by default each is for itself.
        vocab_size: Number of tokens where no compression tells it.
        marker: Token that stands before a document begins.
        gate: ``"sqrt"`` as in the released code, ``"plain"`` as in the paper.
        kernel: Taps of the convolution; 0 leaves it out.
        seed: Of the multipliers.
        sparse: Give the table row-sparse gradients, so that a step costs what it touches.
        table: ``table(n_rows, d_row)``, called as ``table(rows)``, if it shall be another than ``nn.Embedding``.

    Shapes:
        input and output: ``[batch, time, width]``.

    Raises:
        ValueError: If sizes make no table, the gate is unknown, or a state of another tokenizer is loaded.
    """

    multipliers: Tensor
    primes: Tensor
    offsets: Tensor
    compressed: Tensor

    def __init__(
        self,
        d_model: int,
        orders: Sequence[int] = (2, 3),
        n_heads: int = 2,
        n_rows: int = 2**16,
        d_row: int = 16,
        *,
        layer: int = 0,
        layers: Sequence[int] | None = None,
        compression: TokenizerCompression | None = None,
        vocab_size: int = 2**16,
        marker: int = 0,
        gate: str = "sqrt",
        kernel: int = 4,
        seed: int = 0,
        sparse: bool = True,
        table: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        layers = tuple(range(layer + 1)) if layers is None else tuple(sorted(layers))
        _check(orders, n_heads, n_rows, layer, layers, gate, kernel)
        compression = TokenizerCompression.identity(vocab_size) if compression is None else compression
        if not 0 <= marker < len(compression.ids):
            raise ValueError(f"marker {marker} is none of {len(compression.ids)} tokens: give one of them")
        self.orders, self.n_heads, self.gate, self.kernel = tuple(orders), n_heads, gate, kernel
        self.opened = Gate()
        self.marker, self.compression = int(compression.ids[marker]), compression
        primes = head_primes(n_rows, len(orders) * n_heads, layers.index(layer))
        # From lists, so that the device of the context holds for buffers too.
        multipliers = hash_multipliers(max(orders), compression.size, layer, seed)
        self.register_buffer("multipliers", torch.tensor(multipliers))
        self.register_buffer("primes", torch.tensor(primes))
        self.register_buffer("offsets", torch.tensor([sum(primes[:slot]) for slot in range(len(primes))]))
        ids = [] if compression.is_identity else compression.ids.tolist()
        self.register_buffer("compressed", torch.tensor(ids, dtype=torch.int64), persistent=False)
        if table is None:
            self.table: nn.Module = nn.Embedding(sum(primes), d_row, sparse=sparse)
            nn.init.normal_(self.table.weight, std=0.02)
        else:
            self.table = table(sum(primes), d_row)
        # Keys and values in one product.
        self.read = Linear(len(primes) * d_row, 2 * d_model)
        self.read.weight.matrices = 2  # type: ignore[attr-defined]
        self.gain = nn.Parameter(torch.ones(d_model))
        self.taps = nn.Parameter(torch.zeros(kernel, d_model)) if kernel else None
        nn.init.zeros_(self.read.weight[d_model:])

    @classmethod
    def at_layers(cls, layers: Sequence[int], **settings: Any) -> dict[int, Callable[[int], Engram]]:
        """One memory for each of these layers, for ``Transformer(memory=...)``, each knowing which it is.

        Args:
            layers: Layers before which a memory is added.
            settings: As the constructor takes them.
        """
        return {layer: partial(cls, layer=layer, layers=tuple(layers), **settings) for layer in layers}

    def rows(self, context: Context) -> Int[Tensor, "batch time slots"]:
        """The table rows that each position reads, one per order and hash head."""
        ids = self.compressed if len(self.compressed) else None
        tokens = tokens_before(context, max(self.orders) - 1, self.marker, ids)
        mixed = tokens[0] * self.multipliers[0]
        found = {1: mixed}
        for back, earlier in enumerate(tokens[1:], 1):
            mixed = mixed ^ (earlier * self.multipliers[back])
            found[back + 1] = mixed
        hashes = torch.stack([found[order] for order in self.orders], -1)
        primes = self.primes.view(len(self.orders), self.n_heads)
        return (hashes[..., None] % primes).flatten(2) + self.offsets

    def look_up(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> tuple[Float[Tensor, "batch time 1"], Float[Tensor, "batch time width"]]:
        """How far the gate of each position is open, and what it lets through when it is.

        Shapes:
            x: ``[batch, time, width]``; gate: ``[batch, time, 1]``; values: ``[batch, time, width]``.
        """
        read = self.table(self.rows(context)).flatten(2).to(x.dtype)
        key, value = self.read(read).chunk(2, -1)
        gain = (self.gain * x.shape[-1] ** -0.5)[:, None]
        score = (rms_norm(key) * rms_norm(x)) @ gain.to(x.dtype)
        if self.gate == "sqrt":
            score = score.sign() * score.abs().clamp_min(LEAST_SCORE).sqrt()
        return self.opened(score), value

    def forward(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> Float[Tensor, "batch time width"]:
        gate, value = self.look_up(x, context)
        update = gate * value
        if self.taps is None:
            return update
        normal, labels, dilation = rms_norm(update), context.documents, max(self.orders)
        held = 0 if context.state is None else (self.kernel - 1) * dilation
        if context.state is not None and held:
            start = {"normal": normal.new_zeros(()).expand(len(x), held, x.shape[-1])}
            before = context.state.read(self, start)["normal"].to(normal.dtype)
            normal = torch.cat([before, normal], 1)
            # What is held of another document is 0, which says nothing to anyone.
            labels = None if labels is None else F.pad(labels, (held, 0))
            left = normal[:, -held:]
            if labels is not None:
                left = left * (labels == labels[:, -1:])[:, -held:, None]
            context.state.write(self, normal=left)
        inside = None
        if labels is not None:
            inside = [_same(labels, tap * dilation) for tap in range(self.kernel)]
        mixed = _Convolution.apply(normal, self.taps.to(normal.dtype), dilation, inside)
        return update + F.silu(mixed[:, held:])

    def get_extra_state(self) -> Tensor:
        """What the rows were hashed from, as the bytes of a JSON text."""
        about = {
            "hash": HASH_VERSION,
            "fingerprint": self.compression.fingerprint,
            "vocab": self.compression.size,
        }
        return torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse what was hashed from other tokens."""
        about = json.loads(bytes(state.tolist()))
        if about["hash"] != HASH_VERSION:
            raise ValueError(
                f"a table of hash version {about['hash']}, this is version {HASH_VERSION}: train it anew, or load it "
                "with the version that wrote it"
            )
        ours = self.compression
        if (about["fingerprint"], about["vocab"]) != (ours.fingerprint, ours.size):
            raise ValueError(
                f"a table of another tokenizer: its rows were hashed from {about['vocab']} compressed tokens "
                f"({about['fingerprint'][:12]}), here are {ours.size} ({ours.fingerprint[:12]}): give the compression "
                "of the tokenizer it was trained with"
            )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        # Asked first: a table that is refused is not loaded either.
        if f"{prefix}_extra_state" in state_dict:
            self.set_extra_state(state_dict[f"{prefix}_extra_state"])
        super()._load_from_state_dict(state_dict, prefix, *others)


def _check(
    orders: Sequence[int],
    n_heads: int,
    n_rows: int,
    layer: int,
    layers: Sequence[int],
    gate: str,
    kernel: int,
) -> None:
    if not orders or min(orders) < 1 or len(set(orders)) < len(orders):
        raise ValueError(
            f"orders must hold different positive n-gram lengths, got {tuple(orders)}: try (2, 3)"
        )
    if n_heads < 1 or n_rows < 2:
        raise ValueError(f"n_heads={n_heads} of n_rows={n_rows}: give at least 1 head and 2 rows")
    if layer < 0 or layer not in layers or len(set(layers)) < len(layers):
        raise ValueError(f"layer {layer} must be one of layers={tuple(layers)}, each named once")
    if gate not in ("sqrt", "plain"):
        raise ValueError(f'gate must be "sqrt" or "plain", got {gate!r}')
    if kernel < 0:
        raise ValueError(f"kernel={kernel}: give the number of taps, or 0 for no convolution")


def hash_multipliers(count: int, vocab_size: int, layer: int, seed: int = 0) -> list[int]:
    """The odd multipliers of a layer, so small that no product with a token is wider than 63 bits.

    Args:
        count: Length of the longest n-gram.
        vocab_size: Number of (compressed) tokens.
        layer: Which layer of the model.
        seed: Of all layers.
    """
    bound = max(1, (2**63 - 1) // vocab_size // 2)
    drawn = np.random.default_rng(seed + SEED_STEP * layer).integers(0, bound, count, dtype=np.int64)
    return [2 * number + 1 for number in drawn.tolist()]


def head_primes(n_rows: int, count: int, place: int) -> list[int]:
    """``count`` primes from ``n_rows`` on, after those of the ``place`` layers before.

    Args:
        n_rows: The first prime is at least this.
        count: Orders times heads of a layer.
        place: Layers before this one that have as many.
    """
    primes = _primes(n_rows)
    taken = [next(primes) for _ in range(count * (place + 1))]
    return taken[-count:]


def _primes(start: int) -> Iterator[int]:
    number = start
    while True:
        if _is_prime(number):
            yield number
        number += 1


def _is_prime(number: int) -> bool:
    """Miller and Rabin's test, with bases that leave no doubt below 3e24."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
    if number < 2 or any(number % base == 0 for base in bases):
        return number in bases
    odd = number - 1
    twos = (odd & -odd).bit_length() - 1
    odd >>= twos
    for base in bases:
        power = pow(base, odd, number)
        if power not in (1, number - 1) and not any(
            pow(base, odd << square, number) == number - 1 for square in range(1, twos)
        ):
            return False
    return True


class _Convolution(torch.autograd.Function):
    # Torch's convolution wants channels before time, and cannot stop at the end of a document.
    @staticmethod
    def forward(ctx, x: Tensor, taps: Tensor, dilation: int, inside: list[Tensor] | None):  # type: ignore[override]
        ctx.save_for_backward(x, taps)
        ctx.dilation, ctx.inside = dilation, inside
        y = x * taps[0]
        for tap, back in _reaching(taps, dilation, x.shape[1]):
            y[:, back:].addcmul_(_within(x[:, :-back], inside, tap, back), taps[tap])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, taps = ctx.saved_tensors
        grad_x = grad * taps[0]
        grad_taps = torch.zeros_like(taps)
        grad_taps[0] = (grad * x).sum((0, 1))
        for tap, back in _reaching(taps, ctx.dilation, x.shape[1]):
            later = _within(grad[:, back:], ctx.inside, tap, back)
            grad_x[:, :-back].addcmul_(later, taps[tap])
            grad_taps[tap] = (later * x[:, :-back]).sum((0, 1))
        return grad_x, grad_taps, None, None


def _same(labels: Tensor, back: int) -> Tensor:
    """True where the position so far back has the same label; the first have none."""
    same = F.pad(labels[:, back:] == labels[:, : max(0, labels.shape[1] - back)], (back, 0))
    return same[:, : labels.shape[1]]


def _reaching(taps: Tensor, dilation: int, time: int) -> list[tuple[int, int]]:
    """The taps after the first that reach anything, and how far back."""
    return [(tap, tap * dilation) for tap in range(1, len(taps)) if tap * dilation < time]


def _within(x: Tensor, inside: list[Tensor] | None, tap: int, back: int) -> Tensor:
    return x if inside is None else x.masked_fill(~inside[tap][:, back:, None], 0)
