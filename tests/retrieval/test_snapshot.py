from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys

import numpy as np
import pytest

import retrieval.snapshot
from retrieval import SnapshotError
from retrieval.runtime import faiss
from retrieval.snapshot import open_snapshot, replace_manifest, writing_snapshot
from tests.retrieval.crashes import killed_before_step, small_disk


def write(path, content=b"0123456789", version=1, kind="box"):
    with writing_snapshot(path, kind, version, {"answer": 42}) as folder:
        (folder / "data.bin").write_bytes(content)


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "deep" / "box")
    assert open_snapshot(tmp_path / "deep" / "box", "box", 1) == {"answer": 42}
    assert (tmp_path / "deep" / "box" / "data.bin").read_bytes() == b"0123456789"


def test_replacing_keeps_what_readers_have_open(tmp_path):
    write(tmp_path / "box")
    with (tmp_path / "box" / "data.bin").open("rb") as reader:
        write(tmp_path / "box", b"new")
        assert reader.read() == b"0123456789"
    assert (tmp_path / "box" / "data.bin").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["box"]


def test_a_failed_write_leaves_the_old_one(tmp_path):
    write(tmp_path / "box")

    def fail():
        with writing_snapshot(tmp_path / "box", "box", 1, {}) as folder:
            (folder / "data.bin").write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert open_snapshot(tmp_path / "box", "box", 1) == {"answer": 42}
    assert [path.name for path in tmp_path.iterdir()] == ["box"]


KILLED = """
import os, sys
from retrieval.snapshot import writing_snapshot
with writing_snapshot(sys.argv[1], "box", 1, {}) as folder:
    (folder / "data.bin").write_bytes(b"half")
    os._exit(9)
"""


def test_a_writer_that_is_killed_leaves_the_old_one(tmp_path):
    write(tmp_path / "box")
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "box")], check=False)
    assert run.returncode == 9
    assert open_snapshot(tmp_path / "box", "box", 1) == {"answer": 42}
    write(tmp_path / "box", b"new")
    assert (tmp_path / "box" / "data.bin").read_bytes() == b"new"


def flip(path):
    content = bytearray((path / "data.bin").read_bytes())
    content[3] ^= 1
    (path / "data.bin").write_bytes(content)


def edit(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


DAMAGE = {
    "one bit": (flip, r"data\.bin is damaged"),
    "cut": (lambda p: (p / "data.bin").write_bytes(b"01234"), r"has 5 bytes, not 10"),
    "file missing": (lambda p: (p / "data.bin").unlink(), r"data\.bin is missing"),
    "manifest cut": (lambda p: (p / "manifest.json").write_text('{"kind": "b'), "damaged or foreign"),
    "manifest foreign": (lambda p: (p / "manifest.json").write_text("[1]"), "damaged or foreign"),
    "manifest missing": (lambda p: (p / "manifest.json").unlink(), "holds no box"),
    "another kind": (lambda p: edit(p, kind="jar"), "is a jar, not a box"),
    "newer": (lambda p: edit(p, version=2), "format 2 .* update mnemograph"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_by_name(tmp_path, name):
    write(tmp_path / "box")
    harm, message = DAMAGE[name]
    harm(tmp_path / "box")
    with pytest.raises(SnapshotError, match=message):
        open_snapshot(tmp_path / "box", "box", 1)


def test_nothing_there(tmp_path):
    with pytest.raises(SnapshotError, match="there is no box"):
        open_snapshot(tmp_path / "box", "box", 1)
    (tmp_path / "file").write_text("x")
    with pytest.raises(SnapshotError, match="damaged or foreign"):
        open_snapshot(tmp_path / "file", "box", 1)


def test_lengths_are_checked_even_without_checksums(tmp_path):
    write(tmp_path / "box")
    flip(tmp_path / "box")
    open_snapshot(tmp_path / "box", "box", 1, verify=False)
    (tmp_path / "box" / "data.bin").write_bytes(b"")
    with pytest.raises(SnapshotError, match="0 bytes"):
        open_snapshot(tmp_path / "box", "box", 1, verify=False)


@pytest.mark.filterwarnings("ignore:.*fork.*")
@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "step aside"])
def test_kill_at_any_step_leaves_the_old_one_or_the_new_one(tmp_path, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(retrieval.snapshot, "exchange", lambda one, other: False)
    seen, step, killed = [], 0, True
    while killed:
        shutil.rmtree(tmp_path / "box", ignore_errors=True)
        write(tmp_path / "box", b"old")
        killed = killed_before_step(step, lambda: write(tmp_path / "box", b"new"))
        assert open_snapshot(tmp_path / "box", "box", 1) == {"answer": 42}
        seen.append((tmp_path / "box" / "data.bin").read_bytes())
        step += 1
    assert set(seen) == {b"old", b"new"}
    write(tmp_path / "box", b"last")
    assert [path.name for path in tmp_path.iterdir()] == ["box"], "what the killed ones left is cleared away"


def test_what_another_machine_or_a_running_process_is_writing_is_left_alone(tmp_path):
    names = [".box.writing-elsewhere-1@0", f".box.writing-{platform.node()}-{os.getpid()}@99", ".boxes"]
    dead = f".box.writing-{platform.node()}-{2**22 + 1}@0"
    for name in [*names, dead]:
        (tmp_path / name).mkdir()
    write(tmp_path / "box")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "box"])


FOREIGN = {
    "without checksum": lambda m: {name: m[name] for name in ("kind", "version", "files", "about")},
    "files is a list": lambda m: m | {"files": []},
    "a file is a number": lambda m: m | {"files": {"data.bin": 3}},
    "about is nothing": lambda m: m | {"about": None},
    "version is a word": lambda m: m | {"version": "one"},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_manifest_is_refused(tmp_path, name):
    write(tmp_path / "box")
    file = tmp_path / "box" / "manifest.json"
    file.write_text(json.dumps(FOREIGN[name](json.loads(file.read_text()))))
    with pytest.raises(SnapshotError, match="damaged or foreign"):
        open_snapshot(tmp_path / "box", "box", 1)


def test_what_is_no_manifest_at_all_is_refused(tmp_path):
    write(tmp_path / "box")
    file = tmp_path / "box" / "manifest.json"
    for harm in (
        lambda: file.write_text("[" * 100_000),
        lambda: file.write_bytes(b"\xff\xfe"),
        lambda: [file.unlink(), file.mkdir()],
    ):
        harm()
        with pytest.raises(SnapshotError, match="damaged or foreign"):
            open_snapshot(tmp_path / "box", "box", 1)
    replace_manifest(tmp_path / "other.json", "box", 1, {"data.bin": {"sha256": ""}}, {})
    (tmp_path / "odd").mkdir()
    (tmp_path / "other.json").rename(tmp_path / "odd" / "manifest.json")
    with pytest.raises(SnapshotError, match="damaged or foreign"):
        open_snapshot(tmp_path / "odd", "box", 1)


def everything(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def foreign_folder(path):
    (path / "sub").mkdir(parents=True)
    (path / "thesis.tex").write_text("years of work")
    (path / "sub" / "data").write_text("x")


def box_with_notes(path):
    write(path)
    (path / "notes.txt").write_text("mine")


def web_page(path):
    path.mkdir()
    (path / "manifest.json").write_text('{"name": "my page", "icons": []}')


def cut_manifest(path):
    write(path)
    (path / "manifest.json").write_text('{"kind": "box", "ver')


TAKEN = {
    "folder": (foreign_folder, r"holds something else \(sub\): give another path for the box"),
    "file": (lambda p: p.write_text("precious"), "is a file: give another path"),
    "another kind": (lambda p: write(p, kind="jar"), r"holds another kind of snapshot \(jar\): give another"),
    "own and more": (box_with_notes, r"something else \(notes\.txt\)"),
    "manifest of a web page": (web_page, r"something else \(manifest\.json\)"),
    "manifest cut": (cut_manifest, r"something else \(data\.bin\)"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_not_ours_is_never_replaced(tmp_path, name):
    make, message = TAKEN[name]
    make(tmp_path / "proj")
    before = everything(tmp_path)
    with pytest.raises(FileExistsError, match=message):
        write(tmp_path / "proj")
    assert everything(tmp_path) == before


def test_what_comes_while_it_is_written_is_not_replaced(tmp_path):
    def slow():
        with writing_snapshot(tmp_path / "box", "box", 1, {}) as folder:
            (folder / "data.bin").write_bytes(b"x")
            foreign_folder(tmp_path / "box")

    with pytest.raises(FileExistsError, match=r"something else \(sub\)"):
        slow()
    assert set(everything(tmp_path)) == {"box/thesis.tex", "box/sub/data"}


def test_what_may_be_replaced(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    for name in ("one bit", "cut", "file missing", "newer"):
        write(tmp_path / name)
        DAMAGE[name][0](tmp_path / name)
        write(tmp_path / name)
        assert open_snapshot(tmp_path / name, "box", 1) == {"answer": 42}


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    write(tmp_path / "v1")
    (tmp_path / "latest").symlink_to("v1")
    write(tmp_path / "latest", b"new")
    assert (tmp_path / "latest").is_symlink()
    assert (tmp_path / "v1" / "data.bin").read_bytes() == b"new"
    (tmp_path / "next").symlink_to("v2")
    write(tmp_path / "next", b"second")
    assert (tmp_path / "v2" / "data.bin").read_bytes() == b"second"
    assert open_snapshot(tmp_path / "next", "box", 1) == {"answer": 42}


def test_the_folder_one_is_in_is_not_pulled_away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileExistsError, match="is the folder you are in: give the name of a folder inside"):
        write(".")
    write("box")
    assert [path.name for path in tmp_path.iterdir()] == ["box"]


def test_folders_that_are_made_are_flushed(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(retrieval.snapshot, "flush", flushed.append)
    retrieval.snapshot.make_folder(tmp_path / "a" / "b")
    assert flushed == [tmp_path, tmp_path / "a"]


def test_one_flipped_bit_in_the_manifest_is_found(tmp_path):
    write(tmp_path / "box")
    file = tmp_path / "box" / "manifest.json"
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(SnapshotError):
            open_snapshot(tmp_path / "box", "box", 1)


def test_a_file_whose_end_is_lost_on_a_full_disk_is_no_snapshot(tmp_path):
    """FAISS's own writing says nothing when the last buffer does not fit."""
    index = faiss.IndexFlatL2(8)
    index.add(np.ones((100, 8), np.float32))
    outcomes = set()
    with small_disk(tmp_path / "disk", 64) as disk:
        write(disk / "box", b"old")
        filler = disk / "filler"
        for kilobytes in range(0, 28, 4):
            filler.write_bytes(bytes(shutil.disk_usage(disk).free - 1024 * kilobytes))
            try:
                with writing_snapshot(disk / "box", "box", 1, {}) as folder:
                    faiss.write_index(index, str(folder / "index"))
            except (OSError, RuntimeError):
                assert (disk / "box" / "data.bin").read_bytes() == b"old"
                outcomes.add("refused")
            else:
                assert faiss.read_index(str(disk / "box" / "index")).ntotal == 100
                outcomes.add("whole")
                write(disk / "box", b"old")
            filler.unlink()
            open_snapshot(disk / "box", "box", 1)
    assert outcomes == {"refused", "whole"}
