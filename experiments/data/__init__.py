"""Where text comes from: one source, one file. Batches of it are in :mod:`experiments.data.module`."""

from experiments.data.babi import BabiCorpus
from experiments.data.code import CodeCorpus
from experiments.data.copying_tasks import CopyCorpus
from experiments.data.corpus import Corpus, CorpusError, Split
from experiments.data.recall import RecallCorpus
from experiments.data.text import TextCorpus
from experiments.data.windows import Windows, evaluation_rows, training_order

__all__ = [
    "BabiCorpus",
    "CodeCorpus",
    "CopyCorpus",
    "Corpus",
    "CorpusError",
    "RecallCorpus",
    "Split",
    "TextCorpus",
    "Windows",
    "evaluation_rows",
    "training_order",
]
