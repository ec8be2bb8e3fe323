"""``mnemograph corpus``: build and inspect a corpus."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.errors import RunError

SUMMARY = "build the default corpus or one of your own, and say what is in it"
EXAMPLES = """\
  mnemograph corpus
  mnemograph corpus --data my_texts/ --vocab-size 4096"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--data", type=Path, metavar="PATH", help="a text file or a folder of them (default: code)"
    )
    parser.add_argument(
        "--vocab-size", type=int, default=2048, metavar="N", help="tokens to learn (default: 2048)"
    )
    parser.add_argument(
        "--no-audit", action="store_true", help="skip comparing held-out text with training text"
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    if arguments.data is not None and not arguments.data.expanduser().exists():
        raise RunError(f"{arguments.data} does not exist: give --data a text file or a folder of them")
    from experiments.commands.compare import load_corpus
    from experiments.controls import overlap
    from experiments.data import CodeCorpus, TextCorpus

    spec = (
        CodeCorpus(arguments.vocab_size)
        if arguments.data is None
        else TextCorpus(arguments.data, arguments.vocab_size)
    )
    corpus = load_corpus(spec)
    print(f"name         {corpus.name}")
    print(f"fingerprint  {corpus.fingerprint}")
    print(f"tokens       {corpus.vocab_size} kinds, the document marker included")
    print(f"folder       {corpus.folder}\n")
    print(f"{'split':<9}{'documents':>12}{'tokens':>14}{'bytes':>14}{'bytes/token':>14}")
    for name, split in corpus.splits.items():
        size = split.bytes_of(corpus.token_bytes)
        print(f"{name:<9}{split.n_documents:>12,}{len(split):>14,}{size:>14,}{size / len(split):>14.2f}")
    if arguments.no_audit:
        return 0
    print("\nComparing held-out text with training text", file=sys.stderr)
    shares = overlap(corpus)
    print("\nTokens whose n predecessors occur word for word in the training text:")
    lengths = sorted({n for by_length in shares.values() for n in by_length})
    print(f"{'split':<9}" + "".join(f"{f'n = {n}':>10}" for n in lengths))
    for name, by_length in shares.items():
        print(f"{name:<9}" + "".join(f"{by_length[n]:>10.1%}" for n in lengths))
    return 0
