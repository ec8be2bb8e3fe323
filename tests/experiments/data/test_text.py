import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest

from experiments.data.corpus import Corpus, CorpusError
from experiments.data.text import TextCorpus
from tests.experiments.data.toy import source

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


def load(path: Path, tmp_path: Path, **options) -> Corpus:
    return TextCorpus(path, options.pop("vocab_size", 300), tmp_path / "cache", **options).load()


def documents(corpus: Corpus, name: str) -> list[str]:
    split = corpus.splits[name]
    return [corpus.decode(split.document(j)) for j in range(split.n_documents)]


def test_one_long_file_has_splits_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(source(seed) for seed in range(200)))
    corpus = load(path, tmp_path)
    pieces = [piece for name in corpus.splits for piece in documents(corpus, name)]
    assert corpus.name == "book"
    assert sum(len(piece) for piece in pieces) == len(path.read_text())
    assert all(piece in path.read_text() for piece in pieces)
    assert len(set(pieces)) == len(pieces) > 50
    sizes = {name: sum(map(len, documents(corpus, name))) for name in corpus.splits}
    assert sizes["train"] > 0.85 * len(path.read_text())
    assert min(sizes["valid"], sizes["test"]) > 0.04 * len(path.read_text())


def test_a_text_without_line_breaks_is_cut_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    path.write_text(" ".join(str(number) for number in range(20_000)))
    corpus = load(path, tmp_path)
    pieces = [piece for name in corpus.splits for piece in documents(corpus, name)]
    assert sum(map(len, pieces)) == len(path.read_text())


def test_a_folder_has_a_document_a_file_whatever_its_packing(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    (folder / "deep").mkdir(parents=True)
    for seed in range(60):
        (folder / f"{seed}.txt").write_text(source(seed))
    (folder / "a.md").write_text(source(101))
    (folder / "b.py").write_text(source(102))
    (folder / "deep" / "c.txt.gz").write_bytes(gzip.compress(source(103).encode()))
    (folder / "deep" / "d.rst.xz").write_bytes(lzma.compress(source(104).encode()))
    (folder / "e.bin").write_bytes(b"\xff\xfe")
    (folder / "f.txt").write_text("")
    (folder / "again.txt").write_text(source(7))
    corpus = load(folder, tmp_path)
    found = [text for name in corpus.splits for text in documents(corpus, name)]
    assert sorted(found) == sorted(source(seed) for seed in [*range(60), 101, 102, 103, 104])


@pytest.mark.parametrize("valid", ["valid", "validation", "val", "dev"])
def test_named_splits_are_respected_and_other_files_left_alone(tmp_path: Path, valid: str) -> None:
    folder = tmp_path / "named"
    folder.mkdir()
    for name, seeds in (("train", range(20)), (valid, [100]), ("test", [200, 7])):
        (folder / f"x.{name}.txt").write_text("".join(source(seed) for seed in seeds))
    (folder / "README.md").write_text(source(300))
    corpus = load(folder, tmp_path)
    assert documents(corpus, "train") == ["".join(source(seed) for seed in range(20))]
    assert documents(corpus, "valid") == [source(100)]
    assert documents(corpus, "test") == [source(200) + source(7)]


def test_a_missing_split_is_drawn_from_train_alone(tmp_path: Path) -> None:
    folder = tmp_path / "named"
    folder.mkdir()
    (folder / "train.txt").write_text("\n\n".join(source(seed) for seed in range(80)))
    (folder / "test.txt").write_text(source(200))
    corpus = load(folder, tmp_path)
    assert documents(corpus, "test") == [source(200)]
    drawn = [text for name in ("train", "valid") for text in documents(corpus, name)]
    assert sum(map(len, drawn)) == len((folder / "train.txt").read_text())
    assert documents(corpus, "valid")


def test_programs_called_test_are_no_split(tmp_path: Path) -> None:
    folder = tmp_path / "programs"
    folder.mkdir()
    for seed, name in enumerate(["train.py", "test.py", *(f"m{n}.py" for n in range(40))]):
        (folder / name).write_text(source(seed))
    corpus = load(folder, tmp_path)
    assert sum(split.n_documents for split in corpus.splits.values()) == 42


def test_articles_under_wikitext_headings(tmp_path: Path) -> None:
    def article(seed: int) -> str:
        return f" \n = Title {seed} = \n \n {source(seed)} \n = = Section = = \n \n {source(seed + 500)}"

    path = tmp_path / "wiki.tokens"
    path.write_text("".join(article(seed) for seed in range(40)))
    corpus = load(path, tmp_path)
    found = [text for name in corpus.splits for text in documents(corpus, name)]
    assert sorted(found) == sorted(article(seed) for seed in range(40))


def test_two_builds_agree_and_names_do_not_decide_what_is_cached(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(source(seed) for seed in range(60)))
    first, second = load(path, tmp_path), load(path, tmp_path / "elsewhere")
    assert first.fingerprint == second.fingerprint
    path.write_text(path.read_text() + "more")
    assert load(path, tmp_path).fingerprint != first.fingerprint


def test_clear_errors(tmp_path: Path) -> None:
    def refused(path: Path, match: str, **options) -> None:
        with pytest.raises(CorpusError, match=match) as caught:
            load(path, tmp_path, **options)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "nowhere.txt", "does not exist; give the path")
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    refused(empty, "0 bytes of text, too little")
    small = tmp_path / "small.txt"
    small.write_text("To be, or not to be.\n")
    refused(small, "21 bytes of text, too little to split")
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9 " * 400)
    refused(latin, "is not UTF-8 text .byte 3.*iconv -f latin1")
    wide = tmp_path / "wide.txt"
    wide.write_bytes(("wide " * 400).encode("utf-16"))
    refused(wide, "is not UTF-8 text.*iconv -f utf-16")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(bytes(range(256)) * 20)
    refused(binary, "looks binary, for it holds zero bytes; give a text file")
    spoilt = tmp_path / "spoilt.txt.xz"
    spoilt.write_bytes(lzma.compress(b"x" * 5000)[:-20])
    refused(spoilt, "cannot be unpacked")
    torn = tmp_path / "torn.txt.gz"
    torn.write_bytes(b"no gzip")
    refused(torn, "cannot be unpacked")
    folder = tmp_path / "folder"
    folder.mkdir()
    refused(folder, "has no files matching")
    same = tmp_path / "same"
    same.mkdir()
    for name in "abcdefghijklmnopqrstuvwxyz":
        (same / f"{name}.txt").write_text(source(1))
    refused(same, "1 different documents")
    for family in "ab":
        for name in ("train", "valid", "test"):
            (folder / f"{family}.{name}.txt").write_text(source(1))
    refused(folder, "several sets of splits .* choose one by pattern=")
    assert load(folder, tmp_path, pattern="a.*").train.n_documents == 1


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
def test_wikitext_2(tmp_path: Path) -> None:
    corpus = load(DATA / "wikitext-2", tmp_path, vocab_size=257)
    assert {name: split.n_documents for name, split in corpus.splits.items()} == {
        "train": 600,
        "valid": 60,
        "test": 60,
    }
    for name, split in corpus.splits.items():
        text = lzma.decompress((DATA / "wikitext-2" / f"wiki.{name}.tokens.xz").read_bytes())
        assert split.bytes_of(corpus.token_bytes) == len(text)
        begins = [split.document(j)[1:5] for j in range(split.n_documents)]
        wanted = np.frombuffer(b" \n =", np.uint8).astype(np.uint16) + 1
        np.testing.assert_array_equal(begins, np.tile(wanted, (len(begins), 1)))
