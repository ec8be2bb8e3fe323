"""Writes experiments/ledger/golden.json: calls whose cost is known in closed form, to test any counter with.

``python -m tests.experiments.ledger.golden`` writes the file. Nothing here runs a ledger: every number is a formula.

HGT and GPS are not among the graph layers: they are made of the others, of attention and of norms, and what PyG adds to
put node types together changes from version to version. That they have one bill however they are run is tested.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.experiments.ledger.golden_operators import along, products, reads, sparse
from tests.experiments.ledger.golden_row import EXECUTED, HAND, row

FILE = Path(__file__).parents[3] / "experiments" / "ledger" / "golden.json"

# A transformer layer.
B, T, D, H, FF = 4, 128, 64, 4, 256
TOKENS, PAIRS = B * T, B * H * T * T
CAUSAL = B * H * T * (T + 1) // 2
# A graph.
N, E, F, HEADS = 1000, 8000, 64, 4
LOOPED = E + N

GRAPH = (
    "index = torch.arange(8000, device=device)\n"
    "edge_index = torch.stack([index % 1000, (index + index // 1000 + 1) % 1000])\n"
    "x = torch.rand(1000, 64, device=device)\n"
)
HEADED = "from torch_geometric.nn import {0}\n" + GRAPH
# Else it is asked first whether products by segments would be quicker.
SEGMENTS = (
    "import torch_geometric\n"
    "def call():\n"
    "    torch_geometric.backend.use_segment_matmul = False\n"
    "    layer(x, edge_index, edge_type)\n"
    "    torch_geometric.backend.use_segment_matmul = None"
)
LAYER = (
    "layer = torch.nn.TransformerEncoderLayer(64, 4, 256, batch_first=True, device=device)\n"
    "x = torch.rand(4, 128, 64, device=device, requires_grad=True)\n"
)
ATTENTION = "q, k, v = (torch.rand(4, 4, 128, 16, device=device) for _ in range(3))\n"


def transformer() -> Iterator[dict[str, Any]]:
    linear = 2 * TOKENS * (4 * D * D + 2 * D * FF)
    biases = TOKENS * (4 * D + FF + D)
    around = biases + 2 * TOKENS * D + 2 * 8 * TOKENS * D + TOKENS * FF
    words = (
        "linear 2 B T (4 D² + 2 D F), attention pairs (4 D/H + 6), biases B T (5 D + F), two residual sums B T D, "
        "two layer norms 8 B T D, relu B T F"
    )
    runs = (
        ("training forward", "layer.train()\ncall = lambda: layer(x)"),
        ("evaluation without gradients", "layer.eval()\ncall = torch.no_grad()(lambda: layer(x))"),
        ("inference mode", "layer.eval()\ncall = torch.inference_mode()(lambda: layer(x.detach()))"),
    )
    products = linear + PAIRS * 4 * D // H
    for name, code in runs:
        yield row(
            f"transformer layer, {name}",
            "B=4 T=128 D=64 H=4 F=256, dropout 0.1 or none; dropout is free, so all runs cost the same",
            LAYER + code,
            words,
            products + 6 * PAIRS + around,
            products,
        )
    causal = linear + CAUSAL * 4 * D // H
    yield row(
        "transformer layer, causal",
        "half of the pairs live: B H T (T + 1) / 2",
        LAYER
        + "mask = torch.nn.Transformer.generate_square_subsequent_mask(128, device=device)\n"
        + "call = lambda: layer(x, mask, is_causal=True)",
        words,
        causal + 6 * CAUSAL + around,
        causal,
    )
    backward = biases + 2 * 13 * TOKENS * D + TOKENS * FF + 2 * TOKENS * D + 6 * TOKENS * D
    yield row(
        "transformer layer, forward and backward",
        "the input wants a gradient; products cost three times the forward, recomputed scores are not billed",
        LAYER + "g = torch.ones(4, 128, 64, device=device)\ncall = lambda: layer(x).backward(g)",
        words
        + "; backward: products twice, attention 5 a pair, biases once, layer norm 13, relu 1, residuals 2 B T D, "
        "gradients of query, key and value put together 6 B T D",
        3 * products + 11 * PAIRS + around + backward,
        3 * products,
    )


def attention() -> Iterator[dict[str, Any]]:
    code = ATTENTION + "call = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v{})"
    moved = (3 * TOKENS * D * 4, TOKENS * D * 4)
    words = "pairs (2 d_key + 2 d_value + 6): two products, scaling 1, softmax 5"
    each = 4 * D // H
    for name, given, pairs in (
        ("attention", "", PAIRS),
        ("attention with dropout", ", dropout_p=0.1", PAIRS),
        ("attention, causal", ", is_causal=True", CAUSAL),
    ):
        yield row(
            name,
            "4 x 4 heads, 128 x 128, width 16",
            code.format(given),
            words,
            pairs * (each + 6),
            pairs * each,
            moved,
        )
    window = sum(min(t + 1, 8) for t in range(T)) * B * H
    mask = "mask = torch.ones(128, 128, dtype=torch.bool, device=device).tril().triu(-7)\n"
    yield row(
        "attention, masked",
        "a window of 8: only true entries of the mask are pairs",
        mask + code.format(", attn_mask=mask"),
        words,
        window * (each + 6),
        window * each,
        (moved[0] + T * T, moved[1]),
        devices=("cpu",),
    )


def graph() -> Iterator[dict[str, Any]]:
    project = 2 * N * F * F

    def layer(
        name: str,
        built: str,
        called: str,
        words: str,
        flops: int,
        matmul: int,
        relation: str,
        checked: str = HAND,
    ):
        code = (
            HEADED.format(name)
            + SEGMENTS * (name == "RGCNConv")
            + f"layer = {built}.to(device)\ncall = lambda: layer({called})"
        )
        said = f"N=1000, E=8000, 64 to 64. {relation}"
        return row(name, said, code, words, flops, matmul, checked=checked)

    yield layer(
        *("GCNConv", "GCNConv(64, 64)", "x, edge_index"),
        "2NFF' + 3E' + N + 2E'F' + NF', E' = E + N self loops",
        project + 3 * LOOPED + N + 2 * LOOPED * F + N * F,
        project,
        "degree 1 and two products an edge, a power a node, messages scaled and summed, bias",
        EXECUTED,
    )
    yield layer(
        *("GATConv", "GATConv(64, 16, heads=4)", "x, edge_index"),
        "2NFF' + 4NF' + 7E'H + NH + 2E'F' + NF'",
        project + 4 * N * F + 7 * LOOPED * HEADS + N * HEADS + 2 * LOOPED * F + N * F,
        project,
        "scores 2 NF' at each end, sum and leaky relu 2 E'H, softmax 5 E'H + NH (the ε added to each sum)",
        EXECUTED,
    )
    yield layer(
        *("GATv2Conv", "GATv2Conv(64, 16, heads=4)", "x, edge_index"),
        "2(2NFF' + NF') + 4E'F' + 5E'H + NH + 2E'F' + NF'",
        2 * (project + N * F) + 6 * LOOPED * F + 5 * LOOPED * HEADS + N * HEADS + N * F,
        2 * project,
        "two projections with biases; sum, leaky relu and score 4 E'F'; softmax; messages",
    )
    yield layer(
        *("TransformerConv", "TransformerConv(64, 16, heads=4)", "x, edge_index"),
        "4(2NFF' + NF') + 2EF' + 6EH + NH + 2EF' + NF'",
        4 * (project + N * F) + 4 * E * F + 6 * E * HEADS + N * HEADS + N * F,
        4 * project,
        "four projections with biases; scores, scaling and softmax; messages; the root added",
        EXECUTED,
    )
    yield layer(
        *("SAGEConv", "SAGEConv(64, 64)", "x, edge_index"),
        "4NFF' + NF' + EF + E + N + NF + NF'",
        2 * project + N * F + E * F + E + N + N * F + N * F,
        2 * project,
        "two projections, one with bias; sum of neighbours, their number and its clamp, division; root added",
    )
    yield layer(
        *("GINConv", "GINConv(torch.nn.Linear(64, 64))", "x, edge_index"),
        "EF + 2NF + 2NFF' + NF' + 1",
        E * F + 2 * N * F + project + N * F + 1,
        project,
        "neighbours summed, (1 + ε) x added, one linear layer",
    )
    steps = 10
    yield layer(
        *("APPNP", "APPNP(10, 0.1)", "x, edge_index"),
        "3E' + N + K(2E'F + 3NF)",
        3 * LOOPED + N + steps * (2 * LOOPED * F + 3 * N * F),
        0,
        "normalisation as GCN; ten steps of messages, (1 - α) x + α x₀. A counter of matrix products says 0",
    )
    yield layer(
        *("SGConv", "SGConv(64, 64, K=2)", "x, edge_index"),
        "3E' + N + 2K E'F + 2NFF' + NF'",
        3 * LOOPED + N + 2 * 2 * LOOPED * F + project + N * F,
        project,
        "normalisation as GCN, two steps, one linear layer",
    )
    relations = 3
    yield row(
        "RGCNConv",
        "N=1000, E=8000, 64 to 64. of each of 3 relations a mean of neighbours (sum, number, clamp, division) and a "
        "projection; root and bias",
        HEADED.format("RGCNConv")
        + "layer = RGCNConv(64, 64, 3).to(device)\nedge_type = index % 3\n"
        + SEGMENTS,
        "EF + E + R(N + NF + 2NFF' + NF') + 2NFF' + 2NF'",
        E * F + E + relations * (N + N * F + project + N * F) + project + 2 * N * F,
        (relations + 1) * project,
        devices=("cpu",),
    )


def golden() -> list[dict[str, Any]]:
    sections = (transformer, attention, graph, reads, products, sparse, along)
    return [case for section in sections for case in section()]


if __name__ == "__main__":
    FILE.write_text(json.dumps(golden(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
