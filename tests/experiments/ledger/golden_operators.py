"""Golden rows of single operators: reads of a memory, products, sparse products, functions along a dimension."""

from collections.abc import Iterator
from typing import Any

from tests.experiments.ledger.golden_row import EXECUTED, row

# A memory that is read.
QUERIES, K, WIDTH, ROWS = 128, 32, 64, 5000
# A graph, or a sparse matrix.
N, E, F = 1000, 8000, 64

READ = (
    "table = torch.rand(5000, 64, device=device)\n"
    "ids = torch.zeros(128, 32, dtype=torch.long, device=device)\n"
    "weights = torch.rand(128, 32, device=device)\n"
)


def reads() -> Iterator[dict[str, Any]]:
    read = QUERIES * K * WIDTH
    rows, ids, weights, out = 4 * read, 8 * QUERIES * K, 4 * QUERIES * K, 4 * QUERIES * WIDTH
    gathered = (rows + ids, rows)
    same = "128 queries read 32 rows of width 64, weighted: the same mathematics, so the same FLOPs"
    yield row("gather", "rows are copied", READ + "call = lambda: table[ids]", "0", 0, 0, gathered)
    yield row(
        *(
            "weighted read, einsum",
            same,
            READ + "call = lambda: torch.einsum('bk,bkd->bd', weights, table[ids])",
        ),
        "2 B K D",
        2 * read,
        2 * read,
        (gathered[0] + rows + weights, gathered[1] + out),
    )
    yield row(
        *(
            "weighted read, multiply and sum",
            same,
            READ + "call = lambda: (weights[..., None] * table[ids]).sum(1)",
        ),
        "2 B K D",
        2 * read,
        0,
        (gathered[0] + rows + weights + rows, gathered[1] + rows + out),
    )
    bag = "call = lambda: torch.nn.functional.embedding_bag(ids, table, mode='sum'"
    offsets = 8 * QUERIES
    yield row(
        "weighted read, embedding_bag",
        same + "; where each bag begins is written and read",
        READ + bag + ", per_sample_weights=weights)",
        "2 B K D",
        2 * read,
        0,
        (rows + ids + weights + offsets, out + offsets),
    )
    yield row(
        "embedding_bag",
        "summed, without weights",
        READ + bag + ")",
        "B K D",
        read,
        0,
        (rows + ids + offsets, out + offsets),
    )
    code = "source = torch.rand(8000, 64, device=device)\nindex = torch.zeros(8000, dtype=torch.long, device=device)\n"
    code += "target = torch.zeros(1000, 64, device=device)\n"
    put, where, whole = 4 * E * F, 8 * E, 4 * N * F
    for name, called, at in (
        ("index_add", "target.index_add(0, index, source)", where),
        ("scatter_reduce", "target.scatter_reduce(0, index[:, None].expand(-1, 64), source, 'amax')", where),
    ):
        yield row(
            name,
            "8000 rows of 64 into 1000: source, index and rows touched are read, the target is copied first",
            code + f"call = lambda: {called}",
            "E F",
            E * F,
            0,
            (2 * put + at + whole, whole + put),
        )


def products() -> Iterator[dict[str, Any]]:
    def operator(name: str, code: str, formula: str, flops: int, matmul: int, sizes: tuple[int, int] | None):
        traffic = None if sizes is None else (4 * sizes[0], 4 * sizes[1])
        return row(
            name,
            "one operator",
            code.replace("rand(", "torch.rand(").replace("DEV", "device=device"),
            formula,
            flops,
            matmul,
            traffic,
        )

    yield operator(
        "mv", "a, b = rand(60, 40, DEV), rand(40, DEV)\ncall = lambda: a @ b", "2 m k", 4800, 4800, (2440, 60)
    )
    yield operator(
        "dot", "a, b = rand(40, DEV), rand(40, DEV)\ncall = lambda: torch.dot(a, b)", "2 k", 80, 80, (80, 1)
    )
    yield operator(
        *(
            "addbmm",
            "a, b, c = rand(60, 50, DEV), rand(3, 60, 40, DEV), rand(3, 40, 50, DEV)\n"
            "call = lambda: torch.addbmm(a, b, c)",
            "2 b m k n + m n",
        ),
        2 * 3 * 60 * 40 * 50 + 3000,
        2 * 3 * 60 * 40 * 50,
        (3000 + 7200 + 6000, 3000),
    )
    yield operator(
        *(
            "bilinear",
            "m = torch.nn.Bilinear(4, 5, 6, DEV)\na, b = rand(3, 4, DEV), rand(3, 5, DEV)\n"
            "call = lambda: m(a, b)",
            "3 b i j o + b o",
        ),
        3 * 3 * 4 * 5 * 6 + 3 * 6,
        0,
        None,
    )
    yield operator(
        *("cdist", "a, b = rand(30, 8, DEV), rand(40, 8, DEV)\ncall = lambda: torch.cdist(a, b)", "3 n m d"),
        3 * 30 * 40 * 8,
        0,
        (560, 1200),
    )
    yield operator(
        *(
            "solve",
            "a, b = rand(30, 30, DEV) + 30 * torch.eye(30, DEV), rand(30, 4, DEV)\n"
            "call = lambda: torch.linalg.solve(a, b)",
            "2 n³ / 3 + 2 n² k",
        ),
        2 * 30**3 // 3 + 2 * 30 * 30 * 4,
        0,
        None,
    )
    yield operator(
        *("rfft", "a = rand(16, 256, DEV)\ncall = lambda: torch.fft.rfft(a)", "5 n log₂ n / 2 a row"),
        16 * 5 * 256 * 8 // 2,
        0,
        (16 * 256, 2 * 16 * 129),
    )
    moved = (4 * 64 * 128, 64 * 3, 4 * 64 * 126)
    conv = "m = torch.nn.Conv1d(64, 64, 3, groups=64, bias=False, DEV)\nx = rand(4, 64, 128, DEV, requires_grad=True)\n"
    once = 2 * 4 * 64 * 126 * 3
    yield operator(
        *("depthwise convolution", conv + "call = lambda: m(x)", "2 b c t k; groups are inside the weight"),
        once,
        once,
        (moved[0] + moved[1], moved[2]),
    )
    yield operator(
        *(
            "depthwise convolution, forward and backward",
            conv + "g = torch.ones(4, 64, 126, DEV)\ncall = lambda: m(x).backward(g)",
            "3 · 2 b c t k: one forward for each gradient",
        ),
        3 * once,
        3 * once,
        (2 * (moved[0] + moved[1]) + moved[2], moved[2] + moved[0] + moved[1]),
    )
    lstm = "m = torch.nn.LSTM(32, 48, DEV)\nx = rand(16, 4, 32, DEV)\ncall = torch.no_grad()(lambda: m(x))"
    gates = 2 * 16 * 4 * 4 * 48 * (32 + 48)
    yield operator("LSTM", lstm, "2 t b 4h (i + h) + 21 t b h", gates + 21 * 16 * 4 * 48, gates, None)
    linear = "a = torch.nn.Linear(64, 48, DEV)\nx = rand(100, 64, DEV)\n"
    yield operator(
        *("linear", linear + "call = lambda: a(x)", "2 n i o + n o"),
        2 * 100 * 64 * 48 + 4800,
        2 * 100 * 64 * 48,
        (6400 + 64 * 48 + 48, 4800),
    )


def sparse() -> Iterator[dict[str, Any]]:
    code = (
        "index = torch.arange(8000)\n"
        "places = torch.stack([index % 1000, (index + index // 1000 + 1) % 1000])\n"
        "sparse = torch.sparse_coo_tensor(places, torch.ones(8000), (1000, 1000)).coalesce(){0}\n"
        "x = torch.rand(1000, 64, requires_grad=True)\n"
    )
    values, dense = 4 * E, 4 * N * F
    layouts = (("COO", "", 16 * E), ("CSR", ".to_sparse_csr()", 8 * E + 8 * (N + 1)))
    for name, made, index in layouts:
        yield row(
            f"{name} @ dense",
            "8000 stored entries of a 1000 x 1000 matrix times 1000 x 64; as a dense product it would be 128,000,000",
            code.format(made) + "call = lambda: sparse @ x",
            "2 nnz F",
            2 * E * F,
            2 * E * F,
            (values + index + dense, dense),
            EXECUTED,
            ("cpu",),
        )
    yield row(
        "torch.sparse.mm, forward and backward",
        "the dense operand wants a gradient: the transposed product",
        code.format("") + "g = torch.ones(1000, 64)\ncall = lambda: torch.sparse.mm(sparse, x).backward(g)",
        "2 · 2 nnz F",
        4 * E * F,
        4 * E * F,
        devices=("cpu",),
    )


def along() -> Iterator[dict[str, Any]]:
    rows, width = 128, 64
    size = rows * width
    code = f"x = torch.rand({rows}, {width}, device=device)\nw = torch.rand({width}, device=device)\n"
    moved = (4 * size, 4 * size)
    per = "{} an element"
    for name, called, flops, extra, because, traffic in (
        ("softmax", "x.softmax(-1)", 5, 0, "maximum, subtract, exp, sum, divide", moved),
        ("gelu", "torch.nn.functional.gelu(x)", 5, 0, "x/2 (1 + erf(x/√2))", moved),
        ("silu", "torch.nn.functional.silu(x)", 2, 0, "x σ(x)", moved),
        (
            "layer norm",
            f"torch.nn.functional.layer_norm(x, ({width},), w, w)",
            8,
            0,
            "mean 1, variance 3, normalise 2, affine 2",
            (4 * size + 8 * width, 4 * size + 8 * rows),
        ),
        (
            "rms norm",
            f"torch.nn.functional.rms_norm(x, ({width},), w)",
            4,
            2 * rows,
            "square, mean, scale, gain; ε and root a row",
            None,
        ),
        ("topk", "x.topk(8)", 1, 0, "a selection sees each element once", (4 * size, 12 * 8 * rows)),
        ("sort", "x.sort(-1)", 6, 0, "log₂ 64 comparisons each", (4 * size, 12 * size)),
        ("exp", "x.exp()", 1, 0, "a transcendental function is one operation", moved),
    ):
        yield row(
            name,
            f"{rows} rows of {width}; {because}. Processors execute more: an exp takes 18 instructions",
            code + f"call = lambda: {called}",
            per.format(flops) + (", 2 a row" if extra else ""),
            flops * size + extra,
            0,
            traffic,
        )
    targets = f"y = torch.zeros({rows}, dtype=torch.long, device=device)\n"
    yield row(
        "cross entropy, forward and backward",
        "log-softmax 5 and 4, one term a target both ways; the mean is part of it",
        code
        + targets
        + "x.requires_grad_()\ncall = lambda: torch.nn.functional.cross_entropy(x, y).backward()",
        "9 n v + 2 n",
        9 * size + 2 * rows,
    )
