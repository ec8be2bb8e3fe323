import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from mann import Context, Transformer
from mann.memory.engram import Engram, hash_multipliers, head_primes
from mann.optim import ROLES, RoleOptimizer
from mann.tokenizer_compression import TokenizerCompression
from tests.contracts import opened
from tests.mann.inputs import labels, outputs_and_gradients, randn, runs
from tests.mann.segments import TIME, assert_goes_on, assert_segments, changing

TOKENS = torch.tensor([[0, 17, 4, 17, 4, 901, 1999, 3]])
# Three tokens in four share an id.
COMPRESSION = TokenizerCompression(np.arange(2000) * 3 // 4)
MULTIPLIERS = [76346256008913, 4821823209019, 35825541653367]
PRIMES = [65557, 65563, 65579, 65581]
ROWS = [0, 65557, 131120, 196699, 23821, 67390, 189928, 232309, 24342, 118207, 147533, 234355]


def naive_rows(tokens, run, orders, n_heads, n_rows, layer, layers, ids, marker, seed=0):
    """Multipliers, primes and rows in Python's integers; primes by trial division."""
    size = max(ids) + 1
    rng = np.random.default_rng(seed + 10007 * layer)
    drawn = rng.integers(low=0, high=(2**63 - 1) // size // 2, size=max(orders), dtype=np.int64)
    multipliers = [2 * int(number) + 1 for number in drawn]
    seen: set[int] = set()
    for other in sorted(layers):
        primes = []
        for _ in orders:
            last = n_rows - 1
            for _ in range(n_heads):
                last += 1
                while last in seen or last < 2 or any(last % d == 0 for d in range(2, int(last**0.5) + 1)):
                    last += 1
                seen.add(last)
                primes.append(last)
        if other == layer:
            break
    found = []
    for t in range(len(tokens)):
        past = [
            ids[tokens[t - k]] if t >= k and run[t - k] == run[t] else ids[marker] for k in range(max(orders))
        ]
        row = []
        for index, order in enumerate(orders):
            mixed = 0
            for k in range(order):
                mixed ^= past[k] * multipliers[k]
            for head in range(n_heads):
                slot = index * n_heads + head
                row.append(mixed % primes[slot] + sum(primes[:slot]))
        found.append(row)
    return found


@pytest.mark.parametrize("orders", [(1,), (2, 3), (4, 1)], ids=str)
@pytest.mark.parametrize("n_heads", [1, 3])
@pytest.mark.parametrize(("layer", "layers"), [(0, None), (2, None), (15, (15, 1)), (7, (7,))], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize("compressed", [False, True], ids=["identity", "compressed"])
def test_rows_are_those_of_the_formula(orders, n_heads, layer, layers, packed, compressed):
    compression = COMPRESSION if compressed else None
    memory = Engram(
        4,
        orders,
        n_heads,
        40,
        1,
        layer=layer,
        layers=layers,
        compression=compression,
        vocab_size=2000,
        marker=5,
    )
    tokens = torch.randint(0, 2000, (2, 9), generator=torch.Generator().manual_seed(0))
    documents = labels(2, 9) if packed else None
    run, found = runs(documents, 2, 9), memory.rows(Context(tokens, documents))
    ids = COMPRESSION.ids.tolist() if compressed else list(range(2000))
    for b in range(2):
        expected = naive_rows(
            tokens[b].tolist(),
            run[b].tolist(),
            orders,
            n_heads,
            40,
            layer,
            range(layer + 1) if layers is None else layers,
            ids,
            5,
        )
        assert found[b].tolist() == expected
    assert int(found.max()) < memory.table.get_parameter("weight").shape[0]


def test_golden_hashes():
    # Saved tables mean nothing once these change.
    assert hash_multipliers(3, 99_463, layer=1) == MULTIPLIERS
    assert head_primes(2**16, 4, place=1) == PRIMES
    memory = Engram(4, (2, 3), 2, 2**16, 1, layer=1, compression=COMPRESSION)
    assert memory.rows(Context(TOKENS))[0, [0, 4, 7]].flatten().tolist() == ROWS


def test_the_largest_product_has_63_bits():
    for size in (2, 257, 2**16, 2**31):
        assert all(
            number % 2 and number * (size - 1) < 2**63
            for number in hash_multipliers(8, size, layer=3, seed=5)
        )


def test_no_prime_serves_twice_and_no_multiplier_either():
    built = [build(4) for build in Engram.at_layers((1, 4, 6), n_rows=100, n_heads=3, d_row=1).values()]
    primes = torch.cat([memory.primes for memory in built])
    assert len(primes.unique()) == len(primes) == 18
    assert len({tuple(memory.multipliers.tolist()) for memory in built}) == 3
    # As if all layers had been counted one after the other.
    assert primes.tolist() == head_primes(100, 18, 0)


def test_large_primes():
    # Neighbours of 2**24 and 2**40, and a number that fools a test with base 2 alone.
    assert head_primes(2**24, 2, 0) == [16777259, 16777289]
    assert head_primes(2**40, 1, 0) == [1099511627791]
    assert head_primes(2047, 1, 0) == [2053]
    assert head_primes(0, 8, 0) == [2, 3, 5, 7, 11, 13, 17, 19]


def naive_update(memory, x, context, table, read, gain, taps):
    """The formula position by position."""
    rows, dilation = memory.rows(context), max(memory.orders)
    width, run = x.shape[-1], runs(context.documents, *x.shape[:2])
    keys, values = read.chunk(2)
    gates, through = torch.zeros(x.shape[:2]), {}
    for b, t in [(b, t) for b in range(x.shape[0]) for t in range(x.shape[1])]:
        e = torch.cat([table[row] for row in rows[b, t].tolist()])
        key, h = keys @ e, x[b, t]
        key = key / (key.square().mean() + 1e-6).sqrt()
        h = h / (h.square().mean() + 1e-6).sqrt()
        score = (gain * key * h).sum() / width**0.5
        if memory.gate == "sqrt":
            score = score.sign() * score.abs().clamp(min=1e-6).sqrt()
        gates[b, t] = torch.sigmoid(score).item()
        through[b, t] = torch.sigmoid(score) * (values @ e)
    result = []
    for (b, t), update in through.items():
        mixed = torch.zeros(width, dtype=x.dtype)
        for k in range(memory.kernel):
            s = t - k * dilation
            if s >= 0 and run[b, s] == run[b, t]:
                past = through[b, s]
                mixed = mixed + taps[k] * past / (past.square().mean() + 1e-6).sqrt()
        result.append(update + F.silu(mixed) if memory.kernel else update)
    return torch.stack(result).view(x.shape)


@pytest.mark.parametrize("gate", ["sqrt", "plain"])
@pytest.mark.parametrize(("orders", "kernel"), [((2, 3), 4), ((2,), 0), ((1,), 3), ((2, 3), 1)], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
def test_updates_and_gradients_are_those_of_the_formula(gate, orders, kernel, packed):
    memory = opened(
        Engram(6, orders, 2, 11, 3, gate=gate, kernel=kernel, vocab_size=2000, sparse=False).double()
    )
    context = Context(torch.randint(0, 9, (2, 11)), labels(2, 11) if packed else None)
    x = randn(2, 11, 6, seed=4)
    names = ["table.weight", "read.weight", "gain", *(["taps"] if kernel else [])]
    leaves = [memory.get_parameter(name) for name in names]

    def fast(x, *_):
        return memory(x, context)

    def naive(x, table, read, gain, taps=None):
        return naive_update(memory, x, context, table, read, gain, taps)

    for one, other in zip(
        outputs_and_gradients(fast, [x, *leaves]), outputs_and_gradients(naive, [x, *leaves]), strict=True
    ):
        assert other.any()
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_gates_differ_as_they_say():
    gates = {}
    for gate in ("sqrt", "plain"):
        torch.manual_seed(0)
        memory = Engram(8, gate=gate, n_rows=50, vocab_size=2000)
        gates[gate] = memory.look_up(randn(1, 8, 8, dtype=torch.float32), Context(TOKENS))[0]
    score = torch.logit(gates["plain"])
    torch.testing.assert_close(torch.logit(gates["sqrt"]), score.sign() * score.abs().sqrt())
    assert (score < 0).any()
    assert (score > 0).any()


def test_tokens_that_are_the_same_once_compressed_read_the_same():
    memory = opened(Engram(4, n_rows=50, compression=COMPRESSION))
    x = torch.ones(1, 8, 4)
    one, other = TOKENS.clone(), TOKENS.clone()
    one[0, 3], other[0, 3] = 12, 13
    assert COMPRESSION.ids[12] == COMPRESSION.ids[13]
    assert torch.equal(memory(x, Context(one)), memory(x, Context(other)))
    other[0, 3] = 14
    assert not torch.equal(memory(x, Context(one)), memory(x, Context(other)))


def test_nothing_at_the_start_and_every_part_trains():
    model = Transformer(
        50, 16, 2, memory=Engram.at_layers((0, 1), n_rows=30, vocab_size=50, d_row=4), n_heads=2
    )
    nn.init.normal_(model.readout.get_parameter("head.weight"))
    before = copy.deepcopy(model.state_dict())
    optimizer = RoleOptimizer(model, dict.fromkeys(ROLES, 0.01))
    tokens = torch.randint(1, 50, (2, 12))
    updates = []
    hook = model.memory["1"].register_forward_hook(lambda *call: updates.append(call[-1]))
    for _ in range(3):
        optimizer.zero_grad()
        model.loss(tokens[:, :-1], tokens[:, 1:]).mean().backward()
        optimizer.step()
    hook.remove()
    assert not updates[0].any()
    assert updates[-1].any()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    for part in ("table.weight", "read.weight", "gain", "taps"):
        assert f"memory.0.{part}" in moved


def test_another_tokenizers_table_is_refused_and_not_loaded(tmp_path):
    saved = opened(Engram(4, n_rows=50, compression=COMPRESSION)).state_dict()
    save_file(saved, tmp_path / "table.safetensors")
    saved = load_file(tmp_path / "table.safetensors")
    same = Engram(4, n_rows=50, compression=TokenizerCompression(COMPRESSION.ids))
    same.load_state_dict(saved)
    assert torch.equal(same.table.get_parameter("weight"), saved["table.weight"])
    # As many compressed tokens, other ones; and the same number of tokens, none compressed.
    turned = TokenizerCompression(COMPRESSION.ids[::-1].copy())
    for other in (Engram(4, n_rows=50, compression=turned), Engram(4, n_rows=50, vocab_size=2000)):
        kept = other.table.get_parameter("weight").clone()
        with pytest.raises(ValueError, match=r"another tokenizer.*1500 compressed tokens"):
            other.load_state_dict(saved)
        assert torch.equal(other.table.get_parameter("weight"), kept)


def test_another_version_of_the_hash_is_refused(monkeypatch):
    saved = Engram(4, n_rows=50).state_dict()
    monkeypatch.setattr("mann.memory.engram.HASH_VERSION", 2)
    with pytest.raises(ValueError, match="hash version 1, this is version 2"):
        Engram(4, n_rows=50).load_state_dict(saved)


def test_a_saved_seed_is_the_one_that_counts():
    one, other = Engram(4, n_rows=50, seed=3), Engram(4, n_rows=50, seed=4)
    assert not torch.equal(one.rows(Context(TOKENS)), other.rows(Context(TOKENS)))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.rows(Context(TOKENS)), other.rows(Context(TOKENS)))


def test_pickled_copied_and_on_no_device():
    memory = opened(Engram(4, n_rows=50, compression=COMPRESSION))
    x = torch.ones(1, 8, 4)
    for again in (pickle.loads(pickle.dumps(memory)), copy.deepcopy(memory)):
        assert torch.equal(again(x, Context(TOKENS)), memory(x, Context(TOKENS)))
    with torch.device("meta"):
        nowhere = Engram(4, n_rows=50, compression=COMPRESSION)
        assert nowhere(x.to("meta"), Context(TOKENS.to("meta"))).shape == x.shape
    assert all(tensor.is_meta for tensor in [*nowhere.parameters(), *nowhere.buffers()])


def test_any_table_serves_that_is_read_by_rows():
    built = []

    def table(n_rows, d_row):
        built.append(nn.Embedding(n_rows, d_row))
        return built[0]

    memory = Engram(4, n_rows=50, d_row=3, table=table)
    assert memory.table is built[0]
    assert tuple(built[0].weight.shape) == (sum(memory.primes.tolist()), 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"orders": ()}, "different positive n-gram lengths"),
        ({"orders": (2, 2)}, "different positive n-gram lengths"),
        ({"orders": (0, 1)}, "different positive n-gram lengths"),
        ({"n_heads": 0}, "at least 1 head"),
        ({"n_rows": 1}, "2 rows"),
        ({"layer": 2, "layers": (1, 3)}, "layer 2 must be one of"),
        ({"layer": 1, "layers": (1, 1)}, "named once"),
        ({"layer": -1}, "layer -1"),
        ({"gate": "square"}, "'square'"),
        ({"kernel": -1}, "kernel=-1"),
        ({"marker": 9, "vocab_size": 9}, "marker 9 is none of 9"),
    ],
    ids=str,
)
def test_settings_that_make_no_table_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Engram(4, **{"n_rows": 50, **settings})


@pytest.mark.parametrize(
    "settings", [{}, {"kernel": 0}, {"kernel": 2, "orders": (1,)}, {"compression": COMPRESSION}], ids=str
)
@pytest.mark.parametrize("documents", [None, changing()], ids=["one document", "documents"])
def test_segments_are_one_text(settings, documents, tmp_path):
    memory = opened(
        Engram(6, **{"n_rows": 64, "d_row": 2, "vocab_size": 2000, "sparse": False} | settings)
    ).double()
    memory.state_key = "memory"
    assert_segments(memory, randn(3, TIME, 6), documents)
    assert_goes_on(memory, randn(3, TIME, 6), documents, tmp_path)
