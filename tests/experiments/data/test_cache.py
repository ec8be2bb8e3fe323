import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.data import cache
from experiments.data.build import Documents, build
from experiments.data.corpus import Corpus, cache_root
from experiments.data.text import TextCorpus
from tests.experiments.data.toy import damage, manifest, source


def made(seed: int = 0) -> Corpus:
    splits = [
        Documents(name, [str(s) for s in seeds], [source(s) for s in seeds])
        for name, seeds in (("train", range(seed, seed + 20)), ("valid", [900]), ("test", [901]))
    ]
    return build("toy", splits, 300, {"source": "toy"})


def same(ours: Corpus, theirs: Corpus) -> None:
    assert ours.fingerprint == theirs.fingerprint
    for name, split in theirs.splits.items():
        np.testing.assert_array_equal(ours.splits[name].tokens, split.tokens)
        np.testing.assert_array_equal(ours.splits[name].offsets, split.offsets)


def test_round_trip_without_pickle(tmp_path: Path) -> None:
    corpus = made()
    stored = cache.store(corpus, tmp_path / "one")
    same(stored, corpus)
    assert stored.folder == tmp_path / "one"
    assert stored.decode(stored.train.document(0)) == corpus.decode(corpus.train.document(0))
    assert not stored.train.tokens.flags.writeable, "tokens are mapped, not read"
    for path in (tmp_path / "one").glob("*.npy"):
        np.load(path, allow_pickle=False)
    assert [path.name for path in tmp_path.iterdir()] == ["one"], "no scratch folder is left"


@pytest.mark.parametrize(
    "name", ["train.tokens.npy", "valid.offsets.npy", "token_bytes.npy", "tokenizer.json"]
)
@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, how: str) -> None:
    folder = tmp_path / "one"
    cache.store(made(), folder)
    path = folder / name
    if how == "changed":
        damage(path)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with pytest.raises(cache.DamagedCacheError, match=f"{name} is missing or was changed; delete"):
        cache.load(folder)
    with pytest.warns(RuntimeWarning, match="building the corpus again"):
        assert cache.load_or_warn(folder) is None
    same(cache.store(made(), folder), made())
    same(cache.load(folder), made())
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_foreign_folder_and_another_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    with pytest.raises(cache.DamagedCacheError, match=r"no readable manifest\.json"):
        cache.load(tmp_path / "foreign")
    cache.store(made(), tmp_path / "one")
    written = manifest(tmp_path / "one")
    (tmp_path / "one" / "manifest.json").write_text(json.dumps({**written, "version": 99}))
    with pytest.raises(cache.DamagedCacheError, match="not a corpus of format"):
        cache.load(tmp_path / "one")
    assert cache.load(tmp_path / "nothing") is None


def test_whoever_comes_second_keeps_the_first(tmp_path: Path) -> None:
    first = cache.store(made(), tmp_path / "one")
    inode = (tmp_path / "one" / "manifest.json").stat().st_ino
    second = cache.store(made(), tmp_path / "one")
    same(first, second)
    assert (tmp_path / "one" / "manifest.json").stat().st_ino == inode


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(cache, "write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        cache.store(made(), tmp_path / "one")
    assert not list(tmp_path.iterdir())


def test_processes_that_build_at_once_agree(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for seed in range(60):
        (folder / f"{seed}.txt").write_text(source(seed))
    program = (
        "import sys; from experiments.data.text import TextCorpus;"
        "c = TextCorpus(sys.argv[1], 300, sys.argv[2]).load();"
        "print(c.fingerprint, int(c.train.tokens.sum()))"
    )
    command = [sys.executable, "-c", program, str(folder), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0]
    corpus = TextCorpus(folder, 300, tmp_path / "cache").load()
    assert answers == {f"{corpus.fingerprint} {int(corpus.train.tokens.sum())}\n"}
    assert len(list((tmp_path / "cache" / "corpora").iterdir())) == 1


def test_the_cache_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNEMOGRAPH_CACHE", str(tmp_path / "env"))
    assert cache_root() == tmp_path / "env" / "corpora"
    assert cache_root(tmp_path / "given") == tmp_path / "given" / "corpora"
    monkeypatch.delenv("MNEMOGRAPH_CACHE")
    assert "mnemograph" in str(cache_root())


def test_a_cache_that_was_moved_still_opens(tmp_path: Path) -> None:
    corpus = cache.store(made(), tmp_path / "one")
    shutil.move(tmp_path / "one", tmp_path / "two")
    same(cache.load(tmp_path / "two"), corpus)
