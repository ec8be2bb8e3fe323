"""bAbI: short stories and questions about them, made here or read from the files of the original."""

from __future__ import annotations

import lzma
import re
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from jaxtyping import Int

from experiments.data.babi_world import MADE, make_story
from experiments.data.corpus import Corpus, CorpusError
from experiments.data.tasks import SPLITS, Examples, task_corpus

FILLER = 1
"""The token behind a story that is shorter than the longest."""
FIRST_WORD = 2

# A story in order: what is said, or asked and its answer.
Line = tuple[list[str], str | None]
Story = list[Line]

_FILE = re.compile(r"qa(\d+)_[\w-]+_(train|test)\.txt")
_LARGEST = 1 << 26


@dataclass(frozen=True)
class Stories:
    """Questions with all that was said before them; 0 where a sentence, or a story, is shorter than others.

    Args:
        sentences: Words of each sentence, ``[questions, sentences, words]``; stories begin in the first row.
        questions: Words of the question, ``[questions, words]``.
        answers: The word that answers it, ``[questions]``.
    """

    sentences: Int[np.ndarray, "questions sentences words"]
    questions: Int[np.ndarray, "questions words"]
    answers: Int[np.ndarray, " questions"]


class BabiCorpus:
    """A task of bAbI as a corpus: a story is a document, and at its question marks the answers are asked.

    Words are tokens, in lower case; an answer of several words is one token, as in the paper. The answer is not in the
    text after its question. :meth:`stories` has the same as sentences and questions.

    Reference:
        Weston et al., "Towards AI-complete question answering: a set of prerequisite toy tasks", 2015.
        arXiv:1502.05698.

    Args:
        path: A folder or a tar archive (``.tar``, ``.tar.gz``, ``.tar.xz``) that holds the original files
            ``qa1_..._train.txt`` and ``qa1_..._test.txt``, in whatever folders; ``None``: stories are made here, for
            tasks 1, 2 and 3.
        task: Number of the task, 1 to 20.
        variant: Folder that the files are in, where there are several of one name: ``"en"``, or ``"en-10k"``.
        examples: Stories of training that are made.
        test_examples: Stories of valid, and of test, that are made; a tenth of the training files is valid.
        questions: Questions of a story that is made.
        seed: Of the generator, which is nobody else's.

    Raises:
        CorpusError: If the files are not there or are not of this form, or the task is not made here.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        task: int = 1,
        variant: str = "en",
        examples: int = 200,
        test_examples: int = 200,
        questions: int = 5,
        seed: int = 0,
    ) -> None:
        if path is None and task not in MADE:
            raise CorpusError(
                f"stories of task {task} are not made here, those of {sorted(MADE)} are: give the path of the original"
            )
        if min(examples, test_examples, questions) < 1:
            raise CorpusError("examples, test_examples and questions must all be at least 1")
        self.path, self.task, self.variant = None if path is None else Path(path), task, variant
        self.examples, self.test_examples, self.questions = examples, test_examples, questions
        self.seed = seed

    @cached_property
    def texts(self) -> dict[str, list[Story]]:
        """The stories of each split, as words."""
        if self.path is None:
            return self._made()
        files = read_files(self.path, self.task, self.variant)
        train = parse(files["train"])
        kept = max(1, len(train) - max(1, len(train) // 10))
        texts = {"train": train[:kept], "valid": train[kept:], "test": parse(files["test"])}
        for split, stories in texts.items():
            if not any(answer is not None for story in stories for _, answer in story):
                raise CorpusError(f"task {self.task} of {self.path} has no questions for split {split!r}")
        return texts

    @cached_property
    def words(self) -> list[str]:
        """The word of each token; the first two stand for none."""
        found: set[str] = set()
        for stories in self.texts.values():
            for words, answer in (line for story in stories for line in story):
                found.update(words, [] if answer is None else [answer])
        return ["", "", *sorted(found)]

    @cached_property
    def _tokens(self) -> dict[str, int]:
        return {word: token for token, word in enumerate(self.words) if token >= FIRST_WORD}

    @property
    def vocab_size(self) -> int:
        """Words, the marker and the filler."""
        return len(self.words)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest story, the marker before it not counted."""
        return max(
            sum(len(words) for words, _ in story) for stories in self.texts.values() for story in stories
        )

    def load(self, progress: Callable[[str, float], None] | None = None) -> Corpus:
        """The stories, one a document: the same ones each time."""
        described = {
            "task": self.task,
            "made": None if self.path else [self.examples, self.test_examples, self.questions],
            "words": self.words,
        }
        return task_corpus("babi", self.vocab_size, self._examples, self.seed, described)

    def _examples(self, split: str, generator: np.random.Generator) -> list[Examples]:
        stories = self.texts[split]
        tokens = np.full((len(stories), self.longest), FILLER)
        answers = np.full(tokens.shape, -100)
        for row, story in enumerate(stories):
            end = 0
            for words, answer in story:
                begin, end = end, end + len(words)
                tokens[row, begin:end] = [self._tokens[word] for word in words]
                if answer is not None:
                    answers[row, end - 1] = self._tokens[answer]
        return [(tokens, answers)]

    def stories(self, split: str, most: int = 50) -> Stories:
        """Every question of a split with the sentences before it.

        Args:
            split: ``"train"``, ``"valid"`` or ``"test"``.
            most: Sentences of a story that are kept, the last ones.
        """
        everything = [line for stories in self.texts.values() for story in stories for line in story]
        width = max(len(words) for words, _ in everything)
        asked: list[tuple[list[list[str]], list[str], str]] = []
        for story in self.texts[split]:
            said: list[list[str]] = []
            for words, answer in story:
                if answer is None:
                    said.append(words)
                else:
                    asked.append((said[-most:], words, answer))
        deepest = max(1, max(len(said) for said, _, _ in asked))
        sentences = np.zeros((len(asked), deepest, width), np.int64)
        questions = np.zeros((len(asked), width), np.int64)
        answers = np.array([self._tokens[answer] for _, _, answer in asked])
        for row, (said, question, _) in enumerate(asked):
            questions[row, : len(question)] = [self._tokens[word] for word in question]
            for place, words in enumerate(said):
                sentences[row, place, : len(words)] = [self._tokens[word] for word in words]
        return Stories(sentences, questions, answers)

    def _made(self) -> dict[str, list[Story]]:
        texts = {}
        for split, generator in zip(SPLITS, np.random.default_rng(self.seed).spawn(3), strict=True):
            count = self.examples if split == "train" else self.test_examples
            texts[split] = [make_story(self.task, self.questions, generator) for _ in range(count)]
        return texts


def parse(text: str) -> list[Story]:
    """The stories of a file: numbered lines, of which 1 begins a story; a question has its answer behind a tab.

    Args:
        text: The file.
    """
    stories: list[Story] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        index, _, rest = line.strip().partition(" ")
        if not index.isdigit() or (not stories and index != "1"):
            raise CorpusError(f"line {number} of a bAbI file is {line[:60]!r}: it must begin with its number")
        if index == "1":
            stories.append([])
        said, *asked = rest.split("\t")
        words = re.findall(r"[\w'-]+|[.?]", said.lower())
        if not words or (asked and not asked[0].strip()):
            raise CorpusError(
                f"line {number} of a bAbI file has no words, or a question without answer: {line!r}"
            )
        stories[-1].append((words, asked[0].strip().lower() if asked else None))
    return stories


def read_files(path: Path, task: int, variant: str) -> dict[str, str]:
    """The training and test file of a task, from a folder or an archive; nothing is unpacked onto the disk.

    Args:
        path: The folder or archive.
        task: Number of the task.
        variant: Name of the folder to prefer where several hold such files.
    """
    found: dict[str, dict[str, str]] = {}

    def note(name: str, read: Callable[[], bytes]) -> None:
        parts = Path(name).parts
        match = _FILE.fullmatch(parts[-1]) if parts else None
        if match and int(match[1]) == task:
            folder = parts[-2] if len(parts) > 1 else ""
            if len(parts) == 1 or folder == variant or variant not in parts:
                found.setdefault(folder, {})[match[2]] = read().decode("utf-8", errors="replace")

    if path.is_dir():
        for file in sorted(path.rglob(f"qa{task}_*.txt")):
            if file.is_file():
                note(file.relative_to(path).as_posix(), file.read_bytes)
    elif path.is_file():
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    # Links may point anywhere; a plain file is read, never written.
                    if member.isfile() and member.size <= _LARGEST:
                        note(member.name, partial(_content, archive, member))
        except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
            raise CorpusError(f"{path} cannot be read as a tar archive: {error}") from error
    else:
        raise CorpusError(f"{path} is neither a folder nor an archive: give the path of the bAbI files")
    whole = {folder: files for folder, files in found.items() if set(files) == {"train", "test"}}
    if variant in whole or len(whole) == 1:
        return whole.get(variant) or next(iter(whole.values()))
    if whole:
        raise CorpusError(f"{path} has task {task} in {sorted(whole)}: give one of them as variant")
    raise CorpusError(f"{path} has no qa{task}_..._train.txt and qa{task}_..._test.txt in one folder")


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()
