"""``mnemograph fit``: a run can be made again from what it wrote."""

from __future__ import annotations

import csv
import math
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from experiments.cli import main
from experiments.data import TextCorpus
from experiments.evaluation import Evaluation, evaluate
from experiments.fitting import FitCommand

ROOT = Path(__file__).parents[2]
QUIET = ["--trainer.enable_progress_bar=false"]
SIZES = [
    "--data.n_tokens=4000",
    "--data.length=32",
    "--model.network.d_model=32",
    "--model.network.n_layers=1",
]


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A text, and what makes a run on it short; runs go where the test stands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdef", k=draw.randint(2, 6))) for _ in range(200)]
    text = "\n\n".join(" ".join(draw.choices(words, k=40)) for _ in range(100))
    (tmp_path / "text.txt").write_text(text)
    data = ["--data.source=TextCorpus", "--data.source.path=text.txt", "--data.source.vocab_size=257"]
    seed = os.environ.pop("PL_GLOBAL_SEED", None)
    yield [*data, "--data.source.cache=cache", *SIZES, *QUIET]
    os.environ.pop("PL_GLOBAL_SEED", None)
    if seed is not None:
        os.environ["PL_GLOBAL_SEED"] = seed


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("checkpoints/*.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_run_from_the_configuration_of_another_is_the_same(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    memory = "--model.network.memory={0: {class_path: mann.NGramMemory, init_args: {n_rows: 256}}}"
    logger = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"]
    assert main(["fit", *options, memory, *logger]) == 0
    first, second, other = (tmp_path / "runs" / "fit" / name for name in ("000", "001", "002"))
    assert "fit --config runs/fit/000/config.yaml" in capsys.readouterr().out
    assert yaml.safe_load((first / "config.yaml").read_text())["seed_everything"] == 0
    torch.manual_seed(7)
    assert main(["fit", "--config", "runs/fit/000/config.yaml"]) == 0
    assert main(["fit", "--config", "runs/fit/000/config.yaml", "--seed_everything=1"]) == 0
    logs = [tmp_path / "logs" / "lightning_logs" / f"version_{number}" for number in range(3)]
    ours, again, others = ((log / "metrics.csv").read_text() for log in logs)
    assert "valid/bits_per_byte" in ours.splitlines()[0]
    assert ours == again != others
    assert (first / "config.yaml").read_text() == (second / "config.yaml").read_text()
    assert (first / "config.yaml").read_text() != (other / "config.yaml").read_text()


def test_weights_are_the_same_to_the_last_bit(options: list[str], tmp_path: Path) -> None:
    assert main(["fit", *options]) == 0
    assert main(["fit", "--config", "runs/fit/000/config.yaml"]) == 0
    first, second = (weights(tmp_path / "runs" / "fit" / name) for name in ("000", "001"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_printed_configuration_is_one_to_run(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", *options, "--print_config"])
    assert ended.value.code in (0, None)
    printed = capsys.readouterr().out
    (tmp_path / "base.yaml").write_text(printed)
    assert not (tmp_path / "runs").exists()
    assert main(["fit", "--config", "base.yaml", "--trainer.enable_checkpointing=false"]) == 0
    written = yaml.safe_load((tmp_path / "runs" / "fit" / "000" / "config.yaml").read_text())
    assert written["trainer"].pop("enable_checkpointing") is False
    expected = yaml.safe_load(printed)
    expected["trainer"].pop("enable_checkpointing")
    assert written == expected


def test_a_folder_holds_one_run(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    own = ["--trainer.default_root_dir=mine", "--trainer.enable_checkpointing=false"]
    assert main(["fit", *options, *own]) == 0
    kept = (tmp_path / "mine" / "config.yaml").read_text()
    assert main(["fit", *options, *own, "--seed_everything=1"]) == 2
    assert "mine holds the run of its config.yaml: give another" in capsys.readouterr().err
    assert (tmp_path / "mine" / "config.yaml").read_text() == kept
    assert not (tmp_path / "runs").exists()
    # The command that the first run printed.
    assert main(["fit", "--config", "mine/config.yaml"]) == 0
    assert (tmp_path / "runs" / "fit" / "000" / "config.yaml").read_text() == kept


def test_a_run_that_does_not_begin_leaves_no_folder(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["fit", *options, "--data.source.path=nowhere.txt"]) == 2
    assert "nowhere.txt does not exist" in capsys.readouterr().err
    assert main(["fit", *options, "--model.rates.tabel=0.1"]) == 2
    assert "model.rates: tabel is none of matrix, embedding" in capsys.readouterr().err
    assert main(["fit", *options, "--model.network.init_args.d_model=0"]) == 2
    assert "d_model=0 must both be at least 1" in capsys.readouterr().err
    assert not list(tmp_path.rglob("fit"))


def test_validation_is_what_the_comparison_measures(options: list[str]) -> None:
    command = FitCommand([*options, "--trainer.enable_checkpointing=false"], prog="fit")
    command.trainer.fit(command.model, command.datamodule)
    found = {name: float(value) for name, value in command.trainer.callback_metrics.items()}
    corpus = TextCorpus("text.txt", vocab_size=257, cache="cache").load()
    evaluation = Evaluation.of(corpus, corpus.splits["valid"], 32, 262_144)
    truth = evaluate(command.model.network, evaluation, autocast=False).summary()
    assert {name: found[f"valid/{name}"] for name in truth} == pytest.approx(truth, rel=1e-5)
    assert math.isfinite(found["train/nats_per_token"])


def test_every_validation_goes_over_the_whole_split(options: list[str], tmp_path: Path) -> None:
    logger = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"]
    often = ["--trainer.val_check_interval=8", "--data.evaluation_batch_size=4"]
    assert main(["fit", *options, *logger, *often, "--trainer.enable_checkpointing=false"]) == 0
    with (tmp_path / "logs" / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        # The last row is that of the training loss.
        values = [float(row["valid/bits_per_byte"]) for row in list(csv.DictReader(file))[:-1]]
    assert len(values) == 4
    assert min(values) > 1


def test_a_budget_of_flops_ends_the_training(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    budget = ["--trainer.callbacks+=FlopBudget", "--trainer.callbacks.max_flops=1e8"]
    assert main(["fit", *options, *budget]) == 0
    found = re.search(r"^([\d,]+) FLOPs$", capsys.readouterr().out, re.MULTILINE)
    assert found is not None
    spent = int(found[1].replace(",", ""))
    (path,) = (tmp_path / "runs" / "fit" / "000").glob("checkpoints/*.ckpt")
    saved = torch.load(path, weights_only=True)
    steps = saved["global_step"]
    assert 1 < steps < 4000 // (4 * 32)
    assert spent <= 1e8 < spent * (steps + 1) / steps
    # It is the bill that is printed: nobody counts a second time.
    assert "FlopBudget" in saved["callbacks"]
    assert "LedgerCallback" not in saved["callbacks"]
    assert main(["fit", "--config", "runs/fit/000/config.yaml"]) == 0
    assert f"\n{found[0]}\n" in capsys.readouterr().out


def test_a_budget_below_one_step_says_what_one_takes(
    options: list[str], capsys: pytest.CaptureFixture
) -> None:
    budget = ["--trainer.callbacks+=FlopBudget", "--trainer.callbacks.max_flops=1"]
    assert main(["fit", *options, *budget]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"^mnemograph fit: a budget of 1 FLOPs .* One takes [\d,]+ FLOPs: give at least", said)


def test_what_a_budget_below_one_step_says_can_be_obeyed_in_the_same_folder(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "mine"
    own = [*options, "--trainer.default_root_dir=mine", "--trainer.enable_checkpointing=false"]
    budget = [*own, "--trainer.callbacks+=FlopBudget"]
    assert main(["fit", *budget, "--trainer.callbacks.max_flops=1"]) == 2
    asked = re.search(r"give at least max_flops=(\S+)", capsys.readouterr().err)
    assert asked is not None
    assert not (folder / "config.yaml").exists()
    assert main(["fit", *budget, f"--trainer.callbacks.max_flops={asked[1]}"]) == 0
    kept = (folder / "config.yaml").read_text()
    assert asked[1] in kept or f"max_flops: {float(asked[1])}" in kept
    # A run that stands there is nobody's to take away.
    assert main(["fit", *budget, "--trainer.callbacks.max_flops=1"]) == 2
    assert "mine holds the run of its config.yaml" in capsys.readouterr().err
    assert (folder / "config.yaml").read_text() == kept


def test_a_budget_below_one_step_uses_up_no_number(options: list[str], tmp_path: Path) -> None:
    budget = ["--trainer.callbacks+=FlopBudget", "--trainer.callbacks.max_flops=1"]
    assert main(["fit", *options, *budget]) == 2
    assert not list(tmp_path.rglob("fit"))


def test_a_run_that_fails_after_a_step_keeps_its_configuration(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    stopping = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=nowhere"]
    assert main(["fit", *options, *stopping, "--trainer.enable_checkpointing=false"]) != 0
    assert "`nowhere` which is not available" in capsys.readouterr().err
    assert (tmp_path / "runs" / "fit" / "000" / "config.yaml").exists()


def test_help_names_what_is_computed(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    said = capsys.readouterr().out
    assert "steps_of_training(data) --> model.total_steps" in said
    assert "lambda" not in said


@pytest.mark.slow
def test_a_sweep_over_fit_needs_no_more_than_a_file(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    base = [*options, "--trainer.enable_checkpointing=false", "--trainer.logger=WandbLogger"]
    content = {
        "command": ["${env}", "${interpreter}", "-m", "experiments", "fit", *base, "${args}"],
        "method": "grid",
        "metric": {"name": "valid/bits_per_byte"},
        "parameters": {
            "model.rates.matrix": {"values": [0.01, 1.0e-6]},
            "model.network.memory": {"values": [{0: {"class_path": "mann.NGramMemory"}}]},
        },
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    assert main(["sweep", "sweep.yaml", "--offline", "--out", "out"]) == 0
    table = capsys.readouterr().out.split("trial")[2].splitlines()
    assert [line.split()[0] for line in table[2:4]] == ["0", "1"]
    # What each trial was is beside it, to be run again.
    configs = [
        yaml.safe_load(path.read_text()) for path in sorted(tmp_path.rglob("out/**/fit/*/config.yaml"))
    ]
    assert [config["model"]["rates"] for config in configs] == [{"matrix": 0.01}, {"matrix": 1e-6}]
    assert all("NGramMemory" in str(config["model"]["network"]["init_args"]["memory"]) for config in configs)
    assert not (tmp_path / "wandb").exists()
