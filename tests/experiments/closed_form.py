"""What one training step costs, worked out by hand: the exact integers that the ledger must arrive at.

Each function is one part of a model and says what that part adds to a step: to the forward pass, to the backward pass,
and to the optimizer, which trains its weights; matrix products (``products``) apart from all other arithmetic
(``rest``). It follows the part's code line by line, and knows nothing of torch. A model is the sum of its parts: those
of the dense transformer are here, those of arms with a memory in ``closed_form_memory.py``.

Prices (docs/counting.md): a multiply-add is 2, any other operation 1 a number that comes out. Of numbers that go in: a
sum, a mean or a maximum 1, softmax 5, its gradient 4, logsumexp 4, the length of a vector 2 and 1 for the root. SiLU is
2, its gradient 6, lerp 3, logaddexp 5, AdamW 13 without decay. A factor written into a sum (alpha, beta, value) is 1,
one of -1 nothing. Copies, gathers, casts, comparisons and selections are free.

Letters: n tokens of a step (batch · time), d width, h heads, v vocabulary, k neighbours of a token. The rule of thumb
"6 · weights · tokens" is in ``linear``: 2 forward, 4 backward.
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCK = 64  # queries that attention takes at once
NEWTON_SCHULZ = 3  # iterations of Muon


@dataclass(frozen=True)
class Work:
    """FLOPs of matrix products, and of everything else."""

    products: int = 0
    rest: int = 0

    @property
    def flops(self) -> int:
        return self.products + self.rest

    def __add__(self, other: Work) -> Work:
        return Work(self.products + other.products, self.rest + other.rest)

    def __mul__(self, times: int) -> Work:
        return Work(self.products * times, self.rest * times)


@dataclass(frozen=True)
class Step:
    """One training step, by phase; inference is its forward pass."""

    forward: Work = Work()
    backward: Work = Work()
    optimizer: Work = Work()

    @property
    def total(self) -> Work:
        return self.forward + self.backward + self.optimizer

    def __add__(self, other: Step) -> Step:
        both = zip(vars(self).values(), vars(other).values(), strict=True)
        return Step(*(one + another for one, another in both))

    def __mul__(self, times: int) -> Step:
        return Step(self.forward * times, self.backward * times, self.optimizer * times)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model and of a batch of one document a row; heads are 32 wide unless told otherwise."""

    vocab: int
    width: int
    layers: int = 2
    batch: int = 8
    time: int = 256
    k: int = 16
    heads: int | None = None

    @property
    def tokens(self) -> int:
        return self.batch * self.time

    @property
    def n_heads(self) -> int:
        return self.heads or max(1, self.width // 32)


def muon(rows: int, columns: int) -> Step:
    """``Muon`` on one matrix, lying on its longer side: momentum, and Newton-Schulz in gram matrices A = X Xᵀ."""
    r, c = sorted((rows, columns))
    gram, square, product = 2 * r * r * c, 2 * r * r * r, 2 * r * r * c
    mixed = 3 * r * r + 2 * r * c  # b A + c A A: two factors, a sum; a X + (..) X: a factor, a sum
    once = r * c * (1 + 1 + 2)  # M decays, takes in the gradient; the gradient plus a share of M
    once += r * c * 2 + 1 + 1 + r * c  # its length, plus epsilon; divided by it
    once += r * c * 2  # added to the weight at a rate
    return Step(optimizer=Work(gram + square + product, mixed) * NEWTON_SCHULZ + Work(rest=once))


def adam(*weights: int) -> Step:
    """AdamW on parameters of so many numbers each: embeddings, the head, whatever is no matrix of a layer."""
    return Step(optimizer=Work(rest=sum(13 * numbers + 1 for numbers in weights)))  # 1: each counts its steps


def row_adam(named: int, distinct: int, width: int) -> Step:
    """Adam on the rows a step has named: their gradients are added up, then each distinct row moves once."""
    return Step(optimizer=Work(rest=named * width + distinct * width * 13))


def product(n: int, into: int, out: int, bias: bool = False) -> Step:
    """A linear map: one product forward, two backward; a bias is added to each output and its gradient summed."""
    once = Work(2 * n * into * out)
    shift = Work(rest=n * out * bias)
    return Step(once + shift, once * 2 + shift)


def linear(n: int, into: int, out: int, matrices: int = 1) -> Step:
    """A linear map whose weight Muon trains, as so many matrices one below the other."""
    return product(n, into, out) + muon(out // matrices, into) * matrices


def norm(n: int, d: int) -> Step:
    """``rms_norm`` of n vectors."""
    forward = n * d * (1 + 1) + n * (1 + 1)  # mean of squares; plus epsilon, one over the root
    forward += n * d  # times that
    backward = n * d * (1 + 1)  # mean of gradient · output
    backward += n * d * (2 + 1)  # gradient less its part along the output (addcmul by -1); scaled
    return Step(Work(rest=forward), Work(rest=backward))


def added(numbers: int) -> Step:
    """``x + f(x)``: a sum forward; backward the two gradients of x are added."""
    return Step(Work(rest=numbers), Work(rest=numbers))


def rotary(time: int, d_head: int) -> Step:
    """``rotary_tables``: frequencies, their angles with cosine, sine and the sine's other sign."""
    pairs = d_head // 2
    return Step(Work(rest=pairs * (1 + 1 + 1) + time * pairs * (1 + 1 + 1 + 1)))


def queries_keys(s: Sizes) -> Step:
    """``queries_keys``: keys take over a share of the key before; both are normalised and rotated (so 2 · n · d)."""
    n, d, h, d_head = s.tokens, s.width, s.n_heads, s.width // s.n_heads
    forward = n * d * (1 + 2)  # difference to the earlier key; key + share · difference
    forward += 2 * n * d * (1 + 1) + 2 * n * h * (1 + 1)  # as in norm, a head a vector
    forward += n * h + 2 * n * d  # the queries' scale; both scaled
    forward += 2 * n * d * (1 + 2)  # rotation: times cosine, plus turned times sine
    backward = 2 * n * d * (1 + 1)  # mean of gradient · output
    backward += n * h + h * (1 + 1)  # gradient of the scale: summed, times width, over the scale
    backward += h + n * h  # the queries' part, over the squared scale
    backward += 2 * n * d * (2 + 1)  # as in norm
    backward += s.time * d_head + 2 * n * d * (1 + 2)  # minus sine; rotated back
    backward += n * d * (1 + 1)  # gradient of the share: product and sum
    backward += n * d * (1 + 1 + 1)  # what moves to the earlier key; masked there and here
    backward += n * d * (1 + 1)  # taken from here, added there
    share = Step(Work(rest=h), Work(rest=3 * h))  # its sigmoid
    return Step(Work(rest=forward), Work(rest=backward)) + share + adam(h, h)


def billed_pairs(time: int) -> int:
    """Query-key pairs of a row and head: each block of queries meets all keys up to the block's end."""
    whole, left = divmod(time, BLOCK)
    return BLOCK * BLOCK * whole * (whole + 1) // 2 + left * time


def keys_seen(time: int) -> int:
    """Keys that the blocks meet, one block after the other."""
    whole, left = divmod(time, BLOCK)
    return BLOCK * whole * (whole + 1) // 2 + (time if left else 0)


def attention(s: Sizes) -> Step:
    """``CausalAttention``."""
    n, d = s.tokens, s.width
    pairs = s.batch * s.n_heads * billed_pairs(s.time)
    one = 2 * pairs * (d // s.n_heads)  # a product over all pairs
    scores = Step(
        Work(2 * one, pairs * (1 + 5)),  # scores, values; the mask is added, softmax
        Work(4 * one, pairs * 4),  # gradients of values, shares, queries, keys; of softmax
    )
    # Gradients of keys and values are added to what later blocks have left there.
    gathered = Step(backward=Work(rest=2 * s.batch * d * keys_seen(s.time)))
    ends = linear(n, d, 3 * d, matrices=3) + linear(n, d, d)
    return ends + queries_keys(s) + scores + gathered


def feedforward(n: int, d: int) -> Step:
    """``ReluSquared``."""
    hidden = n * 4 * d
    relu = Step(Work(rest=hidden), Work(rest=hidden))
    square = Step(Work(rest=hidden), Work(rest=hidden * (1 + 1 + 1)))  # gradient · (2 · x to the power 1)
    return linear(n, d, 4 * d) + relu + square + linear(n, 4 * d, d)


def block(s: Sizes) -> Step:
    """``Block``: two residual branches, each behind a norm."""
    around = norm(s.tokens, s.width) + added(s.tokens * s.width)
    return around + attention(s) + around + feedforward(s.tokens, s.width)


def backbone(s: Sizes) -> Step:
    """``Transformer.hidden``: embedding, blocks, and a norm at either end."""
    n, d = s.tokens, s.width
    documents = Step(Work(rest=s.batch * (s.time - 1)))  # Context counts changes of document
    embedding = Step(backward=Work(rest=n * d)) + adam(s.vocab * d)
    turns = rotary(s.time, d // s.n_heads)  # the same for all layers
    return documents + embedding + norm(n, d) + turns + block(s) * s.layers + norm(n, d)


def softmax_loss(s: Sizes) -> Step:
    """``linear_cross_entropy``: head, loss and the error that both gradients are made of."""
    n, d, v = s.tokens, s.width, s.vocab
    forward = n * v * (1 + 2 + 1 + 1)  # largest logit; base 2 and minus that (a factor); power; sum
    forward += n * v  # error: times one over the sum
    forward += n * (1 + 1 + 1 + 1)  # largest in base 2; less the target's logit; logarithm; their sum
    forward += n * (1 + 1 + 1)  # one over the sum; minus one, added at the target
    scaled = Step(Work(rest=forward), Work(rest=2 * n * d))  # the upstream gradient on both thin factors
    return product(n, d, v) + scaled + adam(v * d)


def mean_loss(n: int) -> Step:
    """``LanguageModule.forward``: the losses and the number of targets summed; clamped, divided."""
    return Step(Work(rest=n + n + 1 + 1), Work(rest=1))


def softmax_reading(s: Sizes) -> Work:
    """``SoftmaxReadout`` without targets: the whole distribution."""
    return Work(2 * s.tokens * s.width * s.vocab, 5 * s.tokens * s.vocab)
