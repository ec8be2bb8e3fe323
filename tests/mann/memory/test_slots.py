import pytest
import torch

from mann import Context, Transformer
from mann.memory.slots import MemorySlots
from tests.contracts import opened
from tests.mann.inputs import assert_same, context, labels, randn, runs
from tests.mann.segments import TIME, assert_goes_on, assert_segments, changing

WIDTH, SLOTS, HEADS = 6, 3, 2


def memory(chunk=4):
    torch.manual_seed(0)
    return opened(MemorySlots(WIDTH, SLOTS, HEADS, chunk).double())


def unit(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def attention(query, keys, values):
    """One query, head by head."""
    size = WIDTH // HEADS
    parts = [slice(h * size, (h + 1) * size) for h in range(HEADS)]
    return torch.cat([(keys[:, p] @ query[p] / size**0.5).softmax(0) @ values[:, p] for p in parts])


def naive_memory(module, x, run):
    """Position by position; after every complete chunk slot by slot."""
    outputs = []
    for b in range(len(x)):
        for t in range(x.shape[1]):
            if t == 0 or run[b, t] != run[b, t - 1]:
                slots, chunk = module.start, []
            state = unit(x[b, t])
            keys, values = module.read(unit(slots)).split(WIDTH, -1)
            found = attention(module.query(state), keys, values)
            outputs.append(module.out(torch.sigmoid(module.gate(found) + module.gate_bias) * found))
            chunk.append(state)
            if len(chunk) == module.chunk:
                keys, values = module.write(torch.stack(chunk)).split(WIDTH, -1)
                asked = [attention(module.ask(unit(slot)), keys, values) for slot in slots]
                changes = [
                    torch.sigmoid(module.change(one) + module.change_bias).split(WIDTH) for one in asked
                ]
                slots = torch.stack(
                    [
                        keep * slot + add * one.tanh()
                        for slot, one, (keep, add) in zip(slots, asked, changes, strict=True)
                    ]
                )
                chunk = []
    return torch.stack(outputs).view_as(x)


@pytest.mark.parametrize(("time", "chunk"), [(3, 1), (13, 4), (12, 3)])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
def test_chunks_equal_one_position_after_the_other(time, chunk, packed):
    module, documents = memory(chunk), labels(2, time) if packed else None
    assert_same(
        lambda x, *_: module(x, context(2, time, documents)),
        lambda x, *_: naive_memory(module, x, runs(documents, 2, time)),
        randn(2, time, WIDTH),
        *module.parameters(),
        tolerance=1e-9,
    )


@pytest.mark.parametrize("chunk", [1, 5])
@pytest.mark.parametrize("documents", [None, changing()], ids=["one document", "documents"])
def test_segments_are_one_text(chunk, documents, tmp_path):
    module = memory(chunk)
    assert_segments(module, randn(3, TIME, WIDTH), documents)
    assert_goes_on(module, randn(3, TIME, WIDTH), documents, tmp_path)


def test_a_chunk_hears_itself_only_when_it_is_over():
    module, x = memory(), randn(1, 12, WIDTH)
    for t in range(12):
        (grad,) = torch.autograd.grad(module(x, context(1, 12))[0, t].sum(), x)
        assert grad[0].any(-1).nonzero().flatten().tolist() == [*range(t // 4 * 4), t]


def test_slots_that_keep_everything_never_change():
    module, x = memory(), randn(1, 12, WIDTH)
    with torch.no_grad():
        module.change_bias[:WIDTH], module.change_bias[WIDTH:] = 1e3, -1e3
    state = unit(x)
    keys, values = module.read(unit(module.start)).split(WIDTH, -1)
    found = torch.stack([attention(one, keys, values) for one in module.query(state)[0]])
    expected = module.out(torch.sigmoid(module.gate(found) + module.gate_bias) * found)
    torch.testing.assert_close(module(x, context(1, 12))[0], expected)


def test_layers_and_matrices_share_no_weight():
    model = Transformer(29, 16, 2, 2, memory={0: MemorySlots, 1: MemorySlots})
    places = [p.data_ptr() for layer in model.memory.values() for p in layer.parameters()]
    assert len(set(places)) == len(places) == 2 * len(list(MemorySlots(16).parameters()))
    one, other = model.memory.values()
    assert all(
        not torch.equal(a.weight, b.weight)
        for a, b in zip(
            *(
                [getattr(layer, name) for name in ("query", "read", "ask", "write", "gate", "change")]
                for layer in (one, other)
            ),
            strict=True,
        )
    )


def test_it_works_without_numbers():
    tokens = torch.zeros(2, 14, dtype=torch.long, device="meta")
    for documents in (None, tokens):
        y = memory().to("meta")(torch.empty(2, 14, WIDTH, device="meta").double(), Context(tokens, documents))
        assert y.shape == (2, 14, WIDTH)


def test_sizes_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match=r"choose among \[1, 2, 4, 8\]"):
        MemorySlots(8, n_heads=3)
    with pytest.raises(ValueError, match="both be at least 1"):
        MemorySlots(8, n_slots=0)
