"""What encoders of graphs cost forward, worked out by hand, line by line, as in :mod:`tests.experiments.closed_form`.

Letters: n nodes, e edges (both directions of every one, no loops), d width, h heads, i inputs, o outputs. A graph as a
list of edges is gathered and scattered: an addition a number that an edge carries, a product more where it is weighed.
As a matrix it is multiplied: both, whether its entries are one or not. Where edges need weights, a list is weighed
    once in
each pass: degrees (e + n sums, one power a node), and two products an edge; a matrix was weighed when it was made.

Prices (docs/counting.md): softmax over what a node hears is five an edge and head, and one a node and head for the
epsilon of its sum; layer norm and batch norm with weight and shift 8 a number, ELU 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Sizes:
    """A graph, and whether it comes as a matrix; ``entries`` are stored features where these are sparse."""

    n: int
    e: int
    inputs: int
    matrix: bool
    entries: int | None = None

    @property
    def looped(self) -> int:
        return self.e + self.n


def linear(n: int, into: int, out: int, bias: bool = True, entries: int | None = None) -> int:
    """A linear map of n rows, of which so many numbers are stored."""
    return 2 * (n * into if entries is None else entries) * out + n * out * bias


def summed(s: Sizes, edges: int, width: int, weighed: bool = False) -> int:
    """Sums over neighbours."""
    return edges * width * (1 + (weighed or s.matrix))


def weights(s: Sizes) -> int:
    """``gcn_norm`` of a list with loops."""
    return 0 if s.matrix else s.looped + s.n + 2 * s.looped


def widths(s: Sizes, hidden: int, out: int, layers: int = 2) -> list[tuple[int, int, int | None]]:
    """Inputs and outputs of each layer, and the features stored of the first."""
    sizes = [s.inputs, *[hidden] * (layers - 1), out]
    return [(i, o, None if number else s.entries) for number, (i, o) in enumerate(pairwise(sizes))]


def mlp(s: Sizes, hidden: int, out: int) -> int:
    return sum(linear(s.n, i, o, entries=k) for i, o, k in widths(s, hidden, out)) + s.n * hidden


def gcn(s: Sizes, hidden: int, out: int) -> int:
    layers = sum(
        linear(s.n, i, o, False, k) + summed(s, s.looped, o, True) + s.n * o
        for i, o, k in widths(s, hidden, out)
    )
    return weights(s) + layers + s.n * hidden


def sgc(s: Sizes, out: int, hops: int) -> int:
    scores = linear(s.n, s.inputs, out, False, s.entries)
    return weights(s) + scores + hops * summed(s, s.looped, out, True) + s.n * out


def appnp(s: Sizes, hidden: int, out: int, hops: int) -> int:
    # Each round: sums, their share, the share returned, which is multiplied once.
    return (
        mlp(s, hidden, out) + weights(s) + s.n * out + hops * (summed(s, s.looped, out, True) + 2 * s.n * out)
    )


def softmax(s: Sizes, edges: int, heads: int, by_rows: bool) -> int:
    """Over what each node hears; by the rows of a matrix their lengths are differences, two numbers a node."""
    return 5 * edges * heads + s.n * heads + s.n * by_rows


def attended(s: Sizes, heads: int, width: int, concat: bool) -> int:
    """Values by their shares, heads side by side or averaged, a shift; a matrix finds targets by lengths of rows."""
    average = 0 if concat else s.n * heads * width
    out = width * (heads if concat else 1)
    return 2 * s.looped * heads * width + average + s.n * out + 2 * s.n * s.matrix


def gat(s: Sizes, hidden: int, heads: int, out: int) -> int:
    total = s.n * heads * hidden * 3  # ELU
    for i, c, h, k, concat in (
        (s.inputs, hidden, heads, s.entries, True),
        (hidden * heads, out, 1, None, False),
    ):
        total += linear(s.n, i, h * c, False, k)
        total += 2 * (2 * s.n * h * c)  # the halves of the score that belong to source and target
        total += 2 * s.looped * h  # added, LeakyReLU
        total += softmax(s, s.looped, h, s.matrix) + attended(s, h, c, concat)
    return total


def gatv2(s: Sizes, hidden: int, heads: int, out: int) -> int:
    total = s.n * heads * hidden * 3
    for i, c, h, k, concat in (
        (s.inputs, hidden, heads, s.entries, True),
        (hidden * heads, out, 1, None, False),
    ):
        total += 2 * linear(s.n, i, h * c, True, k)
        total += 4 * s.looped * h * c  # added, LeakyReLU, product with a vector
        total += softmax(s, s.looped, h, s.matrix) + attended(s, h, c, concat)
    return total


def mean(s: Sizes, width: int) -> int:
    """A matrix is multiplied, and the division is in it; a list is summed, nodes counted, sums divided."""
    return 2 * s.e * width if s.matrix else s.e * width + s.e + s.n + s.n * width


def sage(s: Sizes, hidden: int, out: int) -> int:
    total = s.n * hidden
    for i, o, k in widths(s, hidden, out):
        if k is None and o >= i:
            total += mean(s, i) + linear(s.n, i, o) + linear(s.n, i, o, False) + s.n * o
        else:
            total += linear(s.n, i, o, False, k) * 2 + mean(s, o) + 2 * s.n * o
    return total


def sum_conv(s: Sizes, d: int) -> int:
    """GIN without norms: 1 + epsilon, times the node, added to the sum; two linear maps, ReLU between."""
    return summed(s, s.e, d) + 1 + 2 * s.n * d + 2 * linear(s.n, d, d) + s.n * d


def ends(s: Sizes, d: int, out: int) -> int:
    """The linear map in front of blocks and the one behind them."""
    return linear(s.n, s.inputs, d, entries=s.entries) + linear(s.n, d, out)


def gin(s: Sizes, d: int, out: int, layers: int) -> int:
    return ends(s, d, out) + layers * (sum_conv(s, d) + s.n * d)


def tuned(s: Sizes, d: int, out: int, layers: int) -> int:
    """GCN with layer norm, a residual and a feed-forward layer."""
    block = linear(s.n, d, d, False) + summed(s, s.looped, d, True) + s.n * d
    block += 8 * s.n * d + s.n * d + s.n * d  # norm, ReLU, added
    block += linear(s.n, d, 2 * d) + 2 * s.n * d + linear(s.n, 2 * d, d) + s.n * d + 8 * s.n * d
    return ends(s, d, out) + weights(s) + layers * block


def gps(s: Sizes, d: int, heads: int, out: int, layers: int) -> int:
    """Without norms, one graph: attention of all pairs."""
    attention = 4 * linear(s.n, d, d) + heads * s.n**2 * (4 * d // heads + 6)
    # The mask of nodes that are not there, added to scores: a number a pair.
    attention += heads * s.n**2
    perceptron = linear(s.n, d, 2 * d) + 2 * s.n * d + linear(s.n, 2 * d, d)
    # Three residuals, and the sum of both parts, which begins with 0.
    block = sum_conv(s, d) + attention + perceptron + 3 * s.n * d + 2 * s.n * d
    return ends(s, d, out) + layers * block


def exphormer(s: Sizes, d: int, heads: int, out: int, layers: int, virtual: int, expander: int) -> int:
    every = s.n + virtual
    edges = s.e + expander + 2 * virtual * s.n
    attention = 4 * linear(every, d, d) + every * d  # queries are scaled
    attention += edges * d * 3  # query, key, kind: two products and a sum
    attention += 5 * edges * heads + every * heads
    attention += 2 * edges * d
    perceptron = linear(every, d, 2 * d) + 2 * every * d + linear(every, 2 * d, d)
    block = 2 * 8 * every * d + attention + every * d + perceptron + every * d
    numbering = 2 * s.n + virtual * s.n + s.n * s.matrix  # which virtual nodes are a node's; lengths of rows
    return ends(s, d, out) + layers * block + numbering


def sgformer(s: Sizes, d: int, out: int, layers: int, conv_layers: int) -> int:
    """One head, one graph."""
    first = 2 * linear(s.n, s.inputs, d, entries=s.entries)
    near = 8 * s.n * d + s.n * d
    block = linear(s.n, d, d, False) + summed(s, s.looped, d, True) + s.n * d + 8 * s.n * d + 2 * s.n * d
    everywhere = 8 * s.n * d + s.n * d
    attention = 3 * linear(s.n, d, d) + 2 * (2 * s.n * d + 1 + 1 + s.n * d)  # lengths, the least, divided
    attention += 2 * s.n * d * d * 2  # keys with values; queries with their sum
    attention += s.n + 2 * s.n * d  # nodes counted; as many times the node's own value
    attention += s.n * d + 2 * s.n * d + s.n  # keys summed; with each query; n more
    attention += s.n * d + s.n * d  # divided; the mean over one head
    attention += 2 * s.n * d + 8 * s.n * d + s.n * d  # half of the sum with what came in; norm, ReLU
    joined = 3 * s.n * d
    return (
        first
        + weights(s)
        + near
        + conv_layers * block
        + everywhere
        + layers * attention
        + joined
        + linear(s.n, d, out)
    )
