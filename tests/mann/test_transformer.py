import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from mann import (
    CausalAttention,
    ExternalMemory,
    NGramMemory,
    ReluSquared,
    SlidingWindowAttention,
    SwiGLU,
    Transformer,
)
from mann.norm import EPSILON
from tests.contracts import SOURCE, VOCAB, batch, opened
from tests.mann.inputs import context


def dense(seed: int = 0, **settings) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(VOCAB, 16, 3, 2, **settings)


def norm(x):
    return F.rms_norm(x, x.shape[-1:], eps=EPSILON)


def test_it_is_a_residual_stream_of_normalised_slots():
    model, tokens = opened(dense()).double(), batch()["tokens"]
    where = context(*tokens.shape)
    x = norm(model.embedding(tokens))
    for block in model.blocks:
        x = x + block.mixer(norm(x), where)
        x = x + block.feedforward(norm(x))
    expected = F.log_softmax(norm(x) @ model.readout.head.weight.T, -1)
    torch.testing.assert_close(model(tokens), expected)


def test_it_starts_uniform():
    data = batch()
    scored = data["targets"] >= 0
    expected = torch.where(scored, math.log(VOCAB), 0.0)
    torch.testing.assert_close(dense().loss(**data), expected)


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_a_memory_is_added_before_its_layer(layer):
    class Constant(NGramMemory):
        def forward(self, x, context):
            self.seen = x
            return torch.full_like(x, 0.5)

    model = opened(dense(memory={layer: Constant}))
    memory, inputs = model.memory[str(layer)], []
    if layer < 3:
        model.blocks[layer].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        model(batch()["tokens"])
    else:
        model.readout.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        model(batch()["tokens"])
        memory.seen = norm(memory.seen + 0.5) - 0.5
    torch.testing.assert_close(inputs[0], memory.seen + 0.5)


def test_a_feedforward_layer_that_asks_is_given_the_context():
    class Asking(torch.nn.Module):
        def __init__(self, d_model):
            super().__init__()
            self.seen = []

        def forward(self, x, context):
            self.seen.append(context)
            return context.tokens[..., None] * x

    model, data = opened(dense(feedforward=Asking)).double(), batch()
    assert torch.isfinite(model(data["tokens"], data["documents"])).all()
    seen = [context for block in model.blocks for context in block.feedforward.seen]
    assert len(seen) == 3
    assert all(torch.equal(context.tokens, data["tokens"]) for context in seen)
    assert all(context is seen[0] for context in seen)


def test_several_memories_and_a_reader_live_together():
    model = opened(
        dense(
            memory={
                0: partial(NGramMemory, n_rows=64),
                3: partial(ExternalMemory, source=SOURCE, k=4),
                1: partial(NGramMemory, n_rows=64, orders=(1,)),
            },
            feedforward=SwiGLU,
        )
    )
    assert list(model.memory) == ["0", "1", "3"]
    model.loss(**batch()).mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_arms_of_one_seed_start_from_one_backbone():
    plain, other = dense(5), dense(5, memory={2: partial(NGramMemory, n_rows=64)})
    state = other.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    assert not torch.equal(plain.embedding.weight, dense(6).embedding.weight)


@pytest.mark.parametrize("layers", [[-1], [4], [2, 9]])
def test_a_layer_that_does_not_exist_is_named(layers):
    with pytest.raises(ValueError, match=r"blocks 0\.\.2 \(and 3 means before the readout\)"):
        dense(memory=dict.fromkeys(layers, NGramMemory))


def test_packed_documents_are_read_as_if_alone():
    model, tokens = (
        opened(dense(memory={1: partial(ExternalMemory, source=SOURCE, k=4)})),
        batch()["tokens"][:1],
    )
    documents = torch.zeros_like(tokens)
    documents[:, 33:] = 1
    packed = model(tokens, documents)
    for part in (slice(0, 33), slice(33, None)):
        torch.testing.assert_close(packed[:, part], model(tokens[:, part]), rtol=1e-4, atol=1e-4)


def test_rows_of_a_batch_do_not_meet():
    model, tokens = opened(dense(memory={1: partial(NGramMemory, n_rows=64)})), batch()["tokens"]
    torch.testing.assert_close(model(tokens)[1:], model(tokens[1:]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16], ids=str)
def test_it_runs_in_one_type(kind):
    model, data = opened(dense()).to(kind), batch()
    loss = model.loss(**data)
    loss.mean().backward()
    torch.testing.assert_close(loss.float(), opened(dense()).loss(**data), rtol=0.2, atol=0.2)
    assert all(
        parameter.grad is not None and parameter.grad.dtype == kind for parameter in model.parameters()
    )


def test_bfloat16_autocast_is_near():
    model, data = opened(dense()), batch()
    with torch.autocast("cpu", torch.bfloat16):
        near = model.loss(**data)
    assert near.dtype == torch.float32
    torch.testing.assert_close(near.mean(), model.loss(**data).mean(), rtol=2e-2, atol=0)


def test_it_learns_to_copy():
    torch.manual_seed(0)
    model = Transformer(32, 32, 2, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        tokens = torch.randint(1, 32, (16, 12), generator=generator).repeat(1, 2)
        optimizer.zero_grad()
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])[:, 12:].mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * math.log(31)


def test_a_slot_of_one_layer_leaves_the_others_as_they_are():
    torch.manual_seed(0)
    model = Transformer(
        VOCAB, 16, 3, 2, feedforward_at={1: SwiGLU}, mixer_at={2: partial(SlidingWindowAttention, window=4)}
    )
    kinds = [(type(block.mixer), type(block.feedforward)) for block in model.blocks]
    assert kinds == [
        (CausalAttention, ReluSquared),
        (CausalAttention, SwiGLU),
        (SlidingWindowAttention, ReluSquared),
    ]
    with pytest.raises(ValueError, match=r"feedforward_at has layers \[3\], but the model has blocks 0..2"):
        Transformer(VOCAB, 16, 3, 2, feedforward_at={3: SwiGLU})
