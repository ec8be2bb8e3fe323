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
from retrieval.snapshot import open_snapshot, writing_snapshot
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


def test_a_manifest_of_before_it_had_a_checksum_is_read(tmp_path):
    write(tmp_path / "box")
    file = tmp_path / "box" / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["sha256"]
    file.write_text(json.dumps(manifest))
    assert open_snapshot(tmp_path / "box", "box", 1) == {"answer": 42}


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
