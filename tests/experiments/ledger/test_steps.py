import torch
from torch import nn

from experiments.ledger import Bill
from experiments.ledger.steps import PATIENCE, ModelSignature, Steps, batch_signature


def bill(flops: int) -> Bill:
    one = Bill()
    one.add("forward", flops=flops, bytes_read=2 * flops)
    return one


def test_steps_keep_the_price_they_were_taken_at():
    steps = Steps()
    for price in (10, 20):
        steps.add_watched("a", "", bill(price))
        steps.add_unwatched("a", "")
    assert (steps.flops, steps.bytes, steps.count, steps.watched) == (60, 120, 4, 2)
    assert steps.total().flops == 60
    again = Steps.resumed(steps.to_dict())
    assert (again.flops, again.bytes, again.count, again.watched) == (60, 120, 4, 2)
    assert again.to_dict() == steps.to_dict()


def test_a_kind_seen_too_late_is_waited_for_and_then_billed_as_it_is():
    steps = Steps()
    steps.add_watched("a", "", bill(10))
    assert not steps.must_watch("a")
    assert steps.must_watch("b")
    steps.add_unwatched("a", "stepped")
    assert (steps.flops, steps.estimated) == (20, 1)
    assert steps.must_watch("a")
    steps = Steps.resumed(steps.to_dict())
    steps.add_watched("a", "stepped", bill(15))
    assert (steps.flops, steps.estimated) == (40, 0)
    assert not steps.must_watch("a")


def test_patience_ends():
    steps = Steps()
    steps.add_watched("a", "", bill(10))
    steps.add_unwatched("a", "stepped")
    for _ in range(PATIENCE):
        assert steps.must_watch("a")
        steps.add_watched("a", "", bill(10))
    assert not steps.must_watch("a")
    assert steps.estimated == 1


def test_batches_are_alike_in_types_and_shapes():
    def text(*batch):
        return batch_signature(batch)

    x = torch.zeros(2, 3)
    assert text(x, {"y": x}) == text(x + 1, {"y": x + 2})
    others = [text(x.double(), {"y": x}), text(x, {"y": x[:1]}), text(x, {"z": x}), text(x, [x])]
    assert len({text(x, {"y": x}), *others}) == 5
    assert batch_signature(torch.eye(3).to_sparse()) != batch_signature(torch.ones(3, 3).to_sparse())


def test_models_are_alike_in_sizes_and_in_what_is_trained():
    class Grown(nn.Linear):
        entries = 1

        def work_signature(self):
            return f"{self.entries} entries"

    model = nn.Sequential(nn.Linear(2, 2), Grown(2, 2), nn.LazyLinear(2))
    signature = ModelSignature(model)
    before = str(signature)
    nn.init.zeros_(model[0].weight)
    assert str(ModelSignature(model)) == before
    model[1].entries = 2
    assert str(signature) != before
    model[1].entries = 1
    model[0].requires_grad_(False)
    assert str(signature) == before != str(ModelSignature(model))
