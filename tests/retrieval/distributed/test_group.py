from __future__ import annotations

import os
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from retrieval.distributed.group import Ranks
from tests.retrieval.distributed.worlds import DEAD, Failed, World, refused


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(3, tmp_path_factory.mktemp("world"))
    yield world
    world.close()


def tell(group: dist.ProcessGroup) -> list[dict]:
    ranks = Ranks(group)
    return ranks.together("tell", lambda: {"mine": ranks.rank * 2**60, "size": ranks.size})


def test_every_rank_hears_all(world):
    for size in (1, 2, 3):
        notes = [{"call": "tell", "mine": rank * 2**60, "size": size} for rank in range(size)]
        assert world(size, tell) == [notes] * size


def swap(group: dist.ProcessGroup, counts: list[list[int]]) -> list[list[int]]:
    """Rank ``r`` has ``counts[r][s]`` rows for rank ``s``, all of them ``[r, s]``."""
    ranks = Ranks(group)
    sends, receives = counts[ranks.rank], [row[ranks.rank] for row in counts]
    rows = [[ranks.rank, other] for other, n in enumerate(sends) for _ in range(n)]
    return ranks.swap(torch.tensor(rows).view(-1, 2), sends, receives).tolist()


@pytest.mark.parametrize("counts", [[[1, 2, 0], [0, 0, 3], [2, 1, 1]], [[0] * 3] * 3, [[0, 0, 4]] * 3])
def test_rows_come_from_every_rank_in_its_turn(world, counts):
    for rank, rows in enumerate(world(3, swap, counts)):
        assert rows == [[other, rank] for other in range(3) for _ in range(counts[other][rank])]


def fail(group: dist.ProcessGroup, message: str) -> list:
    ranks = Ranks(group)

    def do() -> dict:
        if ranks.rank == 1:
            raise LookupError(message)
        return {}

    return [refused(ranks.together, "fail", do), len(tell(group))]


@pytest.mark.parametrize("message", ["no\nsuch thing", "\x00" * 9999, "🙂" * 9999, '"' * 9999])
def test_a_failure_of_one_is_told_to_all_who_go_on(world, message):
    (one, _), (two, _), (three, _) = answers = world(3, fail, message)
    assert two == Failed("LookupError", message)
    assert one == three
    assert one.kind == "RankError"
    assert one.message.startswith("rank 1 failed, so this one stopped too: LookupError: ")
    assert " ".join(message.split())[:100] in one.message
    assert [heard for _, heard in answers] == [3, 3, 3]


def call_another(group: dist.ProcessGroup) -> list:
    ranks = Ranks(group)
    return [refused(ranks.together, "one" if ranks.rank else "other", dict), len(tell(group))]


def test_different_calls_are_refused_on_every_rank(world):
    for failed, heard in world(2, call_another):
        assert failed.kind == "ValueError"
        assert "ranks disagree on call: rank 0 has 'other', rank 1 has 'one'" in failed.message
        assert heard == 2


def stranger(group: dist.ProcessGroup) -> Failed | None:
    some = dist.new_group([0])
    return refused(Ranks, some) if dist.get_rank(group) else None


def test_who_is_no_member_is_told_so(world):
    assert "no member of the group" in world(3, stranger)[1].message


def die(group: dist.ProcessGroup) -> Failed | None:
    ranks = Ranks(group)

    def do() -> dict:
        if ranks.rank:
            os._exit(9)
        raise OSError("disk full")

    begin = time.monotonic()
    failed = refused(ranks.together, "die", do)
    assert time.monotonic() - begin < 10, "it is noticed, not waited for"
    again = refused(tell, group)
    assert again is not None
    assert again.kind == "RankError"
    assert "end all ranks and start them again" in again.message
    return failed


def hang(group: dist.ProcessGroup) -> float:
    hasty = dist.new_group(timeout=timedelta(seconds=2))
    tell(hasty)
    begin = time.monotonic()
    if dist.get_rank(group):
        time.sleep(5)
    else:
        failed = refused(tell, hasty)
        assert failed is not None
        assert failed.kind == "RankError"
        assert "did not come within the timeout" in failed.message
    return time.monotonic() - begin


def test_a_rank_that_hangs_or_dies_is_an_error(tmp_path):
    world = World(2, tmp_path)
    try:
        waited = world(2, hang)
        assert waited[0] < 5 <= waited[1]
        # What went wrong on a rank itself is not hidden by what became of another.
        assert world(2, die) == [Failed("OSError", "disk full"), DEAD]
    finally:
        world.close()


def test_one_of_several_processes_must_be_connected(monkeypatch):
    assert Ranks().size == 1
    assert Ranks().together("alone", lambda: {"a": 1}) == [{"call": "alone", "a": 1}]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"one of 2 processes.*init_process_group first"):
        Ranks()
