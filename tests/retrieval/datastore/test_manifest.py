"""What a store refuses to open, and what it says then."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import retrieval.datastore.changes
from retrieval.datastore import Datastore
from retrieval.snapshot import SnapshotError, read_manifest, replace_manifest


def batch(n, d=4, first=0):
    keys = torch.randn(n, d, generator=torch.Generator().manual_seed(first))
    return keys, torch.arange(n), torch.arange(n) // 3, torch.arange(n) % 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store with everything a store can have: two segments, one of them with gaps, an index, tombstones."""
    path = tmp_path_factory.mktemp("whole") / "store"
    patch = pytest.MonkeyPatch()
    patch.setattr(retrieval.datastore.changes, "_SMALL", 40)
    store = Datastore.build(path, [batch(60)], factory="IVF2,Flat", encoder="e1", tokenizer="t1")
    store.delete([5])
    store.compact()
    store.append([batch(10)])
    store.delete([7])
    patch.undo()
    assert store.info()["indexed_segments"] == 1
    assert list(path.glob("seg-*/ids.npy"))
    assert list(path.glob("deleted-*.npy"))
    return path


@pytest.fixture
def path(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "store")
    return tmp_path / "store"


def files(path):
    return sorted(
        file for file in path.rglob("*") if file.is_file() and file.name not in ("writer.lock", "writer.json")
    )


def test_one_flipped_bit_in_any_file_is_found_and_the_file_named(path):
    count = 0
    for file in files(path):
        content = file.read_bytes()
        for place in (0, len(content) // 3, len(content) - 1):
            file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            with pytest.raises(SnapshotError, match=file.name) as caught:
                Datastore.open(path)
            assert file.parent.name in str(caught.value)
            count += 1
        file.write_bytes(content)
    assert count == 3 * len(files(path))
    assert len(files(path)) > 12
    Datastore.open(path)


def test_damage_of_an_open_store_is_found_by_verify(path):
    store = Datastore.open(path)
    store.verify()
    file = next(path.glob("seg-*/values.npy"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(SnapshotError, match=r"values\.npy is damaged"):
        store.verify()
    Datastore.open(path, verify=False).close()


def test_a_truncated_or_missing_file_is_found_without_reading_it(path):
    for file in files(path):
        content = file.read_bytes()
        if file.parent.name.startswith("index-"):
            continue  # found when it is first asked, or by verify
        for harm in (lambda file=file: file.write_bytes(file.read_bytes()[:-1]), file.unlink):
            harm()
            with pytest.raises(SnapshotError, match=rf"{file.name}|holds no"):
                Datastore.open(path, verify=False)
            file.write_bytes(content)
    Datastore.open(path)


def test_a_damaged_index_is_refused_when_it_is_asked_and_can_be_made_again(path):
    file = next(path.glob("index-*/index.faiss"))
    file.write_bytes(file.read_bytes()[:-100])
    store = Datastore.open(path, verify=False)
    with pytest.raises(SnapshotError, match=r"index\.faiss has .* bytes"):
        store.search(torch.zeros(1, 4), 1)
    store.reindex()
    assert store.search(torch.zeros(1, 4), 1).mask.all()
    store.verify()


REFUSED = {
    "encoder": (lambda p: Datastore.open(p, encoder="e2"), r"built with encoder 'e1', not with 'e2'"),
    "tokenizer": (lambda p: Datastore.open(p, tokenizer="t2"), r"built with tokenizer 't1', not with 't2'"),
    "nothing there": (lambda p: Datastore.open(p / "nowhere"), "there is no datastore at .* build it first"),
    "foreign folder": (lambda p: Datastore.open(next(p.glob("seg-*"))), "is a segment of a datastore, not"),
    "empty folder": (lambda p: [(p / "new").mkdir(), Datastore.open(p / "new")], "holds no datastore"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_the_store_it_should_be_is_refused(path, name):
    attempt, message = REFUSED[name]
    with pytest.raises(SnapshotError, match=message):
        attempt(path)
    Datastore.open(path, encoder="e1", tokenizer="t1")


def test_a_store_without_fingerprint_is_refused_where_one_is_asked_for(tmp_path):
    Datastore.build(tmp_path / "store", [batch(3)]).close()
    with pytest.raises(SnapshotError, match="without saying with which encoder"):
        Datastore.open(tmp_path / "store", encoder="e1")


def test_a_newer_format_is_refused(path):
    for file, kind in ((path / "manifest.json", "datastore"), (None, "segment of a datastore")):
        file = file or next(path.glob("seg-*/manifest.json"))
        content = file.read_text()
        named, about = read_manifest(file, kind, 1)
        replace_manifest(file, kind, 2, named, about)
        with pytest.raises(SnapshotError, match=r"format 2 of a|is damaged or of another store"):
            Datastore.open(path)
        file.write_text(content)


def test_a_segment_of_another_store_is_refused(path, tmp_path):
    Datastore.build(tmp_path / "other", [batch(60, first=1)]).close()
    mine = next(path.glob("seg-*"))
    shutil.rmtree(mine)
    shutil.copytree(tmp_path / "other" / "seg-000001", mine)
    with pytest.raises(SnapshotError, match="damaged or of another store"):
        Datastore.open(path, verify=False)


def test_build_never_mixes_with_other_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match=r"holds something else \(thesis\.tex\): give another path"):
        Datastore.build(tmp_path, [batch(3)])
    with pytest.raises(FileExistsError, match="a file"):
        Datastore.build(tmp_path / "thesis.tex", [batch(3)])
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_store_whose_manifest_is_lost_is_not_swept_away(path):
    store = Datastore.open(path)
    (path / "manifest.json").rename(path / "kept.json")
    before = files(path)
    with pytest.raises(SnapshotError, match="holds no datastore"):
        store.append([batch(3)])
    assert files(path) == before


def test_a_store_that_was_replaced_is_not_taken_for_the_old_one(path):
    reader, writer = Datastore.open(path), Datastore.open(path)
    keys = reader.keys(torch.arange(3))
    Datastore.build(path, [batch(20, first=9)]).close()
    assert torch.equal(reader.keys(torch.arange(3)), keys), "who has it open keeps it"
    for attempt in (reader.refresh, lambda: writer.append([batch(3)]), writer.compact):
        with pytest.raises(SnapshotError, match=r"was replaced by another store .* open it again"):
            attempt()
    assert len(Datastore.open(path)) == 20


def resealed(file, kind, change):
    """Write a manifest anew that is whole but says something else."""
    named, about = read_manifest(file, kind, 1)
    change(about)
    replace_manifest(file, kind, 1, named, about)


@pytest.mark.parametrize("name", ["parts", "generation", "next_id", "metric", "d", "nprobe", "identity"])
def test_a_whole_manifest_that_lacks_something_is_refused(path, name):
    resealed(path / "manifest.json", "datastore", lambda about: about.pop(name))
    with pytest.raises(SnapshotError, match=rf"manifest\.json is foreign or of another version .*{name}"):
        Datastore.open(path)
    if name == "generation":
        with pytest.raises(SnapshotError, match="foreign or of another version"):
            Datastore.build(path, [batch(3)])


def test_parts_that_are_none_are_refused(path):
    resealed(path / "manifest.json", "datastore", lambda about: about.update(parts=3))
    with pytest.raises(SnapshotError, match="foreign or of another version"):
        Datastore.open(path)


def test_how_it_is_searched_is_stored(tmp_path):
    path = tmp_path / "store"
    with Datastore.build(path, [batch(3)], nprobe=3, ef=17, k_factor=5) as store:
        other = Datastore.open(path)
        assert (other.nprobe, other.ef, other.k_factor) == (3, 17, 5)
        store.nprobe = 4
        store.append([batch(2)])
        assert (store.nprobe, Datastore.open(path).nprobe) == (4, 3), "what is set is this object's"
        store.tune(nprobe=6, k_factor=2)
        assert (store.nprobe, store.ef, store.k_factor) == (6, 17, 2)
        other.refresh()
        assert (other.nprobe, other.ef, other.k_factor) == (6, 17, 2)
        assert other.info()["nprobe"] == 6
    for name in ("nprobe", "ef", "k_factor"):
        with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
            setattr(other, name, 0)
        with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
            other.tune(**{name: 0})
        with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
            Datastore.build(tmp_path / "new", [batch(3)], **{name: 0})
    assert not (tmp_path / "new").exists()


def test_a_store_that_was_moved_away_is_not_made_anew(path):
    store = Datastore.open(path)
    path.rename(path.with_name("moved"))
    for change in (
        lambda: store.append([batch(3)]),
        lambda: store.delete([0]),
        store.compact,
        store.reindex,
        lambda: store.merge([store]),
    ):
        with pytest.raises(SnapshotError, match=r"there is no datastore at .* build it first"):
            change()
    assert not path.exists()
    assert len(Datastore.open(path.with_name("moved"))) == 68


def test_manifests_say_what_wrote_them(path):
    for file in (path / "manifest.json", next(path.glob("seg-*/manifest.json"))):
        about = json.loads(file.read_text())["about"]
        assert set(about["engine"]) == {"faiss", "torch", "numpy"}
        assert about["encoder"] == "e1"
        assert about["tokenizer"] == "t1"
        assert about["dtype"] == "float16"
