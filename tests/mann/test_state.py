from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mann import Memory, State, Streaming, Transformer
from retrieval import RollingMemory
from tests.contracts import VOCAB, opened

ROWS, TIME = 2, 6


class Total(Streaming, Memory):
    """Adds what has passed of the document: the sum of all states, beginning with a learned one."""

    def __init__(self, d_model):
        super().__init__()
        self.start = nn.Parameter(torch.ones(d_model))
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x, context):
        begin = self.start.expand(len(x), -1)
        before = begin if context.state is None else context.state.read(self, {"total": begin})["total"]
        totals = []
        for t in range(x.shape[1]):
            same = context.same_document(1)[:, t, None] if t else torch.ones(len(x), 1, dtype=torch.bool)
            before = torch.where(same, before, begin) + x[:, t]
            totals.append(before)
        if context.state is not None:
            context.state.write(self, total=before)
        return self.out(torch.stack(totals, 1).tanh())


class Recalls(Streaming, Memory):
    """Adds the nearest of what earlier segments stored."""

    def __init__(self, d_model):
        super().__init__()
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x, context):
        size = x.shape[-1]
        memory = context.state.memory(self, lambda: RollingMemory(len(x), 1, 64, size, size))
        recalled = memory.gather(memory.search(x[:, None].detach(), 2))
        memory.add(x[:, None], x[:, None])
        return self.out(recalled.values.sum(3)[:, 0])


def network(kind=Total, layers=(0, 1)) -> Transformer:
    torch.manual_seed(0)
    # The rest of the model looks at one position only.
    return opened(Transformer(VOCAB, 16, 2, 2, mixer=Still, memory=dict.fromkeys(layers, kind)))


class Still(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()

    def forward(self, x, context):
        return torch.zeros_like(x)


def tokens(seed=0, time=3 * TIME):
    return torch.randint(0, VOCAB, (ROWS, time), generator=torch.Generator().manual_seed(seed))


def labels():
    """Row 0 changes its document within the second segment, row 1 between the second and the third."""
    found = torch.zeros(ROWS, 3 * TIME, dtype=torch.long)
    found[0, TIME + 3 :] = 7
    found[1, 2 * TIME :] = 9
    return found


def in_segments(model, ids, documents=None, state=None, detach=False):
    state, found = State() if state is None else state, []
    for begin in range(0, ids.shape[1], TIME):
        here = slice(begin, begin + TIME)
        found.append(model(ids[:, here], None if documents is None else documents[:, here], state=state))
        if detach:
            state.detach()
    return torch.cat(found, 1)


@pytest.mark.parametrize("documents", [None, labels()], ids=["one document", "several"])
def test_segments_are_one_text(documents):
    model, ids = network(), tokens()
    whole, parts = model(ids, documents), in_segments(model, ids, documents)
    torch.testing.assert_close(parts, whole)
    grads = []
    for result in (whole, parts):
        model.zero_grad()
        result.square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_detached_segments_have_the_same_values_and_no_gradient_beyond():
    model, ids = network(), tokens(time=2 * TIME)
    state = State()
    model(ids[:, :TIME], state=state)
    state.detach()
    late = model(ids[:, TIME:], state=state)
    torch.testing.assert_close(late, model(ids)[:, TIME:])
    (grad,) = torch.autograd.grad(late.square().sum(), model.memory["0"].start)
    assert not grad.any()


def test_checkpointed_activations_have_the_same_gradients():
    model, ids = network(layers=(0,)), tokens(time=2 * TIME)
    memory = model.memory["0"]
    plain, grads = memory.forward, []
    for forward in (plain, lambda x, context: checkpoint(plain, x, context, use_reentrant=False)):
        state = State()
        model(ids[:, :TIME], state=state)
        memory.forward = forward
        model.zero_grad()
        model(ids[:, TIME:], state=state).square().sum().backward()
        grads.append(memory.out.weight.grad.clone())
    torch.testing.assert_close(*grads)


def test_a_reset_row_begins_anew_and_the_other_goes_on():
    model, ids = network(), tokens(time=2 * TIME)
    state = State()
    model(ids[:, :TIME], state=state)
    state.reset(torch.tensor([True, False]))
    late = model(ids[:, TIME:], state=state)
    torch.testing.assert_close(late[0], model(ids[:1, TIME:])[0])
    torch.testing.assert_close(late[1], model(ids)[1, TIME:])


def test_each_slot_keeps_its_own():
    model = network()
    assert [model.memory[name].state_key for name in ("0", "1")] == ["memory.0", "memory.1"]


@pytest.mark.parametrize("kind", [Total, Recalls])
def test_a_saved_state_goes_on_bit_for_bit(kind, tmp_path):
    model, ids = network(kind), tokens()
    whole = in_segments(model, ids, labels())
    state = State()
    in_segments(model, ids[:, : 2 * TIME], labels()[:, : 2 * TIME], state)
    torch.save(state.state_dict(), tmp_path / "state.pt")
    again = State()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(model(ids[:, 2 * TIME :], labels()[:, 2 * TIME :], state=again), whole[:, 2 * TIME :])


def test_a_reset_is_saved_before_it_was_read():
    model, ids = network(Recalls), tokens(time=2 * TIME)
    state = State()
    model(ids[:, :TIME], state=state)
    saved = State()
    saved.load_state_dict(state.state_dict())
    saved.reset(torch.tensor([True, False]))
    again = State()
    again.load_state_dict(saved.state_dict())
    late = model(ids[:, TIME:], state=again)
    torch.testing.assert_close(late[0], model(ids[:, TIME:], state=State())[0])
    assert not torch.equal(late[1], model(ids[:, TIME:], state=State())[1])


def test_a_slot_may_write_before_it_asks_for_its_memory():
    slot, memory = Total(4), RollingMemory(2, 1, 8, 4, 4)
    memory.add(torch.ones(2, 1, 3, 4), torch.ones(2, 1, 3, 4))
    state, again = State(), State()
    state.begin(2)
    state.memory(slot, lambda: memory)
    again.load_state_dict(state.state_dict())
    again.reset(torch.tensor([True, False]))
    again.write(slot, total=torch.zeros(2, 4))
    found = again.memory(slot, lambda: RollingMemory(2, 1, 8, 4, 4)).search(torch.ones(2, 1, 1, 4), 3)
    assert found.mask.sum((1, 2, 3)).tolist() == [0, 3]


def test_what_goes_wrong_is_said():
    state = State()
    state.reset()
    state.begin(2)
    with pytest.raises(ValueError, match="batch of 3 rows for a state of 2"):
        state.begin(3)
    with pytest.raises(ValueError, match="mask of 2 rows"):
        state.reset(torch.tensor([True]))
    slot = Total(4)
    state.write(slot, total=torch.zeros(2, 4))
    state.begin(2)
    with pytest.raises(ValueError, match="another model"):
        state.read(slot, {"total": torch.zeros(2, 5)})
    with pytest.raises(ValueError, match="format 1"):
        state.load_state_dict({})


def test_contexts_of_one_label_go_on():
    state, documents = State(), torch.full((1, 3), 5)
    slot = Total(1)
    start = {"total": torch.zeros(1, 1)}
    for label, expected in ((5, 0.0), (5, 1.0), (6, 0.0)):
        state.begin(1, torch.full_like(documents, label))
        assert state.read(slot, start)["total"].item() == expected
        state.write(slot, total=torch.ones(1, 1))
        # Until the next segment begins.
        assert state.read(slot, start)["total"].item() == expected


def test_partial_builds_are_streaming_too():
    model = Transformer(VOCAB, 16, 1, 2, memory={0: partial(Total)})
    assert model.memory["0"].state_key == "memory.0"


def test_masks_and_loaded_tensors_follow_the_device_of_who_asks():
    state, slot = State(), Total(1)
    state.begin(1, torch.zeros(1, 3, dtype=torch.long))
    state.write(slot, total=torch.zeros(1, 1))
    # An epoch ends, whose mask is made on the CPU, and the next begins on another device.
    state.reset()
    state.begin(1, torch.ones(1, 3, dtype=torch.long, device="meta"))
    again = State()
    again.begin(1)
    again.write(slot, total=torch.zeros(1, 1))
    again.load_state_dict(again.state_dict())
    assert again.read(slot, {"total": torch.zeros(1, 1, device="meta")})["total"].is_meta
