import pytest
import torch
import torch.nn.functional as F

from mann import Context
from mann.memory.compressive import CompressiveMemory
from tests.contracts import opened
from tests.mann.inputs import assert_same, context, labels, randn, runs
from tests.mann.segments import TIME, assert_goes_on, assert_segments, changing

WIDTH, HEADS = 6, 2


def memory(chunk=4, delta=True):
    torch.manual_seed(0)
    return opened(CompressiveMemory(WIDTH, HEADS, chunk, delta).double())


def phi(x):
    """The feature map, of a normalised vector."""
    return F.elu(x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()) + 1


def naive_memory(module, x, run):
    """Position by position, head by head."""
    size, outputs = WIDTH // HEADS, []
    for b in range(len(x)):
        for t in range(x.shape[1]):
            if t == 0 or run[b, t] != run[b, t - 1]:
                matrix = [x.new_zeros(size, size)] * HEADS
                total, chunk = [x.new_zeros(size)] * HEADS, []
            q, k, v = module.qkv(x[b, t]).view(3, HEADS, size)
            q, k = phi(q), phi(k)
            read = [
                m @ one / (z @ one + 1e-6) * gate.sigmoid()
                for m, z, one, gate in zip(matrix, total, q, module.gate, strict=True)
            ]
            outputs.append(module.out(torch.cat(read)))
            chunk.append((k, v))
            if len(chunk) == module.chunk:
                for h in range(HEADS):
                    old, sums = matrix[h], total[h]
                    for keys, values in chunk:
                        said = old @ keys[h] / (sums @ keys[h] + 1e-6) if module.delta else 0.0
                        matrix[h] = matrix[h] + torch.outer(values[h] - said, keys[h])
                        total[h] = total[h] + keys[h]
                chunk = []
    return torch.stack(outputs).view_as(x)


@pytest.mark.parametrize(("time", "chunk"), [(4, 1), (13, 4), (12, 3)])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize("delta", [False, True], ids=["", "delta"])
def test_chunks_equal_one_position_after_the_other(time, chunk, packed, delta):
    module, documents = memory(chunk, delta), labels(2, time) if packed else None
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


def test_without_delta_it_is_linear_attention_to_the_chunks_before():
    module, x = memory(delta=False), randn(1, 12, WIDTH)
    q, k, v = (part.transpose(1, 2) for part in module.qkv(x).view(1, 12, 3, HEADS, -1).unbind(2))
    chunk = torch.arange(12) // 4
    weights = (phi(q) @ phi(k).mT) * (chunk[:, None] > chunk)
    read = (weights / (weights.sum(-1, keepdim=True) + 1e-6)) @ v
    expected = module.out((read * module.gate.sigmoid()[:, None]).transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(x, context(1, 12)), expected)


def test_the_first_chunk_of_a_document_reads_nothing():
    module, x = memory(), randn(2, 13, WIDTH)
    documents = torch.zeros(2, 13, dtype=torch.long)
    documents[1, 6:] = 1
    silent = ~module(x, context(2, 13, documents)).any(-1)
    assert silent[0].tolist() == [True] * 4 + [False] * 9
    assert silent[1].tolist() == [True] * 4 + [False] * 2 + [True] * 4 + [False] * 3


def test_it_works_without_numbers():
    tokens = torch.zeros(2, 14, dtype=torch.long, device="meta")
    for documents in (None, tokens):
        y = memory().to("meta")(torch.empty(2, 14, WIDTH, device="meta").double(), Context(tokens, documents))
        assert y.shape == (2, 14, WIDTH)


def test_sizes_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match=r"choose among \[1, 2, 4, 8\]"):
        CompressiveMemory(8, n_heads=3)
    with pytest.raises(ValueError, match="at least 1 position"):
        CompressiveMemory(8, chunk=0)
