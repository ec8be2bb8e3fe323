import io
import tarfile

import numpy as np
import pytest
import torch

from experiments.data import CorpusError, Windows
from experiments.data.babi import FILLER, BabiCorpus, parse
from experiments.data.babi_world import PEOPLE, PLACES, THINGS, make_story
from experiments.data.module import BabiData

TRAIN = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Daniel isn't in the U.S. office.
5 Where is John? \thallway,office\t2 4
1 Sandra left.
2 Where is Sandra? \toffice\t1
"""
TEST = "1 John moved to the garden.\n2 Where is John? \tgarden\t1\n"


def archive(path, names, packed="xz", link=None):
    with tarfile.open(path, f"w:{packed}") as out:
        for name, text in names.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            out.addfile(member, io.BytesIO(text.encode()))
        if link:
            member = tarfile.TarInfo(link[0])
            member.type, member.linkname = tarfile.SYMTYPE, link[1]
            out.addfile(member)
    return path


def folder(path):
    for name, text in {"qa1_facts_train.txt": TRAIN, "qa1_facts_test.txt": TEST, "notes.txt": "no"}.items():
        (path / name).write_text(text)
    return path


def test_a_file_is_read():
    first, second = parse(TRAIN)
    assert first[0] == (["mary", "moved", "to", "the", "bathroom", "."], None)
    assert first[2] == (["where", "is", "mary", "?"], "bathroom")
    assert first[3][0][:3] == ["daniel", "isn't", "in"]
    assert first[4][1] == "hallway,office"
    assert [len(first), len(second)] == [5, 2]


def test_a_story_is_a_document_and_its_questions_are_asked(tmp_path):
    source = BabiCorpus(folder(tmp_path))
    corpus = source.load()
    words = source.words
    windows = Windows(corpus.train, source.longest + 1)
    batch = windows.batch(np.arange(len(windows)))
    assert len(windows) == 1
    text = [words[token] for token in batch["tokens"][0]]
    assert text[:7] == ["", "mary", "moved", "to", "the", "bathroom", "."]
    asked = {place: words[answer] for place, answer in enumerate(batch["targets"][0].tolist()) if answer >= 0}
    assert list(asked.values()) == ["bathroom", "hallway,office"]
    assert all(text[place] == "?" for place in asked)
    test = Windows(corpus.test, source.longest + 1).batch(np.arange(1))
    assert test["tokens"][0, -1] == FILLER
    assert words[test["targets"][0, 10]] == "garden"


def test_questions_with_all_that_was_said(tmp_path):
    source = BabiCorpus(folder(tmp_path))
    train = source.stories("train")
    said = lambda row: [" ".join(source.words[w] for w in s if w) for s in row if s.any()]  # noqa: E731
    assert train.sentences.shape[:2] == (2, 3)
    assert said(train.sentences[0]) == ["mary moved to the bathroom .", "john went to the hallway ."]
    assert len(said(train.sentences[1])) == 3
    assert said(source.stories("train", most=1).sentences[1]) == ["daniel isn't in the u . s . office ."]
    assert [source.words[a] for a in train.answers] == ["bathroom", "hallway,office"]
    assert said(train.questions) == ["where is mary ?", "where is john ?"]
    assert [source.words[a] for a in source.stories("valid").answers] == ["office"]


@pytest.mark.parametrize("packed", ["xz", "gz"])
def test_archives_are_read_and_never_unpacked(tmp_path, packed):
    files = {
        "tasks/en/qa1_facts_train.txt": TRAIN,
        "tasks/en/qa1_facts_test.txt": TEST,
        "tasks/en-10k/qa1_facts_train.txt": TRAIN * 2,
        "tasks/en-10k/qa1_facts_test.txt": TEST,
        "../../outside.txt": "escaped",
        "../qa2_x_train.txt": TRAIN,
    }
    where = tmp_path / "deep" / "er"
    where.mkdir(parents=True)
    path = archive(
        where / f"babi.tar.{packed}", files, packed, ("tasks/en/qa3_x_train.txt", "qa1_facts_train.txt")
    )
    before = sorted(tmp_path.rglob("*"))
    assert len(BabiCorpus(path).texts["train"]) == 1
    assert len(BabiCorpus(path, variant="en-10k").texts["train"]) == 3
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(CorpusError, match="no qa3_"):
        BabiCorpus(path, 3).load()
    with pytest.raises(CorpusError, match=r"\['en', 'en-10k'\]: give one"):
        BabiCorpus(path, variant="hn").load()


def test_what_goes_wrong_is_said(tmp_path):
    with pytest.raises(CorpusError, match="neither a folder"):
        BabiCorpus(tmp_path / "nowhere").load()
    (tmp_path / "broken.tar.xz").write_bytes(b"no archive")
    with pytest.raises(CorpusError, match="cannot be read"):
        BabiCorpus(tmp_path / "broken.tar.xz").load()
    with pytest.raises(CorpusError, match="not made here"):
        BabiCorpus(task=4)
    with pytest.raises(CorpusError, match="at least 1"):
        BabiCorpus(questions=0)
    for text in ("Mary left.\n", "2 Mary left.\n", "1 Where? \t \t1\n"):
        with pytest.raises(CorpusError, match="line 1 of a bAbI file"):
            parse(text)
    (tmp_path / "qa1_x_train.txt").write_text("1 Mary left.\n" * 3)
    (tmp_path / "qa1_x_test.txt").write_text(TEST)
    with pytest.raises(CorpusError, match="no questions for split 'train'"):
        BabiCorpus(tmp_path).load()


def answered(story, task):
    """Answers by reading the text alone, as the original tasks mean them."""
    place, holder, path, found = {}, {}, {}, []
    for words, answer in story:
        if answer is None:
            who, verb = words[0], words[1]
            last = words[-2]
            if last in PLACES:
                assert place.get(who) != last
                place[who] = last
                for thing in THINGS:
                    if holder.get(thing) == who:
                        path[thing].append(last)
            elif verb in ("got", "picked", "took", "grabbed"):
                assert thing_is_free_and_here(last, who, place, holder, path)
                holder[last] = who
                path.setdefault(last, [place[who]])
            else:
                assert holder.pop(last) == who
        elif task == 1:
            found.append(place[words[2]])
        elif task == 2:
            found.append(path[words[3]][-1])
        else:
            visits = path[words[3]]
            assert visits.count(words[6]) == 1
            found.append(visits[visits.index(words[6]) - 1])
    return found


def thing_is_free_and_here(thing, who, place, holder, path):
    return thing not in holder and path.get(thing, [place[who]])[-1] == place[who]


@pytest.mark.parametrize("task", [1, 2, 3])
def test_stories_made_here_answer_their_questions(task):
    generator = np.random.default_rng(task)
    told = []
    for _ in range(60):
        story = make_story(task, 4, generator)
        answers = [answer for _, answer in story if answer is not None]
        assert len(answers) == 4
        assert answered(story, task) == answers
        told += answers
    # Each place is an answer about as often as others: nothing is won by always saying one.
    counts = [told.count(place) for place in PLACES]
    assert max(counts) < 2.5 * min(counts)
    people = {words[0] for words, answer in story if answer is None}
    assert people <= set(PEOPLE)


def test_the_same_corpus_each_time_and_another_for_another_seed():
    one, same, other = (BabiCorpus(seed=seed, examples=20).load() for seed in (0, 0, 1))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.train.n_documents == 21


def test_as_batches():
    data = BabiData(BabiCorpus(examples=8, test_examples=4), batch_size=4)
    batch = next(iter(data.training()))
    assert (batch["targets"] >= 0).sum(1).tolist() == [5] * 4
    assert torch.equal(batch["documents"], batch["documents"][:, :1].expand_as(batch["documents"]))
