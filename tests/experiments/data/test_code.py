import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments.data.code import CodeCorpus
from experiments.data.corpus import Corpus, CorpusError
from tests.experiments.data.toy import install, source

Site = Callable[..., None]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return lambda package, files, **options: install(folder, package, files, **options)


def many(prefix: str, start: int, n: int = 120) -> dict[str, str | bytes]:
    return {f"{prefix}_{seed}.py": source(seed) for seed in range(start, start + n)}


def toy(tmp_path: Path, **options) -> CodeCorpus:
    defaults = {"packages": ("toytrain",), "heldout": ("toyheld",), "vocab_size": 300}
    return CodeCorpus(cache=tmp_path / "cache", **{**defaults, **options})


def texts(corpus: Corpus, name: str) -> set[str]:
    split = corpus.splits[name]
    return {corpus.decode(split.document(j)) for j in range(split.n_documents)}


def test_documents_are_whole_files_and_no_file_is_in_two_splits(site: Site, tmp_path: Path) -> None:
    files = many("a", 0)
    site("toytrain", files)
    site("toyheld", many("b", 1000, 10))
    corpus = toy(tmp_path).load()
    found = {name: texts(corpus, name) for name in corpus.splits}
    assert found["train"] | found["valid"] | found["test"] == set(files.values())
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == 130
    assert len(found["train"]) > 90
    assert found["valid"]
    assert found["test"]
    assert found["heldout"] == set(many("b", 1000, 10).values())


def test_streams_are_marked_and_every_byte_is_counted(site: Site, tmp_path: Path) -> None:
    site("toytrain", many("a", 0))
    site("toyheld", many("b", 1000, 10))
    corpus = toy(tmp_path).load()
    for name, split in corpus.splits.items():
        assert split.tokens.dtype == np.uint16
        np.testing.assert_array_equal(np.flatnonzero(split.tokens == 0), split.offsets[:-1])
        n_bytes = sum(len(text.encode()) for text in texts(corpus, name))
        assert split.bytes_of(corpus.token_bytes) == n_bytes
        assert corpus.description["splits"][name] == {
            "documents": split.n_documents,
            "tokens": len(split),
            "bytes": n_bytes,
        }


def test_two_builds_are_identical_and_the_cache_gives_the_same(site: Site, tmp_path: Path) -> None:
    site("toytrain", many("a", 0))
    site("toyheld", many("b", 1000, 10))
    first = toy(tmp_path).load()
    second = toy(tmp_path / "elsewhere").load()
    seen: list[str] = []
    cached = toy(tmp_path).load(lambda stage, share: seen.append(stage))
    assert not seen, "nothing is built when the corpus is cached"
    for other in (second, cached):
        assert other.fingerprint == first.fingerprint
        assert other.description == first.description
        np.testing.assert_array_equal(other.token_bytes, first.token_bytes)
        for name, split in first.splits.items():
            np.testing.assert_array_equal(other.splits[name].tokens, split.tokens)
            np.testing.assert_array_equal(other.splits[name].offsets, split.offsets)


def test_what_is_left_out(site: Site, tmp_path: Path) -> None:
    extra: dict[str, str | bytes] = {
        "version.py": source(500),
        "generated/table.py": source(501),
        "tiny.py": "x = 1\n",
        "huge.py": source(502) * 800,
        "latin.py": b"# caf\xe9" + source(503).encode(),
        "copy.py": source(3),
        "spaced.py": source(4).replace("\n    ", "\n\t\t") + "\n\n",
        "notes.txt": source(504),
    }
    site("toytrain", {**many("a", 0), **extra})
    site("toyheld", {**many("b", 1000, 10), "copied.py": source(5)})
    corpus = toy(tmp_path).load()
    everything = set.union(*(texts(corpus, name) for name in corpus.splits))
    assert len(everything) == 130
    assert not everything & {text for text in extra.values() if text != source(3)}
    assert corpus.description["left_out"] == {"size": 2, "repeated": 3, "undecodable": 1}
    assert source(5) not in texts(corpus, "heldout"), "held-out text that is trained on is not held out"


def test_packages_are_read_not_imported(site: Site, tmp_path: Path) -> None:
    site("toytrain", {**many("a", 0), "__init__.py": "raise RuntimeError('imported')\n" + source(700)})
    corpus = toy(tmp_path, heldout=()).load()
    assert "toytrain" not in sys.modules
    assert corpus.heldout is None
    assert list(corpus.splits) == ["train", "valid", "test"]


def test_a_build_tag_does_not_change_the_fingerprint_and_a_version_does(site: Site, tmp_path: Path) -> None:
    found = []
    for rank, version in enumerate(["1.0", "1.0+cpu", "1.1"]):
        package = f"toytag{rank}"
        site(package, many("a", 0), version=version)
        corpus = toy(tmp_path, packages=(package,), heldout=()).load()
        found.append(corpus.description["versions"][package])
    assert found == ["1.0", "1.0", "1.1"]


def test_a_package_without_a_list_of_files_is_walked(site: Site, tmp_path: Path) -> None:
    site("toytrain", {**many("a", 0), "sub/deep.py": source(900)}, record=False)
    corpus = toy(tmp_path, heldout=()).load()
    assert source(900) in set.union(*(texts(corpus, name) for name in corpus.splits))


def test_changed_sources_are_built_anew(site: Site, tmp_path: Path) -> None:
    site("toytrain", many("a", 0), record=False)
    first = toy(tmp_path, heldout=()).load()
    (tmp_path / "site" / "toytrain" / "a_0.py").write_text(source(999))
    second = toy(tmp_path, heldout=()).load()
    assert first.fingerprint != second.fingerprint


def test_clear_errors(tmp_path: Path, site: Site) -> None:
    with pytest.raises(CorpusError, match="pip install no-such-package"):
        toy(tmp_path, packages=("no_such_package",)).load()
    with pytest.raises(CorpusError, match="own code"):
        toy(tmp_path, packages=("mann",))
    with pytest.raises(CorpusError, match="name each package once"):
        toy(tmp_path, packages=("toytrain",), heldout=("toytrain",))
    site("toytrain", many("a", 0, 2))
    with pytest.raises(CorpusError, match="has no text; give more documents"):
        toy(tmp_path, heldout=()).load()


@pytest.mark.slow
def test_the_default_corpus() -> None:
    """The real thing, built once a machine."""
    corpus = CodeCorpus().load()
    assert corpus.vocab_size == 2048
    assert len(corpus.train) >= 25_000_000
    assert min(len(split) for split in corpus.splits.values()) >= 500_000
    for split in corpus.splits.values():
        assert int(split.tokens.max()) < corpus.vocab_size
        np.testing.assert_array_equal(np.flatnonzero(split.tokens == 0), split.offsets[:-1])
