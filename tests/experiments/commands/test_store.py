"""``mnemograph store`` as a user types it."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from experiments.cli import main
from experiments.commands import store_input, store_output
from experiments.commands.store import ACTIONS
from retrieval import Datastore
from retrieval.datastore.lock import WriterLock
from retrieval.datastore.writer import SegmentWriter

ROOT = Path(__file__).parents[3]
N, D = 300, 16


@pytest.fixture(autouse=True)
def _arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of a user, in the folder where the command is typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MNEMOGRAPH_DEBUG", raising=False)
    keys = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
    np.save("keys.npy", keys / np.linalg.norm(keys, axis=1, keepdims=True))
    np.save("values.npy", np.arange(N) * 3)
    np.save("docs.npy", np.arange(N) // 10)
    np.save("pos.npy", np.arange(N) % 10)
    np.save("queries.npy", np.load("keys.npy")[:20])


ALL = ["--keys", "keys.npy", "--values", "values.npy", "--documents", "docs.npy", "--positions", "pos.npy"]


def store(*words: object) -> int:
    """The exit code of the command, however it comes."""
    try:
        return main(["store", *map(str, words)])
    except SystemExit as stop:
        return int(stop.code or 0)


def refused(capsys: pytest.CaptureFixture, *words: object) -> str:
    """The one line on standard error of a command that has something to correct."""
    assert store(*words) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1, said
    assert said.startswith("mnemograph store")
    return said


@pytest.fixture
def built(capsys: pytest.CaptureFixture) -> Path:
    assert store("build", "a.store", *ALL) == 0
    capsys.readouterr()
    return Path("a.store")


def user(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "experiments", "store", *words]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True)


def test_a_user_builds_asks_and_checks(tmp_path: Path) -> None:
    done = user("build", "a.store", *ALL, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "a.store has 300 entries of 16 dimensions: Flat, ip" in done.stdout
    done = user("search", "a.store", "--queries", "queries.npy", "--k", "2", cwd=tmp_path)
    rows = [line.split() for line in done.stdout.splitlines()[1:7]]
    # A key finds itself first; its columns: query, rank, score, id, value, document, position.
    assert [row[0] + row[1] for row in rows] == ["01", "02", "11", "12", "21", "22"]
    assert [row[3:] for row in rows[::2]] == [[str(i), str(3 * i), "0", str(i)] for i in range(3)]
    assert re.search(r"20 queries, .* a query took .*FLOPs and moved .*B", done.stdout)
    with WriterLock(tmp_path / "a.store").held():
        busy = user("compact", "a.store", cwd=tmp_path)
    assert busy.returncode == 2
    assert f"is being written by process {os.getpid()}" in busy.stderr
    assert "Traceback" not in busy.stderr


@pytest.mark.parametrize("action", list(ACTIONS))
def test_help_of_every_action_teaches(action: str, capsys: pytest.CaptureFixture) -> None:
    assert store(action, "--help") == 0
    assert f"mnemograph store {action} " in capsys.readouterr().out.split("examples:")[1]


def test_out_holds_what_the_library_finds(built: Path) -> None:
    np.save("own.npy", np.arange(20) // 10)
    rules = ["--exclude", "own.npy", "--visible-at", "7", "--k", "4"]
    assert store("search", built, "--queries", "queries.npy", *rules, "--out", "found.npz") == 0
    with Datastore.open(built) as opened:
        expected = opened.search(
            torch.from_numpy(np.load("queries.npy")),
            4,
            exclude=torch.arange(20) // 10,
            visible_at=torch.full((20,), 7),
        )
        values = opened.values(expected)
    with np.load("found.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["ids"], expected.ids)
        np.testing.assert_array_equal(found["scores"], expected.scores)
        np.testing.assert_array_equal(found["values"], values)
        assert (found["documents"] != np.load("own.npy")[:, None])[found["mask"]].all()
        assert (found["positions"] < 7).all()


def test_json_is_for_programs(built: Path, capsys: pytest.CaptureFixture) -> None:
    assert store("search", built, "--queries", "queries.npy", "--k", 2, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["found"]) == 40
    assert said["flops"] > 0
    assert said["bytes"] > 0
    assert said["found"][2]["value"] == 3
    assert store("info", built, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["entries"], said["d"], said["metric"], said["deleted_share"]) == (N, D, "ip", 0)
    assert store("audit", built, "--k", 4, "--json") == 0
    assert json.loads(capsys.readouterr().out)["recall"] == 1.0


def test_arrays_are_read_a_piece_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_input, "BATCH_BYTES", 4 * D * 7)
    columns = store_input.read_columns({"keys": Path("keys.npy")})
    assert {len(batch.keys) for batch in columns.batches()} == {7, N % 7}
    assert torch.equal(columns.sample(100)[0], torch.from_numpy(np.load("keys.npy")[::3]))
    assert store("build", "a.store", *ALL) == 0
    with Datastore.open("a.store") as opened:
        keys = np.load("keys.npy").astype(np.float16)
        np.testing.assert_array_equal(opened.keys(torch.arange(N)), keys)


def test_safetensors_hold_all_columns() -> None:
    keys = torch.from_numpy(np.load("keys.npy")).bfloat16()
    save_file({"keys": keys, "values": torch.arange(N) + 5, "documents": torch.arange(N)}, "all.safetensors")
    assert store("build", "s.store", "--keys", "all.safetensors", "--dtype", "float32") == 0
    with Datastore.open("s.store") as opened:
        assert torch.equal(opened.keys(torch.arange(N)), keys.float())
        assert opened.values(torch.tensor([7])).tolist() == [12]
        assert opened.documents(torch.tensor([7])).tolist() == [7]


def test_auto_says_why_and_is_remembered(capsys: pytest.CaptureFixture) -> None:
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((60, D))
    keys = centres[rng.integers(0, 60, 3000)] + 0.2 * rng.standard_normal((3000, D))
    np.save("many.npy", keys.astype(np.float32))
    assert store("build", "auto.store", "--keys", "many.npy", "--factory", "auto", "--k", 8) == 0
    said = capsys.readouterr().out
    assert "<- chosen" in said
    chosen = next(line for line in said.splitlines() if line.endswith("<- chosen")).split()[0]
    assert store("info", "auto.store", "--json") == 0
    info = json.loads(capsys.readouterr().out)
    assert info["factory"] == chosen
    assert set(info["search"]) == {"nprobe", "ef"}
    # What was measured for one index is not used for another.
    assert store("reindex", "auto.store", "--factory", "IVF8,Flat") == 0
    capsys.readouterr()
    assert store("info", "auto.store", "--json") == 0
    assert "search" not in json.loads(capsys.readouterr().out)


def test_changes(built: Path, capsys: pytest.CaptureFixture) -> None:
    assert store("add", built, "--keys", "queries.npy") == 0
    assert "ids 300 to 319" in capsys.readouterr().out
    with Datastore.open(built) as opened:
        assert opened.values(torch.tensor([305])).tolist() == [305]
    assert store("delete", built, "--ids", 1, 2) == 0
    assert store("delete", built, "--documents", 5, 6) == 0
    assert "298 entries" in capsys.readouterr().out
    assert store("info", built) == 0
    assert "22 (6.9%;" in capsys.readouterr().out
    assert store("compact", built) == 0
    assert store("build", "b.store", *ALL) == 0
    capsys.readouterr()
    assert store("merge", built, "b.store") == 0
    assert "b.store: ids 320 to 619 here" in capsys.readouterr().out


def test_merged_documents_stay_apart_unless_they_are_the_same(built: Path) -> None:
    labels = {}
    for how in ("apart", "same"):
        assert store("build", f"{how}.store", *ALL) == 0
        assert store("merge", f"{how}.store", built, "--documents", how) == 0
        with Datastore.open(f"{how}.store") as merged:
            labels[how] = set(merged.documents(merged.ids()).tolist())
    assert labels["same"] < labels["apart"]


def test_verify_names_the_damaged_file(built: Path, capsys: pytest.CaptureFixture) -> None:
    assert store("verify", built) == 0
    file = next(built.glob("seg-*/keys.npy"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    capsys.readouterr()
    assert store("verify", built) == 1
    assert f"{file} is damaged" in capsys.readouterr().err
    file.unlink()
    assert store("verify", built) == 1
    assert "keys.npy is missing" in capsys.readouterr().err
    assert "keys.npy is missing" in refused(capsys, "info", built)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "store what? build, add, search"),
        ("serach x", "invalid choice: 'serach'"),
        ("info nowhere", "nowhere does not exist: mnemograph store build nowhere --keys keys.npy"),
        ("search . --queries queries.npy", ". is no store"),
        ("build . --keys keys.npy", "holds something else"),
        ("build b.store --keys no.npy", "--keys no.npy does not exist"),
        ("build b.store --keys objects.npy", "without objects in it"),
        ("build b.store --keys words.npy", "no numbers"),
        ("build b.store --keys values.npy", "keys are floats [n, d]"),
        ("build b.store --keys keys.npy --values queries.npy", "keys.npy 300, queries.npy 20"),
        ("build b.store --keys nan.npy", "nan.npy: the key of row 17 is not finite"),
        ("build b.store --keys large.npy", "--dtype float32"),
        ("build b.store --keys nan.npy --factory auto", "nan.npy: the key of row 17 is not finite"),
        ("build b.store --keys keys.npy --factory IVF9x", "IVF9x"),
        ("build b.store --keys keys.npy --memory-gb 0.0001", "--memory-gb 0.0001 is too little: give 0.0"),
        ("build b.store --keys keys.npy --recall 2", "no share above 0"),
        ("build b.store --text nowhere", "--text nowhere does not exist"),
        ("build b.store --text keys.npy", "keys.npy looks binary"),
        ("build b.store", "one of the arguments --keys --text is required"),
        ("build a.store --keys keys.npy", "holds a store of 300 entries already: --replace"),
        ("add a.store --keys narrow.npy", "narrow.npy has keys of 8 dimensions, a.store has keys of 16"),
        ("search a.store --queries narrow.npy", "queries are floats [n, 16]"),
        ("search a.store --queries queries.npy --exclude docs.npy", "300 numbers for 20 queries"),
        ("search a.store --queries queries.npy --exclude x", "--exclude x: give whole numbers"),
        ("search a.store --queries queries.npy --out found.txt", "ends in .npz"),
        ("search a.store --text hello", "was built from arrays"),
        ("delete a.store --ids 999", "there is no entry 999"),
        ("merge a.store nowhere", "nowhere does not exist"),
        ("reindex a.store --factory IVF9x", "IVF9x"),
    ],
)
def test_mistakes_are_one_line(words: str, says: str, built: Path, capsys: pytest.CaptureFixture) -> None:
    keys = np.load("keys.npy")
    np.save("narrow.npy", keys[:, :8])
    np.save("words.npy", np.array(["a", "b"]))
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save("large.npy", keys * 1e6)
    keys[17, 3] = np.nan
    np.save("nan.npy", keys)
    before = sorted(built.rglob("*"))
    assert says in refused(capsys, *words.split())
    assert sorted(built.rglob("*")) == before


def test_a_query_that_is_no_number_is_named(built: Path, capsys: pytest.CaptureFixture) -> None:
    queries = np.load("queries.npy")
    queries[4] = np.nan
    np.save("queries.npy", queries)
    assert store("search", built, "--queries", "queries.npy") == 0
    assert "query 4 is not finite, so it has no neighbours" in capsys.readouterr().err


def test_a_full_disk_leaves_the_old_store(
    built: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(SegmentWriter, "add", full)
        assert "the disk of a.store is full" in refused(capsys, "add", built, "--keys", "keys.npy")
    with monkeypatch.context() as patched:
        patched.setattr(store_input.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
        assert "are free there: free some" in refused(capsys, "build", "b.store", *ALL)
    assert store("verify", built) == 0
    assert len(Datastore.open(built)) == N


def test_ctrl_c_leaves_the_old_store(
    built: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store_output.Bar, "advance", stop)
    assert store("build", built, "--keys", "queries.npy", "--replace") == 130
    assert "a.store is as it was before" in capsys.readouterr().err
    assert store("verify", built) == 0
    assert len(Datastore.open(built)) == N
    assert not list(built.glob(".*writing*"))
