from __future__ import annotations

import copy
import gc
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from retrieval import Datastore, Index, RandomSource, RollingMemory
from retrieval.database import LanceIndex
from retrieval.enrollment import Enrolled, enroll, enrolled
from tests.retrieval import stores


class Plain(Enrolled):
    pass


def made(kind: str, folder) -> tuple[object, torch.Tensor]:
    """A store of each kind and what to ask it."""
    x = torch.eye(6)
    if kind == "index":
        return Index("Flat").add(x), x
    if kind == "datastore":
        return Datastore.build(folder / "store", [(x, torch.arange(6))]), x
    if kind == "database":
        return LanceIndex(folder).add(x), x
    if kind == "source":
        return RandomSource(stores.documents(1)), torch.randint(1, 5, (2, 6))
    memory = RollingMemory(1, 1, 8, 6, 6)
    memory.add(x[None, None], x[None, None])
    return memory, x[None, None]


KINDS = ["index", "datastore", "database", "source", "memory"]
COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_searched_itself(kind, way, tmp_path):
    store, asked = made(kind, tmp_path)
    before = store.search(asked, 3)
    if kind == "datastore" and way != "copy":
        pytest.skip("a datastore is opened by its path in another process")
    other = COPIES[way](store)
    assert enroll(other) != enroll(store)
    assert enrolled(enroll(other)) is other
    with FlopCounterMode(display=False):  # so that the operator looks the store up
        after = other.search(asked, 3)
    assert torch.equal(after.ids, before.ids)


def test_a_changed_copy_does_not_answer_for_its_original():
    index = Index("Flat").add(torch.eye(4))
    other = copy.deepcopy(index).add(torch.full((1, 4), 9.0))
    with FlopCounterMode(display=False):
        assert other.search(torch.ones(1, 4), 1).ids.tolist() == [[4]]
        assert index.search(torch.ones(1, 4), 1).ids.tolist() == [[0]]


def test_a_number_names_one_object_for_as_long_as_it_lives():
    first = Plain()
    number = enroll(first)
    assert enroll(first) == number
    assert enrolled(number) is first
    del first
    gc.collect()
    with pytest.raises(RuntimeError, match="no longer exists"):
        enrolled(number)
    # New objects are made where the old one was, and are others.
    assert number not in {enroll(Plain()) for _ in range(100)}


def test_what_was_made_without_its_constructor_is_enrolled_on_first_use():
    store = object.__new__(Plain)
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(enroll, [store] * 64))) == 1
    assert enrolled(enroll(store)) is store


def test_another_process_numbers_otherwise():
    """Or a graph that was exported there with a number would find something else here."""
    assert enroll(Plain()) > 1 << 20
