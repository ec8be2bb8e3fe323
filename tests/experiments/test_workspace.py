"""The workspace: stores and tables are shared when, and only when, they are the same."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from experiments.arms import WHOLE_CORPUS, Arm
from experiments.data import TextCorpus, Windows
from experiments.errors import RunError
from experiments.neighborhood import PIECE, read_every
from experiments.workspace import Workspace
from mann import ChunkedCrossAttention, PointerReadout, Transformer
from retrieval import SuffixSource


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("workspace")
    text = TextCorpus(Path(__file__).parent, vocab_size=257, cache=folder, pattern="*.py")
    return Workspace(text, folder / "out", folder / "cache")


def arm(**options: int) -> Arm:
    return Arm("mine", source=partial(SuffixSource, **options))


def test_stores_that_differ_do_not_share_and_equal_ones_do(workspace: Workspace) -> None:
    windows = Windows(workspace.corpus.train, 32)
    four, again, eight = (
        workspace.source(arm(max_order=order), WHOLE_CORPUS, windows, 0, 8) for order in (4, 4, 8)
    )
    assert four.fingerprint == again.fingerprint != eight.fingerprint
    assert four is again


def test_a_store_without_a_name_is_refused(workspace: Workspace) -> None:
    windows = Windows(workspace.corpus.train, 32)
    nameless = Arm("mine", source=lambda passages: SuffixSource(passages))
    with pytest.raises(RunError, match=r"functools\.partial"):
        workspace.source(nameless, WHOLE_CORPUS, windows, 0, 8)


def test_tables_follow_the_windows_they_were_made_for(workspace: Workspace) -> None:
    windows = Windows(workspace.corpus.valid, 32)
    source = workspace.source(arm(max_order=4), WHOLE_CORPUS, windows, 0, 8)
    few, many = np.arange(0, 40, 2), np.arange(0, 40, 1)
    tables = [
        workspace.neighborhood(source, windows, rows, "valid", 2, exclude=False) for rows in (few, many)
    ]
    assert tables[0].folder != tables[1].folder
    for rows, table in zip((few, many), tables, strict=True):
        table.prepare(len(rows))
        found = table.rows(torch.tensor([3, 5]))
        batch = windows.batch(rows[[3, 5]])
        direct = source.search(batch["tokens"], 2, documents=batch["documents"])
        assert torch.equal(found.ids, direct.ids)
        assert torch.equal(found.mask, direct.mask)
        work = table.work(len(rows))
        assert set(work) == set(direct.work)
        assert work["flops"] == 0
        assert work["bytes"] > 0
        assert table.seconds(len(rows)) > 0
    assert set(table.store_bill()) == {"flops", "bytes", "seconds"}


def test_neighbours_are_searched_for_where_they_are_read_alone(workspace: Workspace) -> None:
    windows = Windows(workspace.corpus.valid, 32)
    source = workspace.source(arm(max_order=4), WHOLE_CORPUS, windows, 0, 8)
    order = np.arange(8)
    table, sparse = (
        workspace.neighborhood(source, windows, order, "valid", 2, exclude=False, every=every)
        for every in (1, 8)
    )
    assert table.folder != sparse.folder
    for each in (table, sparse):
        each.prepare(8)
    whole, found = (each.rows(torch.arange(8)) for each in (table, sparse))
    batch = windows.batch(order)
    begins = torch.nn.functional.pad(batch["documents"].diff(dim=1) != 0, (1, 0), value=True)
    here = torch.arange(32).expand(8, 32)
    age = here - here.masked_fill(~begins, 0).cummax(1).values
    ends = age % 8 == 7
    assert 8 <= ends.sum() <= 32
    assert torch.equal(found.ids[ends], whole.ids[ends])
    assert torch.equal(found.mask[ends], whole.mask[ends])
    assert whole.mask[~ends].any()
    assert not found.mask[~ends].any()
    assert 0 < sparse.work(8)["bytes"] < 0.2 * table.work(8)["bytes"]


def test_a_network_says_where_it_reads(workspace: Workspace) -> None:
    store = workspace.source(arm(max_order=4), WHOLE_CORPUS, Windows(workspace.corpus.train, 32), 0, 8)
    size, chunks = (workspace.corpus.vocab_size, 16, 2, 2), partial(ChunkedCrossAttention, source=store)
    eight, twelve = (partial(chunks, chunk=size) for size in (8, 12))
    assert read_every(Transformer(*size)) == 1
    assert read_every(Transformer(*size, memory={1: eight})) == 8
    assert read_every(Transformer(*size, memory={0: eight, 1: twelve})) == 4
    everywhere = partial(PointerReadout, source=store)
    assert read_every(Transformer(*size, memory={1: eight}, readout=everywhere)) == 1


def test_a_longer_list_shares_the_tables_of_its_beginning(workspace: Workspace) -> None:
    windows = Windows(workspace.corpus.train, 8)
    source = workspace.source(arm(max_order=4), WHOLE_CORPUS, windows, 0, 8)
    order = np.arange(PIECE + 20)
    short, long = (
        workspace.neighborhood(source, windows, order[:n], "train", 2, exclude=True)
        for n in (PIECE, PIECE + 20)
    )
    assert short.folder == long.folder
    long.prepare(PIECE + 20)
    across = long.rows(torch.tensor([PIECE - 1, PIECE]))
    assert across.ids.shape == (2, 8, 2)
    documents = windows.batch(order[[PIECE - 1, PIECE]])["documents"]
    labels = torch.from_numpy(source.passages.labels.astype(np.int64))
    assert not (labels[across.ids] == documents[..., None])[across.mask].any()


def test_a_piece_that_another_process_makes_is_left_for_last(workspace: Workspace) -> None:
    windows = Windows(workspace.corpus.train, 8)
    source = workspace.source(arm(max_order=5), WHOLE_CORPUS, windows, 0, 8)
    order = np.arange(PIECE + 20)
    table = workspace.neighborhood(source, windows, order, "train", 2, exclude=True)
    table.folder.mkdir(parents=True)
    first, second = (table.folder / f"piece-0000{number}" for number in range(2))
    with FileLock(f"{first}.lock") as busy:
        seen = []

        def progress(share: float) -> None:
            seen.append((share, first.exists(), second.exists()))
            if second.exists():
                busy.release()

        table.prepare(len(order), progress)
    assert seen == [(0.0, False, False), (0.5, False, True), (1.0, True, True)]
