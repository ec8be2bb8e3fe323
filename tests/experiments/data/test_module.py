import time
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from experiments.data.corpus import CorpusError
from experiments.data.module import WindowData
from experiments.data.windows import evaluation_rows, training_order
from retrieval.neighbors import Neighbors
from tests.experiments.data.toy import corpus as toy_corpus


class Table:
    """Neighbours whose ids are the number of the row."""

    exclude = False

    def rows(self, index: Tensor) -> Neighbors:
        ids = index[:, None, None].expand(-1, 8, 3).contiguous()
        return Neighbors(ids.float().negative(), ids, torch.ones_like(ids, dtype=torch.bool))


class Listener(lightning.LightningModule):
    """Notes every batch; has one weight, so there is something to train and save."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Tensor] = []
        self.validations: list[list[list[int]]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.seen.append(batch["positions"][:, 0].clone())
        return (self.weight - batch["tokens"].float().mean()) ** 2

    def on_validation_epoch_start(self) -> None:
        self.validations.append([])

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.validations[-1].append(batch["positions"][:, 0].tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stop(Callback):
    """Breaks off in the middle of a step, after its batch has been fetched."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "broken.ckpt")
            raise KeyError("power cut")


def trainer(folder: Path, **options: Any) -> lightning.Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 1,
        "default_root_dir": folder,
    }
    return lightning.Trainer(**{**defaults, **options})


def data(**options: Any) -> WindowData:
    return WindowData(toy_corpus(), 8, 4, **{"evaluation_tokens": 64, **options})


def starts(batches: Any) -> list[list[int]]:
    return [batch["positions"][:, 0].tolist() for batch in batches]


def test_training_visits_windows_in_training_order() -> None:
    module = data(seed=3)
    order = training_order(len(module.windows), 3)
    visited = np.concatenate(starts(module.train_dataloader())) // 8
    np.testing.assert_array_equal(visited, order[: len(visited)])
    assert len(visited) == 4 * (len(order) // 4)
    assert module.n_tokens == 8 * len(visited)


def test_arms_of_one_seed_see_the_same_batches_whatever_the_global_state() -> None:
    batches = []
    for state in (0, 1):
        torch.manual_seed(state)
        np.random.seed(state)  # noqa: NPY002
        loader = data(seed=3).train_dataloader()
        torch.rand(state + 1)
        batches.append([{key: value.numpy().tobytes() for key, value in batch.items()} for batch in loader])
        torch.rand(3)
    assert batches[0] == batches[1]
    assert starts(data(seed=4).train_dataloader()) != starts(data(seed=3).train_dataloader())


def test_a_smaller_budget_is_a_prefix_and_a_larger_one_goes_round() -> None:
    n = len(data().windows)
    small, large = data(n_tokens=100), data(n_tokens=8 * 2 * n)
    assert small.steps == 4
    assert starts(large.train_dataloader())[:4] == starts(small.train_dataloader())
    visited = np.concatenate(starts(large.train_dataloader())) // 8
    np.testing.assert_array_equal(np.sort(visited[:n]), np.arange(n))
    np.testing.assert_array_equal(np.sort(visited[n : 2 * n]), np.arange(n))
    assert (visited[:n] != visited[n : 2 * n]).any()


def test_batches_go_on_where_they_stopped() -> None:
    whole = starts(data().train_dataloader())
    loader = data().train_dataloader()
    begun = iter(loader)
    assert [next(begun)["positions"][:, 0].tolist() for _ in range(3)] == whole[:3]
    state = loader.state_dict()
    fresh = data().train_dataloader()
    fresh.load_state_dict(state)
    assert starts(fresh) == whole[3:]
    assert starts(fresh) == whole, "the next pass begins at the beginning"
    assert len(fresh) == len(whole)


def test_a_pass_broken_off_does_not_shorten_the_next() -> None:
    loader = data().train_dataloader()
    whole = starts(loader)
    for n in (1, 3, len(whole)):
        begun = iter(loader)
        assert [next(begun)["positions"][:, 0].tolist() for _ in range(n)] == whole[:n]
        assert loader.state_dict() == {"batch": n}
    assert starts(loader) == whole


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_every_validation_and_every_epoch_sees_all_batches(tmp_path: Path) -> None:
    module, listener = data(n_tokens=8 * 4 * 6, evaluation_batch_size=2), Listener()
    trainer(tmp_path, val_check_interval=3, max_epochs=2).fit(listener, module)
    sanity, *validations = listener.validations
    whole = starts(module.evaluation("valid"))
    assert len(whole) > 2
    assert sanity == whole[:1]
    assert validations == [whole] * 4
    seen = [batch.tolist() for batch in listener.seen]
    assert seen == starts(module.training()) * 2


def test_neighbors_stay_with_their_windows() -> None:
    n = len(data().windows)
    module = data(n_tokens=8 * 2 * n, neighbors={"train": Table(), "valid": Table()})
    order = training_order(n, 0)
    for batch in module.train_dataloader():
        rows = batch["neighbors"].ids[:, 0, 0]
        np.testing.assert_array_equal(order[rows] * 8, batch["positions"][:, 0])
    first = next(iter(module.val_dataloader()))
    assert first["neighbors"].ids[:, 0, 0].tolist() == list(range(len(first["tokens"])))


def test_evaluation_is_the_same_for_everyone() -> None:
    module = data(seed=9)
    rows = evaluation_rows(module.corpus.valid, 8, 64)
    np.testing.assert_array_equal(np.concatenate(starts(module.val_dataloader())), rows * 8)
    assert [loader.windows.split.name for loader in module.test_dataloader()] == ["test", "heldout"]


def test_a_store_of_the_same_text_has_its_documents_left_out() -> None:
    table = Table()
    assert "exclude" not in next(iter(data(neighbors={"train": table}).train_dataloader()))
    table.exclude = True
    batch = next(iter(data(neighbors={"train": table}).train_dataloader()))
    assert torch.equal(batch["exclude"], batch["documents"])


def test_moving_to_a_device_takes_the_neighbors_along() -> None:
    module = data(neighbors={"train": Table()})
    batch = next(iter(module.train_dataloader()))
    moved = module.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved["tokens"].is_meta
    assert moved["neighbors"].ids.is_meta
    assert set(moved) == set(batch)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*lr_scheduler.*")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_resumes_with_the_very_next_batch(tmp_path: Path, accumulate: int) -> None:
    options = {"accumulate_grad_batches": accumulate, "val_check_interval": 3, "num_sanity_val_steps": 0}
    straight = Listener()
    trainer(tmp_path, **options).fit(straight, data(n_tokens=8 * 4 * 12))
    assert len(straight.seen) == 12

    saved = ModelCheckpoint(tmp_path, "step-{step}", every_n_train_steps=2, save_top_k=-1)
    first = Listener()
    trainer(tmp_path, **options, callbacks=[saved], enable_checkpointing=True).fit(
        first, data(n_tokens=8 * 4 * 12)
    )
    checkpoints = sorted(tmp_path.glob("step-*.ckpt"))
    assert len(checkpoints) >= 3
    for checkpoint in checkpoints:
        step = int(checkpoint.stem.split("=")[-1])
        second = Listener()
        trainer(tmp_path, **options).fit(second, data(n_tokens=8 * 4 * 12), ckpt_path=checkpoint)
        rest = straight.seen[step * accumulate :]
        assert len(second.seen) == len(rest), checkpoint.name
        for ours, theirs in zip(second.seen, rest, strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(second.weight, straight.weight)
        assert all(found == straight.validations[0] for found in second.validations)


def test_a_batch_held_but_not_trained_on_comes_again(tmp_path: Path) -> None:
    straight = Listener()
    trainer(tmp_path).fit(straight, data(n_tokens=8 * 4 * 9))
    first = Listener()
    with pytest.raises(KeyError, match="power cut"):
        trainer(tmp_path, callbacks=[Stop(5)]).fit(first, data(n_tokens=8 * 4 * 9))
    assert len(first.seen) == 5
    second = Listener()
    trainer(tmp_path).fit(second, data(n_tokens=8 * 4 * 9), ckpt_path=tmp_path / "broken.ckpt")
    for ours, theirs in zip(second.seen, straight.seen[5:], strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(second.weight, straight.weight)


def test_a_checkpoint_of_other_data_is_refused() -> None:
    state = data(seed=1).state_dict()
    data(seed=1, n_tokens=500).load_state_dict(state)
    with pytest.raises(CorpusError, match=r"seed 1 \(here 2\).*same data settings"):
        data(seed=2).load_state_dict(state)


def test_clear_errors() -> None:
    with pytest.raises(CorpusError, match="use more tokens or smaller batches"):
        WindowData(toy_corpus(), 8, 10_000)
    with pytest.raises(CorpusError, match=r"neighbors for .'dev'.; the corpus has"):
        data(neighbors={"dev": Table()})
    with pytest.raises(CorpusError, match="no split 'dev'"):
        data().evaluation("dev")
    with pytest.raises(IndexError):
        data().training()[10**6]


def test_a_batch_takes_no_time() -> None:
    module = WindowData(toy_corpus(n=3000), 256, 16)
    loader = module.train_dataloader()
    times = []
    for step in range(50):
        began = time.perf_counter()
        loader[step % len(loader)]
        times.append(time.perf_counter() - began)
    assert min(times) < 1e-3, "one batch of 16 x 256 should take a twentieth of a millisecond"
