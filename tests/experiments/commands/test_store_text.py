"""Stores of text: files as entries, and entries as text again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.cli import main
from experiments.commands.store_text import StoredText
from retrieval import Datastore

CALLS = "def main(argv):\n    return run(argv)\n\n\ndef {name}(x):\n    return x + {number}\n\n\n"
NAMES = ("first", "second", "third", "fourth")


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MNEMOGRAPH_DEBUG", raising=False)
    folder = tmp_path / "project" / "inner"
    folder.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        place = folder if number else folder.parent
        (place / f"{name}.py").write_text(CALLS.format(name=name, number=number) * 6)
    (folder / "empty.py").write_text("")
    (folder / "picture.png").write_bytes(b"\0\1")


@pytest.fixture
def built(capsys: pytest.CaptureFixture) -> Path:
    words = ["store", "build", "code.store", "--text", "project", "--vocab-size", "290", "--depth", "6"]
    assert main(words) == 0
    assert "store search code.store --text" in capsys.readouterr().out
    return Path("code.store")


def found(capsys: pytest.CaptureFixture, *words: str) -> list[dict]:
    capsys.readouterr()
    assert main(["store", "search", "code.store", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["found"]


def test_a_text_finds_what_it_begins(built: Path, capsys: pytest.CaptureFixture) -> None:
    rows = found(capsys, "--text", "def main(", "--k", "5")
    assert all(row["before"].endswith("def main(") for row in rows)
    assert all(row["after"].startswith("argv):\n") for row in rows)
    rows = found(capsys, "--text", "def second(", "--k", "1")
    assert rows[0]["document"] == "inner/second.py"
    assert main(["store", "search", "code.store", "--text", "def second("]) == 0
    assert "def second(|x):\\n    return x" in capsys.readouterr().out


def test_every_position_of_every_file_is_an_entry(built: Path) -> None:
    with Datastore.open(built) as store:
        text = StoredText.open(built, store.info())
        assert sorted(filter(None, text.names)) == sorted(
            ["first.py", *(f"inner/{name}.py" for name in NAMES[1:])]
        )
        everything = store.ids()
        documents, positions, values = (
            column(everything).numpy() for column in (store.documents, store.positions, store.values)
        )
    for label, name in enumerate(text.names):
        own = documents == label
        np.testing.assert_array_equal(positions[own], np.arange(own.sum()))
        assert text.tokenizer.decode(values[own]) == (Path("project") / str(name)).read_text()


def test_keys_are_those_of_the_stored_encoder(built: Path) -> None:
    with Datastore.open(built) as store:
        text = StoredText.open(built, store.info())
        context = np.full((1, 6), -1)
        context[0, 0] = 0  # the first entry of a document knows its marker only
        np.testing.assert_array_equal(
            store.keys(store.ids()[:1]).numpy(), text.encoder.keys(context).astype(np.float16)
        )


def test_documents_go_by_their_names(built: Path, capsys: pytest.CaptureFixture) -> None:
    rows = found(capsys, "--text", "def second(", "--k", "50", "--exclude", "inner/second.py")
    assert rows
    assert "inner/second.py" not in {row["document"] for row in rows}
    assert main(["store", "search", "code.store", "--text", "x", "--exclude", "second.py"]) == 2
    assert "did you mean inner/second.py?" in capsys.readouterr().err
    assert main(["store", "add", "code.store", "--text", "project/first.py"]) == 2
    assert "store delete code.store --documents first.py" in capsys.readouterr().err
    assert main(["store", "delete", "code.store", "--documents", "first.py"]) == 0
    assert main(["store", "add", "code.store", "--text", "project/first.py"]) == 0
    rows = found(capsys, "--text", "def first(", "--k", "1")
    assert (rows[0]["document"], rows[0]["before"][-10:]) == ("first.py", "def first(")
    assert main(["store", "verify", "code.store"]) == 0


def test_an_addition_that_fails_gives_no_name_away(
    built: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("more.py").write_text("def more(y):\n    return y\n")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Datastore, "append", stop)
        assert main(["store", "add", "code.store", "--text", "more.py"]) == 130
    assert main(["store", "add", "code.store", "--text", "more.py"]) == 0
    assert found(capsys, "--text", "def more(", "--k", "1")[0]["document"] == "more.py"


def test_text_and_arrays_do_not_mix(built: Path, capsys: pytest.CaptureFixture) -> None:
    np.save("keys.npy", np.ones((3, 4), np.float32))
    for words, says in (
        (["add", "code.store", "--keys", "keys.npy"], "is a store of text"),
        (["merge", "code.store", "code.store"], "is a store of text"),
        (["build", "b.store", "--text", "project", "--metric", "l2"], "--metric goes with --keys"),
        (["build", "b.store", "--text", "project", "project"], "would both be called first.py"),
        (["search", "code.store", "--text", ""], "--text is empty"),
    ):
        assert main(["store", *words]) == 2
        assert says in capsys.readouterr().err
    # Replaced by arrays, it no longer pretends to know text.
    assert main(["store", "build", "code.store", "--keys", "keys.npy", "--replace"]) == 0
    assert main(["store", "search", "code.store", "--text", "def"]) == 2
    assert "was built from arrays" in capsys.readouterr().err


def test_a_damaged_tokenizer_is_named(built: Path, capsys: pytest.CaptureFixture) -> None:
    file = built / "text" / "tokenizer.json"
    file.write_text(file.read_text().replace("BPE", "XPE"))
    assert main(["store", "verify", "code.store"]) == 1
    assert "tokenizer.json is damaged" in capsys.readouterr().err
