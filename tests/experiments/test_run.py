"""Real runs, small: every arm trains, is evaluated, billed, and resumes."""

import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import wandb

from experiments.arms import NO_STORE, SAME_TOKENS, WHOLE_CORPUS
from experiments.data import CorpusError, TextCorpus
from experiments.errors import RunError
from experiments.evaluation import read_bill
from experiments.run import DEFAULTS, Run, execute, quick_precision
from experiments.training import count_step
from experiments.workspace import Workspace
from mann import LanguageModule, Transformer, UltraMem
from tests.contracts import batch
from tests.experiments.data import toy

SETTINGS = {"layers": 2, "heads": 2, "batch": 2, "time": 32, "k": 4, "evaluation_tokens": 512}
BUDGET = 2e9


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TextCorpus:
    """The tests of this repository as text: always there, and code."""
    folder = tmp_path_factory.mktemp("corpus")
    return TextCorpus(Path(__file__).parent, vocab_size=257, cache=folder, pattern="*.py")


@pytest.fixture
def workspace(corpus: TextCorpus, tmp_path: Path) -> Workspace:
    return Workspace(corpus, tmp_path / "out", tmp_path / "cache")


def run_of(arm: str, regime: str, budget: float = BUDGET, **settings: object) -> Run:
    return Run("test", arm, regime, 0, 16, budget, {**SETTINGS, **settings})


@pytest.mark.parametrize(
    ("arm", "regime"),
    [
        ("dense", NO_STORE),
        ("ngram", SAME_TOKENS),
        ("unigram table", SAME_TOKENS),
        ("knn", SAME_TOKENS),
        ("knn", WHOLE_CORPUS),
        ("graph", SAME_TOKENS),
        ("GNN-LM", SAME_TOKENS),
        ("GNN-LM over edges", SAME_TOKENS),
        ("suffix graph", WHOLE_CORPUS),
        ("random neighbours", SAME_TOKENS),
        ("shuffled edges", WHOLE_CORPUS),
    ],
)
def test_every_arm_gives_a_whole_row(arm: str, regime: str, workspace: Workspace) -> None:
    row, *derived = execute(run_of(arm, regime, counts=arm in ("dense", "knn")), workspace)
    # Without a store less than a step is left over; with one the search for the first windows says how many fit.
    stored = arm not in ("dense", "ngram", "unigram table")
    least = 0.98 if stored else 1 - 1 / row["steps"]
    assert least * BUDGET < row["train_flops"] <= BUDGET
    assert row["train_flops"] == sum(row["flops"].values())
    assert row["matmul_flops"] < row["train_flops"]
    assert row["tokens"] == row["steps"] * SETTINGS["batch"] * SETTINGS["time"]
    assert row["read_flops"] > 0
    for split in ("valid", "test"):
        assert 0 < row["losses"][split]["nats_per_token"] < math.log(257) + 0.1
    assert (row["bytes"]["search"] > 0) == stored
    names = {other["arm"] for other in derived}
    assert (f"{arm}, memory off" in names) == (arm != "dense")
    assert (f"{arm} + counts" in names) == (arm in ("dense", "knn"))
    assert all(other["parent"] == row["run"] for other in derived)
    for other in derived:
        if other["arm"].endswith("+ counts"):
            # Counts give a whole distribution, and mixing is two products and a sum over all of it.
            assert other["read_flops"] - row["read_flops"] > 257 + 3 * 257
            assert other["read_bytes"] - row["read_bytes"] > 8 * 257 + 28 * 257


def test_a_search_is_paid_for_where_its_neighbours_are_read(workspace: Workspace) -> None:
    rows = [execute(run_of(arm, WHOLE_CORPUS, 4e9), workspace)[0] for arm in ("knn", "retro")]
    everywhere, chunks = (row["flops"]["search"] / row["tokens"] for row in rows)
    # A window is one chunk at most, of which the last token is looked for.
    assert 0 < chunks <= everywhere / 16
    assert (
        rows[1]["search"]["bytes"] / rows[1]["tokens"] < rows[0]["search"]["bytes"] / rows[0]["tokens"] / 16
    )


def test_an_auxiliary_loss_is_on_the_bill_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def bill() -> int:
        network = Transformer(29, 16, 1, 2, feedforward=partial(UltraMem, n_keys=8, k=4))
        return count_step(LanguageModule(network, 10), batch(), SETTINGS | DEFAULTS).flops

    whole = bill()
    monkeypatch.setattr(LanguageModule, "objective", LanguageModule.forward)
    assert bill() < whole


def test_inference_is_billed_as_the_whole_distribution() -> None:
    batch = {name: torch.zeros(2, 8, dtype=torch.int64) for name in ("tokens", "documents")}
    bills = {vocab: read_bill(Transformer(vocab, 16, 1), batch) for vocab in (64, 257)}
    for vocab, bill in bills.items():
        assert bill.by_operator["aten._log_softmax"] == 5 * 16 * vocab
        assert bill.by_module["readout"] >= (2 * 16 + 5) * 16 * vocab
    assert bills[257].flops - bills[64].flops >= (2 * 16 + 5) * 16 * (257 - 64)


def test_a_run_repeats_itself_to_the_bit(workspace: Workspace) -> None:
    run = run_of("ngram", NO_STORE)
    first, second = (
        execute(replace(run, settings_from=source), workspace)[0] for source in ("", "own search")
    )
    assert second["settings_from"] == "own search"
    assert first["run"] == second["run"]
    assert first["losses"] == second["losses"]
    assert first["flops"] == second["flops"]


@pytest.mark.parametrize("stopped", ["train", "evaluate"])
def test_a_stopped_run_goes_on_from_its_checkpoint(
    stopped: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of("knn", SAME_TOKENS, budget=2e9)
    whole = execute(run, workspace)
    monkeypatch.setattr("experiments.training.CHECKPOINT_FLOPS", 0)
    monkeypatch.setattr("experiments.training.CHECKPOINT_STEPS", 16)
    trained = []

    def progress(stage: str, share: float) -> None:
        trained.append(share) if stage == "train" else None
        if stage == stopped and share >= (0.5 if stage == "train" else 0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(run, workspace, progress)
    assert list(workspace.out.rglob("last.ckpt"))
    trained.clear()
    again = execute(run, workspace, lambda stage, share: trained.append(share) if stage == "train" else None)
    assert all(share > 0.4 for share in trained)
    assert [row["losses"] for row in again] == [row["losses"] for row in whole]
    assert not list(workspace.out.rglob("last.ckpt"))


def test_held_out_text_shorter_than_a_window_is_found_before_training(workspace: Workspace) -> None:
    stages = []
    workspace.corpus = replace(workspace.corpus, valid=toy.split(0, name="valid", n=1, longest=20))
    with pytest.raises(CorpusError, match="split 'valid' has"):
        execute(run_of("dense", NO_STORE), workspace, lambda stage, share: stages.append(stage))
    assert "train" not in stages


def test_counting_changes_no_number_and_arms_share_their_data(workspace: Workspace) -> None:
    torch.manual_seed(123)
    first = execute(run_of("dense", NO_STORE), workspace)[0]
    torch.manual_seed(321)
    second = execute(run_of("dense", NO_STORE, counts=True), workspace)[0]
    assert first["losses"] == second["losses"]


def test_a_same_token_store_holds_most_of_what_was_trained_on(workspace: Workspace) -> None:
    row = execute(run_of("knn", SAME_TOKENS), workspace)[0]
    assert 0.6 * row["tokens"] < row["store_entries"] <= row["tokens"]
    assert execute(run_of("dense", NO_STORE), workspace)[0]["store_entries"] == 0


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (run_of("dense", NO_STORE, budget=1e3), "less than one step"),
        (run_of("dens", NO_STORE), "did you mean 'dense'"),
        (run_of("dense", NO_STORE, heads=5), "n_heads among"),
        (run_of("dense", NO_STORE, batches=5), "unknown settings"),
    ],
)
def test_bad_runs_say_what_to_do(run: Run, words: str, workspace: Workspace) -> None:
    with pytest.raises(RunError, match=words):
        execute(run, workspace)


def test_a_diverging_run_is_stopped(workspace: Workspace) -> None:
    rates = dict.fromkeys(("matrix", "head", "embedding", "scalar", "table"), 1e30)
    with pytest.raises(FloatingPointError, match="lower the rates"):
        execute(run_of("dense", NO_STORE, rates=rates), workspace)


def test_the_key_follows_everything_that_defines_a_run() -> None:
    run = run_of("dense", NO_STORE)
    assert Run.from_dict(run.to_dict()).key("a") == run.key("a")
    assert replace(run, unasked="it could not be asked").key("a") == run.key("a")
    others = [
        run_of("ngram", NO_STORE),
        run_of("dense", NO_STORE, budget=3e9),
        run_of("dense", NO_STORE, time=16),
    ]
    assert len({run.key("a"), run.key("b"), *(other.key("a") for other in others)}) == 5


def _content(log: bytes) -> bytes:
    """What a W&B file holds, a LevelDB log: its chunks have headers and end with a block, within a name at times."""
    parts, at = [], 7
    while at + 7 <= len(log):
        length = int.from_bytes(log[at + 4 : at + 6], "little")
        parts.append(log[at + 7 : at + 7 + length])
        at += 7 + length
        left = 32_768 - at % 32_768
        at += left if left < 7 else 0
    return b"".join(parts)


def test_wandb_offline_needs_no_account_and_keeps_the_run(corpus: TextCorpus, tmp_path: Path) -> None:
    workspace = Workspace(corpus, tmp_path / "out", tmp_path / "cache", wandb="offline")
    execute(run_of("dense", NO_STORE), workspace)
    (record,) = (tmp_path / "out" / "wandb").rglob("run-*.wandb")
    names = (
        b"train/nats_per_token",
        b"train_flops",
        b"test/bits_per_byte",
        b"copying/second",
        b"readout",
    )
    # A process of W&B's own writes the record, and on a busy machine it lags behind.
    deadline = time.monotonic() + 30
    while not all(name in _content(record.read_bytes()) for name in names) and time.monotonic() < deadline:
        time.sleep(0.2)
    content = _content(record.read_bytes())
    assert [name for name in names if name not in content] == []


def test_a_run_that_fails_is_ended_in_wandb_too(corpus: TextCorpus, tmp_path: Path) -> None:
    workspace = Workspace(corpus, tmp_path / "out", tmp_path / "cache", wandb="offline")
    rates = dict.fromkeys(("matrix", "head", "embedding", "scalar", "table"), 1e30)
    with pytest.raises(FloatingPointError):
        execute(run_of("dense", NO_STORE, rates=rates), workspace)
    assert wandb.run is None


@pytest.mark.parametrize(
    ("where", "error"),
    [("_Execution._evaluations", KeyboardInterrupt), ("conclude", ValueError)],
)
def test_a_failure_after_training_is_ended_in_wandb_as_one(
    where: str, error: type[BaseException], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.wandb = "offline"
    ended = []
    finish = wandb.Run.finish

    def fail(*_: object, **__: object) -> None:
        raise error("later")

    def watched(run: wandb.Run, exit_code: int | None = None) -> None:
        ended.append(exit_code)
        finish(run, exit_code)
        raise OSError("W&B fails too, which must not hide what was wrong")

    monkeypatch.setattr(f"experiments.run.{where}", fail)
    monkeypatch.setattr(wandb.Run, "finish", watched)
    with pytest.raises(error, match="later"):
        execute(run_of("dense", NO_STORE), workspace)
    assert ended == [1]
    assert wandb.run is None


@pytest.mark.parametrize(
    ("found", "precision"),
    [
        ({"amx_bf16": True}, "bf16-mixed"),
        ({"avx512_bf16": True}, "bf16-mixed"),
        ({"avx2": True, "amx_bf16": False}, "32-true"),
        ({}, "32-true"),
    ],
)
def test_precision_is_what_the_processor_is_quick_at(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, bool], precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert quick_precision() == precision
