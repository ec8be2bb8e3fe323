import torch
from torch import nn

from experiments.ledger import Bill
from experiments.ledger.signature import ModelSignature, batch_signature
from experiments.ledger.steps import KINDS, PATIENCE, Steps


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


def test_of_ever_new_kinds_the_last_are_remembered():
    steps = Steps()
    for number in range(3 * KINDS):
        steps.add_watched(f"shape {number}", "", bill(1 + number))
        steps.add_unwatched(f"shape {number}", "")
        if number < KINDS:
            steps.add_watched("often", "", bill(7))
            steps.add_unwatched("often", "")
    assert len(steps.to_dict()["kinds"]) == KINDS
    assert steps.flops == sum(2 * (1 + number) for number in range(3 * KINDS)) + 2 * KINDS * 7
    assert (steps.count, steps.total().flops) == (2 * 3 * KINDS + 2 * KINDS, steps.flops)
    assert steps.must_watch("shape 0")
    assert not steps.must_watch(f"shape {3 * KINDS - 1}")


def test_a_step_that_waits_for_its_price_is_not_settled_at_another():
    steps = Steps()
    steps.add_watched("a", "", bill(10))
    steps.add_unwatched("a", "stepped")
    for number in range(2 * KINDS):
        steps.add_watched(f"shape {number}", "", bill(1))
    steps.add_watched("a", "stepped", bill(15))
    assert steps.flops == 10 + 15 + 15 + 2 * KINDS
    assert steps.estimated == 0


class Slotted:
    __slots__ = ("count", "x")

    def __init__(self, x, count):
        self.x, self.count = x, count


class Sized:
    def __init__(self, length):
        self.__class__ = type("Sized", (), {"__len__": lambda _: length})


def test_whatever_decides_the_work_tells_batches_apart():
    x = torch.zeros(2, 3)
    batches = [
        {"x": x, "steps": 1},
        {"x": x, "steps": 2},
        {"x": x, "mode": "long"},
        {"x": x, "mode": "short"},
        {"x": x.numpy()},
        {"x": x.numpy()[:1]},
        {"x": x.numpy().astype("float64")},
        {"x": x.numpy().shape[0]},
        {"x": ["a", "b"]},
        {"x": ["a", "b", "c"]},
        {"x": [1, 2]},
        {"x": [1, 3]},
        {"x": {1, 2, 3}},
        Slotted(x, 1),
        Slotted(x, 2),
        Slotted(x[:1], 1),
        Sized(1),
        Sized(2),
        torch.nested.nested_tensor([x, x[:1]], layout=torch.jagged),
        torch.nested.nested_tensor([x, x], layout=torch.jagged),
    ]
    assert len(set(map(batch_signature, batches))) == len(batches)


def test_data_do_not():
    x = torch.zeros(2, 3)
    assert batch_signature({"x": x, "name": ["a"], "y": 0.5}) == batch_signature(
        {"x": x, "name": ["b"], "y": 2.5}
    )
    loop = {"x": x}
    loop["again"] = loop
    assert batch_signature(loop) == batch_signature(loop)


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
