"""What ``mnemograph store`` does without changing a store: search, info, verify, audit."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from experiments.commands.choice import program
from experiments.commands.store_input import mistakes, read_labels, read_queries
from experiments.commands.store_output import Bar, Found, about, count, size
from experiments.commands.store_text import StoredText
from experiments.errors import RunError
from retrieval import Datastore, Neighbors, SnapshotError
from retrieval import audit as audit_store

__all__ = ["SETTINGS", "audit", "info", "opened", "search", "verify"]

# How a store is best searched, where that was measured; lies in its folder.
SETTINGS = "search.json"
QUERIES = 256
SHOWN = 3


def opened(path: Path) -> Datastore:
    """The store in a folder.

    Args:
        path: The folder.

    Raises:
        RunError: If there is none.
        SnapshotError: If it is damaged, foreign or of a newer format.
    """
    if not (path / "manifest.json").is_file():
        what = "is no store" if path.exists() else "does not exist"
        raise RunError(f"{path} {what}: {program()} store build {path} --keys keys.npy makes one")
    return Datastore.open(path, verify=False)


def search(arguments: argparse.Namespace) -> int:
    """Find, and show what was found."""
    if arguments.out is not None and arguments.out.suffix != ".npz":
        raise RunError(f"--out {arguments.out}: give a name that ends in .npz")
    store = _tuned(opened(arguments.path), arguments)
    said = store.info()
    text = _text_of(arguments.path, said, wanted=arguments.text is not None)
    if arguments.text is not None:
        assert text is not None
        queries = text.query(arguments.text)
    else:
        queries = read_queries(arguments.queries, said["d"])
    strange = torch.nonzero(~queries.isfinite().all(1)).flatten().tolist()
    if strange:
        print(
            f"query {strange[0]} is not finite, so it has no neighbours ({len(strange)} are so)",
            file=sys.stderr,
        )
    rules = {}
    for name in ("exclude", "visible_at", "own"):
        given = getattr(arguments, name)
        if given is not None:
            word = given if text is None or name == "visible_at" else text.label(given)
            rules[name] = read_labels([word], f"--{name.replace('_', '-')}", len(queries))
    parts, begin = [], time.perf_counter()
    with mistakes(arguments.path), Bar("searching", len(queries), "queries") as bar:
        for first in range(0, len(queries), QUERIES):
            part = slice(first, first + QUERIES)
            asked = {name: rule[part] for name, rule in rules.items()}
            parts.append(store.search(queries[part], arguments.k, **asked))
            bar.advance(min(first + QUERIES, len(queries)))
        neighbors = Neighbors.cat(parts) if parts else Neighbors.none(0, arguments.k)
        found = Found(store, neighbors, time.perf_counter() - begin, text)
    if arguments.out is not None:
        found.save(arguments.out)
    if arguments.json:
        print(
            json.dumps({**found.cost, "k": arguments.k, "found": found.rows(arguments.show or len(queries))})
        )
        return 0
    found.print(arguments.show or SHOWN)
    if arguments.out is not None:
        print(f"everything found is in {arguments.out}")
    return 0


def info(arguments: argparse.Namespace) -> int:
    """Print what a store is."""
    store = opened(arguments.path)
    said: dict[str, Any] = about(store)
    settings = _settings(arguments.path, store)
    if settings:
        said["search"] = settings
    text = _text_of(arguments.path, store.info())
    if text is not None:
        said["files"] = len([name for name in text.names if name is not None])
        said["vocab_size"] = text.tokenizer.vocab_size
    if arguments.json:
        print(json.dumps(said))
        return 0
    kind = f"vectors of {said['d_value']}" if said["d_value"] else "token ids"
    rows = {
        "entries": f"{said['entries']:,}",
        "deleted": f"{said['deleted']:,} ({said['deleted_share']:.1%}; `store compact` frees their space)",
        "keys": f"{said['d']} dimensions, {said['dtype']}, compared by {said['metric']}",
        "values": kind,
        "size": size(said["bytes"]),
        "index": f"{said['factory']}, in {said['indexed_segments']} of {count(said['segments'], 'segment')}",
        "search by": f"nprobe {settings['nprobe']}, ef {settings['ef']}, measured" if settings else "",
        "files": f"{said['files']:,}, as tokens of {said['vocab_size']:,} kinds" if text is not None else "",
        "encoder": said["encoder"] or "not said",
        "tokenizer": said["tokenizer"] or "not said",
        "generation": str(said["generation"]),
    }
    print(said["path"])
    print("\n".join(f"  {name:<12}{value}" for name, value in rows.items() if value))
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Read everything; 1 if something is damaged."""
    try:
        store = opened(arguments.path)
        with Bar("reading every file"):
            store.verify()
            _text_of(arguments.path, store.info())
    except SnapshotError as error:
        print(f"mnemograph store: {error}", file=sys.stderr)
        return 1
    said = store.info()
    parts = f"{count(said['segments'], 'segment')}, {said['entries']:,} entries, {size(said['bytes'])}"
    print(f"{arguments.path} is whole: {parts}")
    return 0


def audit(arguments: argparse.Namespace) -> int:
    """Print how well it answers."""
    store = _tuned(opened(arguments.path), arguments)
    queries = None if arguments.queries is None else read_queries(arguments.queries, store.info()["d"])
    with mistakes(arguments.path), Bar("comparing with an exhaustive search"):
        found = audit_store(store, queries, k=arguments.k, sample=arguments.sample, seed=arguments.seed)
    print(json.dumps(asdict(found)) if arguments.json else found)
    return 0


def _text_of(path: Path, said: dict[str, Any], *, wanted: bool = False) -> StoredText | None:
    return StoredText.open(path, said) if wanted or (path / "text").exists() else None


def _tuned(store: Datastore, arguments: argparse.Namespace) -> Datastore:
    settings = _settings(arguments.path, store)
    store.nprobe = arguments.nprobe or settings.get("nprobe", store.nprobe)
    store.ef = arguments.ef or settings.get("ef", store.ef)
    return store


def _settings(path: Path, store: Datastore) -> dict[str, Any]:
    """What was measured for this very index; nothing where nothing was."""
    try:
        settings = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
        same = settings["of"] == [store.info()["identity"], store.info()["factory"]]
        return {name: int(settings[name]) for name in ("nprobe", "ef")} if same else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
