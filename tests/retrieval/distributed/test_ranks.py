from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from retrieval import SnapshotError, snapshot
from retrieval.distributed.ranks import open_ranks, save_ranks
from tests.retrieval.distributed.worlds import DEAD, World


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(3, tmp_path_factory.mktemp("world"))
    yield world
    world.close()


def memory(group: dist.ProcessGroup | None, word: str) -> str:
    return f"{word} of rank {dist.get_rank(group) if group else 0}"


def writer(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "data.txt").write_text(text)

    return write


def reader(folder: Path) -> str:
    return (folder / "deep" / "data.txt").read_text()


def save(group: dist.ProcessGroup | None, path: Path, word: str) -> str:
    return save_ranks(path, writer(memory(group, word)), group=group)


def load(group: dist.ProcessGroup | None, path: Path, **options) -> str:
    return open_ranks(path, reader, group=group, **options)


def both(word: str) -> list[str]:
    return [f"{word} of rank 0", f"{word} of rank 1"]


def only(path: Path) -> Path:
    (generation,) = path.glob("generation-*")
    return generation


def test_each_rank_gets_its_own_back(world, tmp_path):
    path = tmp_path / "deep" / "memory"
    names = world(2, save, path, "first")
    assert len(set(names)) == 1
    assert world(2, load, path) == both("first")
    assert {part.name for part in (path / names[0]).iterdir() if part.is_dir()} == {
        "rank-0-of-2",
        "rank-1-of-2",
    }


def test_a_later_save_takes_the_place_of_the_earlier(world, tmp_path):
    (first, _), (second, _) = world(2, save, tmp_path, "first"), world(2, save, tmp_path, "second")
    assert world(
        2,
        load,
        tmp_path,
    ) == both("second")
    assert only(tmp_path).name == second != first


def open_another(group: dist.ProcessGroup, path: Path, generation: str) -> str:
    return load(group, path, generation=generation)


def test_a_checkpoint_is_not_joined_with_the_memory_of_another(world, tmp_path):
    (first, _), (second, _) = world(2, save, tmp_path, "first"), world(2, save, tmp_path, "second")
    assert world(2, open_another, tmp_path, second) == both("second")
    for failed in world(2, open_another, tmp_path, first):
        assert failed.kind == "SnapshotError"
        assert f"holds {second}, the checkpoint was saved with {first}" in failed.message


def test_another_number_of_ranks_is_refused_by_both_numbers(world, tmp_path):
    world(2, save, tmp_path, "first")
    for failed in world(3, load, tmp_path):
        assert failed.kind == "SnapshotError"
        assert "was saved by 2 ranks, this run has 3: start it with 2" in failed.message
    with pytest.raises(SnapshotError, match="saved by 2 ranks, this run has 1"):
        load(None, tmp_path)


def test_one_process_is_one_rank(tmp_path):
    name = save(None, tmp_path, "first")
    assert load(None, tmp_path, generation=name) == "first of rank 0"


def save_apart(group: dist.ProcessGroup, path: Path) -> str:
    return save(group, path / f"of-{dist.get_rank(group)}", "first")


def test_a_path_that_ranks_do_not_share_is_refused(world, tmp_path):
    one, two = world(2, save_apart, tmp_path)
    assert (one.kind, two.kind) == ("RankError", "SnapshotError")
    assert "give the same path on every rank" in two.message
    assert "rank 1 failed" in one.message


def fail(group: dist.ProcessGroup, path: Path) -> str:
    def write(folder: Path) -> None:
        writer("half")(folder)
        if dist.get_rank(group) == 1:
            raise OSError("disk full")

    return save_ranks(path, write, group=group)


def test_a_rank_that_cannot_write_leaves_the_earlier_memory(world, tmp_path):
    name = world(2, save, tmp_path, "first")[0]
    one, two = world(2, fail, tmp_path)
    assert (two.kind, two.message) == ("OSError", "disk full")
    assert one.kind == "RankError"
    assert "rank 1 failed, so this one stopped too: OSError: disk full" in one.message
    assert only(tmp_path).name == name
    assert world(2, load, tmp_path) == both("first")


def misread(group: dist.ProcessGroup, path: Path) -> str:
    return open_ranks(path, lambda folder: (folder / f"of-{dist.get_rank(group)}").read_text(), group=group)


def test_a_rank_that_cannot_read_stops_all(world, tmp_path):
    save_ranks(tmp_path, lambda folder: (folder / "of-0").write_text("x"))
    os.rename(only(tmp_path) / "rank-0-of-1", only(tmp_path) / "rank-0-of-2")
    one, two = world(2, load, tmp_path)
    assert (one.kind, two.kind) == ("SnapshotError", "SnapshotError")
    world(2, save, tmp_path / "whole", "first")
    failures = world(2, misread, tmp_path / "whole")
    assert [failed.kind for failed in failures] == ["FileNotFoundError", "FileNotFoundError"]


def die_writing(group: dist.ProcessGroup, path: Path) -> str:
    def write(folder: Path) -> None:
        writer("half")(folder)
        if dist.get_rank(group) == 1:
            os._exit(9)

    return save_ranks(path, write, group=group)


def die_committing(group: dist.ProcessGroup, path: Path, late: bool) -> str:
    """Rank 0 dies at the moment the new memory takes the place of the old one, a little before or after."""
    replace = os.replace

    def last(source: Path, target: Path) -> None:
        commits = Path(target) == path / "manifest.json"
        if not commits or late:
            replace(source, target)
        if commits:
            os._exit(9)

    if dist.get_rank(group) == 0:
        os.replace = last
    return save(group, path, "second")


DEATHS = {
    "while it writes": (range(1, 3), 1, range(2), die_writing, (), "first"),
    "before the new one is current": (range(2), 0, range(1, 3), die_committing, (False,), "first"),
    "after the new one is current": (range(2), 0, range(1, 3), die_committing, (True,), "second"),
}


@pytest.mark.parametrize("when", DEATHS)
def test_a_rank_that_is_killed_leaves_one_whole_memory(tmp_path, when):
    members, victim, survivors, job, options, left = DEATHS[when]
    world, path = World(3, tmp_path), tmp_path / "memory"
    try:
        world.on(members, save, path, "first")
        answers = world.on(members, job, path, *options)
        assert answers[victim] == DEAD
        assert answers[1 - victim].kind == "RankError"
        assert world.on(survivors, load, path) == both(left)
        name = world.on(survivors, save, path, "third")[0]
        assert world.on(survivors, load, path) == both("third")
        assert {file.name for file in path.iterdir()} == {name, "manifest.json"}
    finally:
        world.close()


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DATA, SEAL, MANIFEST = "rank-0-of-1/deep/data.txt", "rank-0-of-1.json", "../manifest.json"
DAMAGE = {
    "one bit": (DATA, flip, r"data\.txt is damaged \(its checksum differs\)"),
    "cut": (DATA, lambda file: file.write_text("fir"), r"data\.txt has 3 bytes, not 15"),
    "file missing": (DATA, Path.unlink, r"data\.txt is missing"),
    "list of one rank": (SEAL, flip, r"rank-0-of-1\.json is missing or damaged"),
    "list missing": (SEAL, Path.unlink, r"rank-0-of-1\.json is missing or damaged"),
    "manifest": (MANIFEST, flip, "damaged or foreign"),
    "manifest missing": (MANIFEST, Path.unlink, "holds no memory of all ranks"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_by_name(tmp_path, name):
    save(None, tmp_path, "first")
    file, harm, message = DAMAGE[name]
    harm(only(tmp_path) / file)
    with pytest.raises(SnapshotError, match=message):
        load(None, tmp_path)


def test_what_is_something_else_stays(tmp_path):
    with snapshot.writing_snapshot(tmp_path / "box", "box", 1, {}) as folder:
        (folder / "data").write_text("x")
    with pytest.raises(SnapshotError, match="is a box, not a memory of all ranks"):
        save(None, tmp_path / "box", "first")
    assert snapshot.open_snapshot(tmp_path / "box", "box", 1) == {}
    with pytest.raises(SnapshotError, match="there is no memory of all ranks"):
        load(None, tmp_path / "nothing")


def test_checksums_may_be_left_to_who_reads(tmp_path):
    save(None, tmp_path, "first")
    flip(only(tmp_path) / DATA)
    assert load(None, tmp_path, verify=False) != "first of rank 0"
