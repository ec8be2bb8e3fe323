"""What ``mnemograph store`` does to a store: build, add, delete, compact, merge, reindex."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from experiments.commands.choice import program
from experiments.commands.store_input import (
    COLUMNS,
    Columns,
    check_space,
    mistakes,
    read_columns,
    read_labels,
)
from experiments.commands.store_output import Bar, count, size
from experiments.commands.store_reads import SETTINGS, opened
from experiments.commands.store_text import StoredText, TextEntries, forget_text, text_files
from experiments.errors import RunError
from retrieval import Datastore, calibrate
from retrieval.calibrate import candidates
from retrieval.datastore.entries import Layout
from retrieval.datastore.writer import segment_rows

__all__ = ["add", "build", "compact", "delete", "merge", "reindex"]

# Keys that kinds of index are tried on; more take minutes.
SAMPLE = 50_000


@dataclass(frozen=True)
class _Chosen:
    """A kind of index and how to search it."""

    factory: str
    nprobe: int
    ef: int


def build(arguments: argparse.Namespace) -> int:
    """Write a store."""
    path: Path = arguments.path
    _check_new(path, arguments.replace)
    text: StoredText | None = None
    if arguments.text is None:
        entries = read_columns({name: getattr(arguments, name) for name in COLUMNS})
        layout = Layout(entries.keys.shape[1], arguments.dtype, entries.d_value)
        source, metric = str(arguments.keys), arguments.metric or "ip"
        encoder, tokenizer = arguments.encoder, arguments.tokenizer
    else:
        _check_text_options(arguments)
        files = text_files(arguments.text)
        with mistakes(path), Bar("learning tokens and an encoder"):
            text, entries = StoredText.learn(files, arguments.vocab_size, arguments.depth)
        layout = Layout(text.encoder.dimensions, arguments.dtype, 0)
        source, metric = "the text", "ip"
        encoder, tokenizer = text.encoder.fingerprint, text.tokens_fingerprint
    check_space(path, len(entries) * layout.entry_bytes)
    memory = round(arguments.memory_gb * 1e9)
    with mistakes(path, source):
        rows = min(len(entries), segment_rows(memory, layout))
        chosen = _Chosen(arguments.factory, 8, 64)
        if arguments.factory == "auto":
            chosen = _measured(entries, arguments, metric, rows)
        with Bar("writing", len(entries)) as bar:
            store = Datastore.build(
                path,
                entries.batches(),
                metric=metric,
                dtype=arguments.dtype,
                factory=chosen.factory,
                encoder=encoder,
                tokenizer=tokenizer,
                progress=bar.advance,
                memory_bytes=memory,
            )
        if text is None:
            forget_text(path)
        else:
            text.save(path, encoder=True)
        _remember(store, chosen if arguments.factory == "auto" else None)
    _told(store, "has")
    asked = "--queries queries.npy" if text is None else "--text 'some text'"
    print(f"Search it: {program()} store search {path} {asked}")
    return 0


def add(arguments: argparse.Namespace) -> int:
    """Append entries."""
    path: Path = arguments.path
    store = opened(path)
    said = store.info()
    of_text = (path / "text").exists()
    if arguments.text is None and of_text:
        raise RunError(
            f"{path} is a store of text: add text to it, {program()} store add {path} --text FILES"
        )
    if arguments.text is None:
        entries = read_columns({name: getattr(arguments, name) for name in COLUMNS}, first=said["next_id"])
        if entries.keys.shape[1] != said["d"]:
            raise RunError(
                f"{arguments.keys} has keys of {entries.keys.shape[1]} dimensions, {path} has keys of {said['d']}: "
                "give what the same encoder makes"
            )
        names, text = None, None
    else:
        _check_text_options(arguments)
        text = StoredText.open(path, said)
        names = list(text.names)
        with mistakes(path):
            entries = text.more(text_files(arguments.text), path)
    layout = Layout(said["d"], said["dtype"], said["d_value"])
    check_space(path, len(entries) * layout.entry_bytes)
    with mistakes(path, str(arguments.keys or "the text")), Bar("writing", len(entries)) as bar:
        if text is None:
            ids = store.append(entries.batches(), progress=bar.advance)
        else:
            # Names first: an entry whose document has no name would give its number away a second time.
            text.save(path)
            try:
                ids = store.append(entries.batches(), progress=bar.advance)
            except BaseException:
                text.names = names or []
                text.save(path)
                raise
    print(f"added {len(ids):,} entries, ids {ids.start:,} to {ids.stop - 1:,}")
    _told(store, "has now")
    return 0


def delete(arguments: argparse.Namespace) -> int:
    """Take entries away."""
    path: Path = arguments.path
    store = opened(path)
    text = StoredText.open(path, store.info()) if (path / "text").exists() else None
    with mistakes(path):
        if arguments.ids is not None:
            count = store.delete(read_labels(arguments.ids, "--ids"))
        else:
            given = arguments.documents
            if text is not None:
                given = [text.label(word) for word in given]
            labels = read_labels(given, "--documents")
            count = store.delete(documents=labels)
            if text is not None:
                text.names = [
                    None if label in labels.tolist() else name for label, name in enumerate(text.names)
                ]
                text.save(path)
    print(f"deleted {count:,} entries" if count else "there were no such entries")
    _told(store, "has now")
    return 0


def compact(arguments: argparse.Namespace) -> int:
    """Free the space of what is deleted."""
    store = opened(arguments.path)
    before = store.info()["bytes"]
    with mistakes(arguments.path), Bar("compacting"):
        store.compact()
    print(f"freed {size(max(0, before - store.info()['bytes']))}")
    _told(store, "has")
    return 0


def merge(arguments: argparse.Namespace) -> int:
    """Append other stores."""
    for path in (arguments.path, *arguments.others):
        if (path / "text").exists():
            raise RunError(
                f"{path} is a store of text, whose files are numbered by themselves: add the files instead, "
                f"{program()} store add STORE --text FILES"
            )
    store, others = opened(arguments.path), [opened(path) for path in arguments.others]
    with mistakes(arguments.path), Bar("merging"):
        ranges = store.merge(others, documents=arguments.documents)
    for path, ids in zip(arguments.others, ranges, strict=True):
        print(f"{path}: ids {ids.start:,} to {ids.stop - 1:,} here" if len(ids) else f"{path} was empty")
    _told(store, "has now")
    return 0


def reindex(arguments: argparse.Namespace) -> int:
    """Make indexes anew."""
    store = opened(arguments.path)
    with mistakes(arguments.path), Bar("indexing"):
        store.reindex(arguments.factory)
    _told(store, "has")
    return 0


def _check_new(path: Path, replace: bool) -> None:
    if (path / "manifest.json").is_file() and not replace:
        store = opened(path)
        raise RunError(
            f"{path} holds a store of {len(store):,} entries already: --replace builds it anew, `{program()} store add "
            f"{path}` appends"
        )


def _check_text_options(arguments: argparse.Namespace) -> None:
    given = [name for name in COLUMNS if getattr(arguments, name) is not None]
    given += [
        name for name in ("metric", "encoder", "tokenizer") if getattr(arguments, name, None) is not None
    ]
    if given:
        raise RunError(f"--{given[0]} goes with --keys; of text it follows from the text: leave it out")


def _measured(
    entries: Columns | TextEntries, arguments: argparse.Namespace, metric: str, rows: int
) -> _Chosen:
    """The fastest index that finds enough, measured on a sample."""
    keys, queries = entries.sample(SAMPLE)
    # A key that is no number is named when it is written.
    keys = keys[keys.isfinite().all(1)]
    if not len(keys):
        return _Chosen("Flat", 8, 64)
    # Larger segments have more lists: the kinds are tried on the sample, and the one chosen is made as large.
    here, there = candidates(len(keys), keys.shape[1]), candidates(rows, keys.shape[1])
    sizes = dict(zip(here, there, strict=False))
    with Bar("trying kinds of index"):
        found = calibrate(
            keys,
            queries if isinstance(queries, Tensor) else None,
            k=min(arguments.k, len(keys)),
            recall=arguments.recall,
            metric="l2" if metric == "l2" else "ip",
            factories=list(sizes),
        )
    print(found)
    best = found.chosen
    factory = sizes[best.factory]
    if factory != best.factory:
        print(
            f"Measured on {len(keys):,} of {len(entries):,} keys; for all of them it is {factory}. "
            f"`{program()} store audit {arguments.path}` tells its recall."
        )
    return _Chosen(factory, best.nprobe, best.ef)


def _remember(store: Datastore, chosen: _Chosen | None) -> None:
    """Keep how the store is best searched in its folder."""
    file = store.path / SETTINGS
    if chosen is None:
        file.unlink(missing_ok=True)
        return
    of = [store.info()["identity"], chosen.factory]
    beside = file.with_name(f".{SETTINGS}.{os.getpid()}")
    beside.write_text(json.dumps({"nprobe": chosen.nprobe, "ef": chosen.ef, "of": of}), encoding="utf-8")
    beside.replace(file)


def _told(store: Datastore, has: str) -> None:
    said = store.info()
    deleted = f", {said['deleted']:,} deleted" if said["deleted"] else ""
    print(
        f"{store.path} {has} {said['entries']:,} entries of {said['d']} dimensions{deleted}: {said['factory']}, "
        f"{said['metric']}, {size(said['bytes'])} in {count(said['segments'], 'segment')}"
    )
