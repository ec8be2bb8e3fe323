from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from mann import AttentionReader, ExternalMemory, NGramMemory
from mann.attachment import Attached, attach
from mann.attachment.saved import KIND, VERSION, Spec
from retrieval.snapshot import SnapshotError, replace_manifest, writing_snapshot
from tests.contracts import SOURCE, small_source
from tests.mann.attachment.models import KEYS, NGRAM, POINTER, bare, hooks, ids, trained

PARTS: dict[str, Any] = {
    "memory": {
        0: NGRAM,
        1: partial(ExternalMemory, source=SOURCE, k=4, reader=AttentionReader),
        2: NGramMemory,
    },
    "feedforward": {1: KEYS},
    "readout": POINTER,
}


def about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def edit(folder: Path, version: int = VERSION, **changes: Any) -> None:
    """Write another manifest, well formed."""
    manifest = about(folder)
    replace_manifest(
        folder / "manifest.json", KIND, version, manifest["files"], {**manifest["about"], **changes}
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "memory"
    trained(attach(bare(), {0: NGRAM, 1: NGRAM})).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "memory"
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_comes_back(tmp_path: Path) -> None:
    attached = trained(attach(bare(), **PARTS))
    attached.save_pretrained(tmp_path / "memory")
    assert sorted(path.name for path in (tmp_path / "memory").iterdir()) == [
        "manifest.json",
        "memory.safetensors",
    ]
    model = bare()
    other = attach.from_pretrained(model, tmp_path / "memory", sources={"source": SOURCE})  # type: ignore[attr-defined]
    assert isinstance(other, Attached)
    assert torch.equal(model(ids()).logits, attached(ids()).logits)
    assert not any(p.requires_grad for p in model.parameters())
    other.save_pretrained(tmp_path / "again")
    assert about(tmp_path / "again")["about"] == about(tmp_path / "memory")["about"]


def test_of_a_folder_of_transformers(saved: Path, tmp_path: Path) -> None:
    model = bare()
    expected = trained(attach(model, {0: NGRAM, 1: NGRAM}))(ids()).logits
    model.save_pretrained(tmp_path / "model")
    other = Attached.from_pretrained(tmp_path / "model", saved, train="all")
    assert torch.equal(other(ids()).logits, expected)
    assert all(p.requires_grad for p in other.parameters())


def test_the_model_saves_itself_alone(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = bare()
    model.save_pretrained(tmp_path / "bare")
    with trained(attach(model, [0], memory=NGRAM)):
        model.save_pretrained(tmp_path / "attached")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("bare", "attached"))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_model_loaded_in_another_type_is_the_same(saved: Path) -> None:
    assert Attached.from_pretrained(bare().to(torch.bfloat16), saved).part("memory.1")


def test_another_model_is_refused(saved: Path) -> None:
    wrong = {
        "hidden_size 16.*this one has .*hidden_size 32": bare(hidden_size=32),
        "model_type llama": bare("Mistral"),
    }
    other = bare()
    other.lm_head.weight.data.add_(1)
    wrong["other weights .*1 of"] = other
    for message, model in wrong.items():
        with pytest.raises(ValueError, match=message):
            Attached.from_pretrained(model, saved)
        assert hooks(model) == 0
    assert Attached.from_pretrained(other, saved, same_weights=False).part("memory.1")


def test_damage_is_refused(copied: Path) -> None:
    weights = copied / "memory.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(SnapshotError, match="is damaged"):
        Attached.from_pretrained(bare(), copied)
    weights.write_bytes(whole[:-8])
    with pytest.raises(SnapshotError, match="bytes, not"):
        Attached.from_pretrained(bare(), copied)
    weights.unlink()
    with pytest.raises(SnapshotError, match="is missing"):
        Attached.from_pretrained(bare(), copied)
    (copied / "manifest.json").write_text("{}")
    with pytest.raises(SnapshotError, match="damaged or foreign"):
        Attached.from_pretrained(bare(), copied)
    with pytest.raises(SnapshotError, match="there is no attached memory"):
        Attached.from_pretrained(bare(), copied / "nowhere")


def test_newer_and_unknown_are_refused(copied: Path) -> None:
    slots = about(copied)["about"]["slots"]
    edit(copied, version=VERSION + 1)
    with pytest.raises(SnapshotError, match="update mnemograph"):
        Attached.from_pretrained(bare(), copied)
    for name in ("os.system", "LanguageModule.load_from_checkpoint", "__builtins__"):
        edit(copied, slots=[{**slots[0], "build": {"class": name, "arguments": {}}}])
        with pytest.raises(SnapshotError, match="no class that this version of mann exports"):
            Attached.from_pretrained(bare(), copied)
    edit(copied, slots=[{**slots[0], "kind": "code"}])
    with pytest.raises(SnapshotError, match="not to be trusted"):
        Attached.from_pretrained(bare(), copied)
    for arguments, message in (({"n_rows": 32}, "size mismatch"), ({"n_lines": 32}, "unexpected keyword")):
        changed = {"class": "NGramMemory", "arguments": arguments}
        edit(copied, slots=[{**slot, "build": changed} for slot in slots])
        model = bare()
        with pytest.raises(SnapshotError, match=f"does not fit what this version makes .*{message}"):
            Attached.from_pretrained(model, copied)
        assert hooks(model) == 0


def test_stores_are_given_again(tmp_path: Path) -> None:
    other = small_source(seed=1)
    attached = attach(
        bare(), memory={0: partial(ExternalMemory, source=SOURCE), 1: partial(ExternalMemory, source=other)}
    )
    attached.save_pretrained(tmp_path / "two")
    attached.save_pretrained(tmp_path / "named", sources={"notes": SOURCE, "unused": 1})
    assert list(about(tmp_path / "two")["about"]["sources"]) == ["source", "source2"]
    assert list(about(tmp_path / "named")["about"]["sources"]) == ["notes", "source"]
    given = {"source": SOURCE, "source2": other}
    assert Attached.from_pretrained(bare(), tmp_path / "two", sources=given).part("memory.1").source is other
    with pytest.raises(ValueError, match=r"give sources=\{'source2'"):
        Attached.from_pretrained(bare(), tmp_path / "two", sources={"source": SOURCE})
    with pytest.raises(ValueError, match="'source2' is another store"):
        Attached.from_pretrained(bare(), tmp_path / "two", sources={"source": SOURCE, "source2": SOURCE})


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    one, other = (Tokenizer(models.WordLevel(words, "a")) for words in ({"a": 0, "b": 1}, {"a": 1, "b": 0}))
    attach(bare(), [0], memory=NGRAM).save_pretrained(tmp_path / "memory", tokenizer=one)
    for given in (one, None):
        assert Attached.from_pretrained(bare(), tmp_path / "memory", tokenizer=given)
    with pytest.raises(ValueError, match="trained with another tokenizer"):
        Attached.from_pretrained(bare(), tmp_path / "memory", tokenizer=other)


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    class Mine(NGramMemory):
        pass

    wrong: dict[str, Any] = {
        r"memory\.0 is made by .*Mine": Mine,
        r"memory\.0 is made by .*lambda": lambda d_model: NGramMemory(d_model, n_rows=64),
    }
    for message, build in wrong.items():
        with pytest.raises(ValueError, match=message):
            attach(bare(), [0], memory=build).save_pretrained(tmp_path / "memory")
    assert not (tmp_path / "memory").exists()
    arguments = {
        "nameless arguments": partial(NGramMemory, 16),
        r"memory\.0\.n_rows is a Tensor": partial(NGramMemory, n_rows=torch.tensor(64)),
        r"memory\.0\.reader is made by system": partial(ExternalMemory, reader=os.system),
        r"memory\.0\.table is made by Embedding": partial(KEYS.func, table=torch.nn.Embedding),
    }
    for message, build in arguments.items():
        with pytest.raises(ValueError, match=message):
            Spec({}).of(build, "memory.0")


def test_nobodys_files_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"thesis\.txt"):
        attach(bare(), [0], memory=NGRAM).save_pretrained(tmp_path / "mine")
    with writing_snapshot(tmp_path / "other", "neighbor table", 1, {}):
        pass
    with pytest.raises(FileExistsError, match="another kind of snapshot"):
        attach(bare(), [0], memory=NGRAM).save_pretrained(tmp_path / "other")
