"""What the memories of the default comparison's arms add to a training step; see ``closed_form.py``.

More letters: w is the width of a graph's nodes. A table of rows is read by gathers, which are free; what is done with
the rows is a product where it is one in the code, and a weighted sum of rows (embedding_bag) is other arithmetic.
"""

from __future__ import annotations

from math import ceil, log2

from tests.experiments.closed_form import (
    Sizes,
    Step,
    Work,
    adam,
    added,
    backbone,
    linear,
    mean_loss,
    muon,
    norm,
    product,
    row_adam,
    softmax_loss,
    softmax_reading,
)

READ, POINT = 64, 32  # widths of AttentionReader and of PointerReadout
RANKS = 16  # learned numbers of ScoreFeatures, one a rank
ROW = 16  # numbers in a row of NGramMemory
ORDERS = {"ngram": ((2, 3), 2), "unigram table": ((1,), 4)}  # lengths of n-grams, hashes of each
RETRIEVING = ("knn", "random neighbours", "graph", "suffix graph", "shuffled edges")


def ngram_memory(s: Sizes, orders: tuple[int, ...], n_heads: int, distinct: int) -> Step:
    """``NGramMemory``: hashes, rows, a projection. Hashing is whole numbers, which cost what others do."""
    n, slots = s.tokens, len(orders) * n_heads
    # For each order: tokens + 1; times multipliers; mixed in (xor, times) for all but the first; and, shift.
    hashes = sum(order + n_heads * (order + 2 * (order - 1) + 2) for order in orders)
    numbers = Work(rest=n * (hashes + slots))  # .. and an offset for each slot
    # The update does not read x, so that its gradient passes by: only the sum forward.
    update = Work(rest=n * s.width)
    rows = row_adam(n * slots, distinct, ROW)
    return Step(numbers + update) + linear(n, slots * ROW, s.width) + rows


def match_rows(n: int, k: int, width: int) -> Step:
    """Each query meets k rows: dots forward; backward weighted sums of rows, and queries added to rows."""
    dots = 2 * n * k * width
    return Step(Work(dots), Work(rest=dots + dots))


def sum_rows(n: int, k: int, width: int) -> Step:
    """Weighted sums of k rows; backward each row's dot with the gradient, and the gradient added to rows."""
    sums = 2 * n * k * width
    return Step(Work(rest=sums), Work(sums, sums))


def window(n: int, k: int, places: int) -> Step:
    """``Passages.window``: place, edge and their clamps; the token as an unsigned number."""
    return Step(Work(rest=n * k * places * (1 + 1 + 1 + 1 + 1)))


def score_features(n: int, k: int) -> Step:
    """``ScoreFeatures``: slope · score + slope · log(1 + score above 0) + rank."""
    forward = n * k * (1 + 1 + 1 + 1 + 1 + 1)  # product; clamp, logarithm, product; two sums
    backward = n * k * (2 + 2 + 1)  # product and sum for each slope; a sum for the ranks
    return Step(Work(rest=forward), Work(rest=backward + 2)) + adam(2, RANKS)  # 2: the slopes, side by side


def softmax(n: int, choices: int) -> Step:
    """Over so many choices, in logarithms or not."""
    return Step(Work(rest=5 * n * choices), Work(rest=4 * n * choices))


def attention_reader(s: Sizes) -> Step:
    """``AttentionReader``."""
    n, d, k = s.tokens, s.width, s.k
    tables = adam(s.vocab * READ, s.vocab * READ)
    match = match_rows(n, k, READ) + score_features(n, k) + Step(Work(rest=n * k))  # .. added up
    sink = Step(backward=Work(rest=n)) + adam(1)  # its gradient is a sum
    read = softmax(n, k + 1) + sum_rows(n, k, READ)
    return tables + linear(n, d, READ) + match + sink + read + linear(n, READ, d)


def external_memory(s: Sizes, places: int, reader: Step) -> Step:
    """``ExternalMemory``: windows of so many tokens, and a reader behind a norm, as a residual branch."""
    n, d = s.tokens, s.width
    return window(n, s.k, places) + norm(n, d) + reader + added(n * d)


def pointer_weights(s: Sizes) -> Step:
    """``PointerReadout.log_weights``; the tokens of the windows are there already."""
    n, d, k = s.tokens, s.width, s.k
    match = match_rows(n, k, POINT) + score_features(n, k) + Step(Work(rest=n * k))  # .. added up
    sink = product(n, d, 1, bias=True) + adam(d, 1)
    return linear(n, d, POINT) + adam(s.vocab * POINT) + match + sink + softmax(n, k + 1)


def pointer_loss(s: Sizes) -> Step:
    """``PointerReadout`` with targets."""
    n, d, choices = s.tokens, s.width, s.k + 1
    forward = n + 4 * n * choices + n  # weight of the softmax times its probability; logsumexp; sign
    backward = n * choices * (1 + 1 + 1)  # gradient of logsumexp: difference, exponential, product
    backward += n + n  # signs: of the result and of the loss
    backward += n * choices + 2 * n * d  # weights are read twice; the state by query, sink and softmax
    return pointer_weights(s) + Step(Work(rest=forward), Work(rest=backward)) + softmax_loss(s)


def pointer_reading(s: Sizes) -> Work:
    """``PointerReadout`` without targets: the softmax, changed at the k places of answers."""
    n, k = s.tokens, s.k
    mixed = n * k + 4 * n * k * k  # probability of each answer, scaled; logsumexp over who shares it
    mixed += n * k * (5 + 1 + 1)  # logaddexp, less what was there, put in its place
    mixed += n * s.vocab  # the vocabulary, scaled
    return pointer_weights(s).forward + softmax_reading(s) + Work(rest=mixed)


def graph_norm(n: int, d: int) -> Step:
    """``x * inverse_rms(x)``, whose gradient is autograd's."""
    forward = n * d * 2 + n + n * (1 + 1 + 1 + 1) + n * d  # length; square, mean, epsilon, root; times that
    backward = n * d * (1 + 1 + 1)  # to x: scaled; to the factor: product and sum
    backward += n * (1 + 1 + 1) + n  # of 1/√: third power, two products; of the mean
    backward += n * (1 + 1 + 1)  # of the square, as in feedforward
    backward += n * d * (1 + 1) + n * d  # of the length; x is read twice
    return Step(Work(rest=forward), Work(rest=backward))


def first_round(s: Sizes) -> Step:
    """``WindowConv`` on the embedding table, three relations, and sums of its rows, three for each answer."""
    n, k, w = s.tokens, s.k, s.width // 2
    nodes = n * k * 3
    rows = s.vocab if nodes >= s.vocab else nodes + 1  # with few nodes each is its own row
    picked = Step(backward=Work(rest=rows * w if nodes < s.vocab else 0))
    live = Step(Work(rest=rows * w), Work(rest=rows * w))  # row 0 says nothing
    active = Step(Work(rest=2 * rows * w), Work(rest=6 * rows * w))  # SiLU
    itself = added(rows * w)  # the state beside what it says; it is read twice
    # The three weights are taken out of one, so that their gradients are put into three as large, and added.
    weight = Step(backward=Work(rest=2 * 3 * w * w)) + adam(3 * w * w)
    # Whole numbers say where: two of the three rows lie further down; sums without weights.
    sums = Step(Work(rest=2 * n * k + nodes * w), Work(rest=nodes * w))
    say = live + graph_norm(rows, w) + active + product(rows, w, 3 * w) + itself + weight
    return picked + say + sums + adam(s.vocab * w)


def entry_attention(s: Sizes, n_heads: int = 4) -> Step:
    """``EntryAttention.dense``: queries and trust from the token, entries as keys and values, a null entry."""
    n, d, k, h, w = s.tokens, s.width, s.k, n_heads, s.width // 2
    read, null, scores = 2 * n * h * k * w, 2 * n * h * w, n * h * k
    asked = linear(n, d, h * w) + product(n, d, 3 * h, bias=True) + muon(3 * h, d)
    asked += Step(Work(rest=n * h * w), Work(rest=n * h * w + n * d))  # queries scaled; x is read twice
    compressed = Step(Work(rest=n * k * (4 + 2)))  # sign, size, logarithm, product; margin to the best
    forward = Work(2 * read + null)  # logits; heard; logit of the null entry
    forward += Work(rest=scores * (1 + 2 + 2) + null)  # trust: itself, slope, lead; the null entry heard
    backward = Work(4 * read)  # gradients of shares, queries and, as values and as keys, of entries
    backward += Work(3 * null)  # the same of the null entry: its share, itself as value and as key
    backward += Work(rest=scores * (1 + 2 + 2))  # trust: a sum, two sums of products
    backward += Work(
        rest=n * k * w + w + null
    )  # both gradients of entries added, of the null entry; to queries
    attend = asked + compressed + Step(forward, backward) + softmax(n * h, k + 1)
    return attend + linear(n, h * w, d) + adam(3 * h, w)


def shuffled_sources(n: int, k: int) -> Step:
    """``window_sources`` of the control: whose window each neighbour hears instead; whole numbers."""
    sorting = n * k * max(1, ceil(log2(k)))  # the living first
    shift = n * k + n * (1 + 1 + 1)  # how many live up to each; less one, clamped, remainder
    moved = n * k + n + n * k  # the place after each, plus shift; clamped, remainder
    return Step(Work(rest=sorting + shift + moved + n + n * k))  # .. counted over the whole batch


def step(arm: str, s: Sizes, distinct: int = 0) -> Step:
    """One training step of an arm; ``distinct`` rows of each of its tables are read in it."""
    loss = pointer_loss(s) if arm in RETRIEVING else softmax_loss(s)
    return backbone(s) + memories(arm, s, distinct) + loss + mean_loss(s.tokens)


def reading(arm: str, s: Sizes) -> Work:
    """The distributions over the next token, as at inference."""
    readout = pointer_reading(s) if arm in RETRIEVING else softmax_reading(s)
    return (backbone(s) + memories(arm, s, 0)).forward + readout


def memories(arm: str, s: Sizes, distinct: int) -> Step:
    """What fills an arm's memory slots: a table at either end, or one external memory."""
    if arm in ("graph", "suffix graph", "shuffled edges"):
        rewiring = shuffled_sources(s.tokens, s.k) if arm == "shuffled edges" else Step()
        return external_memory(s, 3, first_round(s) + rewiring + entry_attention(s))
    if arm in RETRIEVING:
        return external_memory(s, 2, attention_reader(s))
    if arm in ORDERS:
        orders, n_heads = ORDERS[arm]
        return ngram_memory(s, orders, n_heads, distinct) * 2
    return {"dense": Step()}[arm]
