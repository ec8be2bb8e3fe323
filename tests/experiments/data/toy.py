"""Small corpora made on the spot: random splits, and an installed package that never was."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import numpy as np

from experiments.data.corpus import Corpus, Split


def split(seed: int, *, name: str = "train", n: int = 7, longest: int = 60, vocab_size: int = 9) -> Split:
    """Random documents of one token (the marker alone) and more."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest, n)
    tokens = np.concatenate([np.append(0, rng.integers(1, vocab_size, size - 1)) for size in lengths])
    return Split(name, tokens.astype(np.uint16), np.concatenate([[0], np.cumsum(lengths)]))


def corpus(seed: int = 0, *, n: int = 40, vocab_size: int = 9) -> Corpus:
    """A corpus of random splits."""
    names = ("train", "valid", "test", "heldout")
    splits = {
        name: split(seed * 10 + rank, name=name, n=n if name == "train" else n // 4, vocab_size=vocab_size)
        for rank, name in enumerate(names)
    }
    return Corpus(
        name="toy",
        fingerprint=f"{seed:064x}",
        description={},
        vocab_size=vocab_size,
        token_bytes=np.append(0, np.ones(vocab_size - 1, np.int64)),
        **splits,
    )


def source(seed: int, size: int = 900) -> str:
    """Something like a source file, different for every seed."""
    rng = np.random.default_rng(seed)
    words = ["def", "return", "self", "value", "index", "tensor", "für", "名前", f"f{seed}", f"g{seed * 7}"]
    lines = [" ".join(rng.choice(words, 6)) for _ in range(size // 30)]
    return "\n    ".join(lines) + "\n"


def install(
    site: Path, package: str, files: dict[str, str | bytes], *, version: str = "1.0", record: bool = True
) -> None:
    """Lay out a package as pip would."""
    rows = []
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        path = site / package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        code = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{package}/{name},sha256={code},{len(data)}")
    info = site / f"{package}-{version.replace('-', '_')}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    if record:
        (info / "RECORD").write_text("\n".join([*rows, f"{package}-{version}.dist-info/RECORD,,"]) + "\n")


def damage(path: Path) -> None:
    """Change one byte near the end of a file."""
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x55
    path.write_bytes(bytes(data))


def manifest(folder: Path) -> dict:
    """The manifest of a cached corpus."""
    return json.loads((folder / "manifest.json").read_text())
