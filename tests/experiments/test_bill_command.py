"""``mnemograph bill`` of arms, classes, checkpoints and Hugging Face folders."""

import json
import os
import pickle
from pathlib import Path

import lightning
import pytest
import torch
import transformers
from torch import nn

from experiments.arms import ARMS, arm_named
from experiments.cli import main
from experiments.ledger import Ledger, predict
from experiments.run import DEFAULTS
from experiments.step import step_bill
from mann import Transformer

HERE = "tests.experiments.test_bill_command"
ENCODER = ["torch.nn.TransformerEncoderLayer", "--init", "d_model=16", "nhead=4", "dim_feedforward=32"]
SMALL = {"layers": 1, "batch": 2, "time": 32}


class Saved(lightning.LightningModule):
    def __init__(self, width: int, depth: int = 1):
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))

    def training_step(self, batch, batch_idx):
        return self.layers(batch["x"]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Pairs(Saved):
    """A batch is a pair, and there is no forward."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return (self.layers(x) - y).square().mean()


class Layers(nn.Module):
    """Which has no forward."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)


class Stepless(lightning.LightningModule):
    def forward(self, x):
        return x


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.complex64))

    def forward(self, x):
        return x * self.weight


def billed(argv: list[str], capsys: pytest.CaptureFixture) -> dict:
    assert main(["bill", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(argv: list[str], capsys: pytest.CaptureFixture) -> str:
    try:
        code = main(["bill", *argv])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("name", ["ngram", "unigram table"])
def test_an_arm_by_its_name(name: str, capsys: pytest.CaptureFixture) -> None:
    sizes = [f"--{key}={value}" for key, value in SMALL.items()]
    expected = json.loads(json.dumps(step_bill(arm_named(name), 99, 32, SMALL).to_dict()))
    for way in ([name], ["--arm", name]):
        told = billed([*way, *sizes, "--width", "32", "--vocab-size", "99"], capsys)
        assert told.items() >= expected.items()


# Of 0.62, 1.57 and 3.55 steps.
@pytest.mark.parametrize(("batch", "steps"), [(16, 0), (5, 1), (1, 3)])
def test_a_budget_pays_for_whole_steps(batch: int, steps: int, capsys: pytest.CaptureFixture) -> None:
    argv = ["dense", "--width", "512", "--layers", "8", "--time", "512", "--batch", str(batch)]
    price = billed(argv, capsys)["flops"]
    assert 1e12 // price == steps
    assert main(["bill", *argv]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    paid = {
        0: f"no step: one takes {price:,}",
        1: "1 such step, 2,560 tokens",
        3: "3 such steps, 1,536 tokens",
    }
    assert line == f"A budget of 1e12 FLOPs pays for {paid[steps]}."


def test_what_an_arm_costs_to_read(capsys: pytest.CaptureFixture) -> None:
    sizes = [f"--{key}={value}" for key, value in SMALL.items()]
    predicted = billed(["ngram", *sizes, "--width", "32", "--vocab-size", "99", "--read"], capsys)
    network = Transformer(99, 32, SMALL["layers"], **arm_named("ngram").slots(SMALL["layers"], None))
    tokens = torch.ones(SMALL["batch"], SMALL["time"], dtype=torch.int64)
    documents = torch.zeros_like(tokens)
    cast = DEFAULTS["precision"] == "bf16-mixed"
    with torch.no_grad(), Ledger(network) as taken, torch.autocast("cpu", torch.bfloat16, enabled=cast):
        network(tokens, documents)
    assert predicted.items() >= json.loads(json.dumps(taken.to_dict())).items()
    assert set(predicted["by_phase"]) == {"forward"}


def test_a_class_predicted_and_taken(capsys: pytest.CaptureFixture) -> None:
    argv = [*ENCODER, "batch_first=true", "--input", "4x8x16"]
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    with Ledger() as forward, torch.no_grad():
        layer(torch.randn(4, 8, 16))
    assert billed([*argv, "--read"], capsys)["flops"] == forward.flops
    predicted = billed(argv, capsys)
    assert predicted["by_phase"]["forward"]["flops"] == forward.flops
    assert predicted["by_phase"]["backward"]["flops"] > 1.5 * forward.flops
    assert predicted["by_phase"]["optimizer"]["flops"] > 0
    assert billed([*argv, "--device", "cpu"], capsys)["by_operator"].keys() >= {"aten.addmm"}
    assert billed([*argv, "--device", "cpu"], capsys)["flops"] == predicted["flops"]
    assert billed([*argv, "--train"], capsys) == predicted


def test_models_inside_models_are_made_without_memory(capsys: pytest.CaptureFixture) -> None:
    network = (
        "network={class_path: mann.Transformer, init_args: {vocab_size: 50, d_model: 65536, n_layers: 1}}"
    )
    argv = ["mann.LanguageModule", "--init", "total_steps=9", network]
    argv += ["--input", "tokens=int64 1x8 <50", "targets=int64 1x8 <50"]
    assert billed(argv, capsys)["flops"] > 1e15


def test_the_table_says_its_conventions(capsys: pytest.CaptureFixture) -> None:
    argv = [
        "torch.nn.Embedding",
        "--init",
        "num_embeddings=50",
        "embedding_dim=8",
        "--input",
        "int64 2x16 <50",
    ]
    assert main(["bill", *argv]) == 0
    said = capsys.readouterr().out
    assert "One training step of Embedding on int64 2x16 <50." in said
    assert "the forward alone is 0 FLOPs" in said
    assert "A token costs" in said
    assert "in matrix products." in said
    assert "Causal attention" not in said
    assert "Unwatched" not in said
    assert main(["bill", *argv, "--device", "cpu", "--read"]) == 0
    assert "Unwatched, the step takes" in capsys.readouterr().out


def test_attention_is_spoken_of_where_there_is_some(capsys: pytest.CaptureFixture) -> None:
    for argv in (
        [*ENCODER, "batch_first=true", "--input", "4x8x16"],
        ["dense", "--batch", "1", "--layers", "1"],
    ):
        assert main(["bill", *argv]) == 0
        said = capsys.readouterr().out
        assert "in matrix products and attention." in said
        assert "Causal attention counts" in said


def test_operators_of_little_work_share_a_row(capsys: pytest.CaptureFixture) -> None:
    argv = ["graph", "--batch", "1", "--time", "64"]
    assert main(["bill", *argv, "--all"]) == 0
    every = capsys.readouterr().out
    assert main(["bill", *argv]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) + 20 < len(every.splitlines())
    (row,) = [line for line in said.splitlines() if line.startswith("  ... and ")]
    hidden = set(every.splitlines()) - set(said.splitlines())
    assert row.split()[2] == str(len(hidden))
    assert "--all shows each" in said
    assert "... and" not in every
    # JSON is complete.
    assert len(billed(argv, capsys)["by_operator"]) == len(billed([*argv, "--all"], capsys)["by_operator"])


def test_adam_is_the_one_that_arms_are_billed_with(capsys: pytest.CaptureFixture) -> None:
    argv = ["torch.nn.Linear", "--init", "in_features=64", "out_features=64", "--input", "4x64"]
    for more in ([], ["--device", "cpu"]):
        told = billed([*argv, *more], capsys)
        assert "aten._fused_adamw" in told["by_operator"]
        # Parameter, gradient and two moments are read; all but the gradient are written.
        assert told["by_phase"]["optimizer"]["bytes"] == pytest.approx(7 * 4 * (64 * 64 + 64), rel=0.01)
    # A fused one for complex numbers does not exist.
    assert billed([f"{HERE}.Complex", "--input", "2x3"], capsys)["by_phase"]["optimizer"]["flops"] > 0


def test_a_batch_that_is_a_pair(capsys: pytest.CaptureFixture) -> None:
    argv = [f"{HERE}.Pairs", "--init", "width=6", "--input"]
    assert billed([*argv, "2x6", "2x6"], capsys)["flops"] > 0
    assert "written --input 32x64 32x1, a shape for each part" in refused([*argv, "4x6"], capsys)


def test_a_file_that_is_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one.txt", "mine.py", "weights.pt"):
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "texts").mkdir()
    assert "one.txt is no model: give an arm, a class" in refused(["one.txt"], capsys)
    assert "a class in it is written mine.Model" in refused(["mine.py"], capsys)
    assert "tells shapes of weights" in refused(["weights.pt"], capsys)
    assert "texts is no model: a folder of Hugging Face has a config.json" in refused(["texts"], capsys)


def test_json_says_what_was_billed_and_how(capsys: pytest.CaptureFixture) -> None:
    told = billed([*ENCODER, "batch_first=true", "--input", "4x8x16", "--read", "--device", "cpu"], capsys)
    about = told["about"]
    assert (about["step"], about["device"], about["input"]) == ("read", "cpu", "4x8x16")
    assert "pairs that live" in about["attention"]
    assert told["machine"]["seconds"] > 0
    assert "machine" not in billed(["knn", "--read"], capsys)


def reading(model: str, own: str) -> list[str]:
    """A small decoder of Hugging Face, with one option of its own."""
    sizes = ["hidden_size=32", "intermediate_size=48", "vocab_size=64", "num_hidden_layers=1"]
    heads = ["num_attention_heads=2", "num_key_value_heads=2"]
    return [
        f"transformers.{model}",
        "--init",
        *sizes,
        *heads,
        own,
        *["--batch", "2", "--time", "24", "--read"],
    ]


def test_masks_without_values_are_an_upper_bound_and_said_to_be(capsys: pytest.CaptureFixture) -> None:
    argv = reading("MistralForCausalLM", "sliding_window=4")
    predicted, taken = billed(argv, capsys), billed([*argv, "--device", "cpu"], capsys)
    assert predicted["upper_bound"]
    assert not taken["upper_bound"]
    assert predicted["flops"] > taken["flops"]
    assert main(["bill", *argv]) == 0
    assert "This bill is an upper bound" in capsys.readouterr().out


def test_experts_say_that_they_cannot_be_predicted(capsys: pytest.CaptureFixture) -> None:
    argv = reading("MixtralForCausalLM", "num_local_experts=4")
    assert "add --device cpu" in refused(argv, capsys)
    assert billed([*argv, "--device", "cpu"], capsys)["flops"] > 0


def test_graph_layers_whose_work_is_in_the_values(capsys: pytest.CaptureFixture) -> None:
    sizes = ["--init", "in_channels=8", "out_channels=4", "--input", "20x8", "int64 2x60 <20"]
    assert billed(["torch_geometric.nn.SAGEConv", *sizes], capsys)["flops"] > 0
    assert "add --device cpu" in refused(["torch_geometric.nn.GATConv", *sizes], capsys)
    assert billed(["torch_geometric.nn.GATConv", *sizes, "--device", "cpu"], capsys)["flops"] > 0


def test_a_checkpoint_of_lightning(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "last.ckpt"
    trainer = lightning.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.strategy.connect(Saved(6, depth=3))
    trainer.save_checkpoint(path)
    named = ["--class", "tests.experiments.test_bill_command.Saved"]
    expected = predict(lambda: Saved(6, 3), {"x": torch.zeros(2, 6)})
    assert billed([str(path), *named, "--input", "x=2x6"], capsys)["flops"] == expected.flops
    wider = predict(lambda: Saved(8, 3), {"x": torch.zeros(2, 8)})
    changed = billed([str(path), *named, "--init", "width=8", "--input", "x=2x8"], capsys)
    assert changed["flops"] == wider.flops
    assert "type --class" in refused([str(path)], capsys)


def test_a_checkpoint_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "bad.ckpt"
    torch.save({"hyper_parameters": {"width": Bomb()}}, path)
    pickle.loads(pickle.dumps(Bomb()))
    (tmp_path / "ran").rmdir()  # so it would
    argv = [str(path), "--class", "tests.experiments.test_bill_command.Saved", "--input", "x=2x6"]
    assert "without running code" in refused(argv, capsys)
    assert not (tmp_path / "ran").exists()


def test_a_folder_of_hugging_face(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 60}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).save_pretrained(tmp_path)
    argv = [f"--init={key}={value}" for key, value in shape.items()]
    argv = ["transformers.GPT2LMHeadModel", "--init", *(item.removeprefix("--init=") for item in argv)]
    sizes = ["--batch", "2", "--time", "24"]
    by_class = billed([*argv, *sizes], capsys)
    assert by_class["flops"] > 0
    for place in (tmp_path, tmp_path / "model.safetensors"):
        assert billed([str(place), *sizes], capsys) == by_class
    assert billed([str(tmp_path), *sizes, "--read"], capsys)["by_phase"].keys() == {"forward"}
    monkeypatch.chdir(tmp_path.parent)
    assert billed([tmp_path.name, *sizes], capsys)["flops"] == by_class["flops"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], ", ".join(ARMS)),
        (["ngramm"], "did you mean 'ngram'"),
        (["ngram", "--arm", "graph"], "give one of them"),
        (["ngram", "--init", "a=1"], "--init is for models that are no arms"),
        (["ngram", "--width", "0"], "--width 0 is too small"),
        (["torch.nn.LSTMM"], "did you mean 'LSTM'"),
        (["torch.nm.LSTM"], "no module 'torch.nm'"),
        (["os.path.join"], "has no model 'join'"),
        ([*ENCODER, "--width", "3"], "--width is for arms"),
        ([*ENCODER], "--input 4x128x64"),
        ([*ENCODER, "d_modl=3", "--input", "2x3x16"], "takes no 'd_modl': did you mean 'd_model'"),
        (["torch.nn.LSTM", "--init", "hiden_size=8"], "did you mean 'hidden_size'"),
        ([*ENCODER[:3], "--input", "2x3x16"], "needs nhead: add --init nhead=..."),
        ([ENCODER[0], "--init", "d_model", "nhead=2"], "--init 'd_model' has no value"),
        ([ENCODER[0], "--init", "d_model=wide", "nhead=2"], "d_model"),
        ([ENCODER[0], "--init", "d_model=16", "nhead=3", "--input", "2x3x16"], "cannot be made of"),
        ([*ENCODER, "--input", "4 by 8"], "write 4x128x64"),
        ([*ENCODER, "--input", "a=4x8", "4x8"], "give every --input a name"),
        ([*ENCODER, "--input", "4x8x17"], "fails on this --input"),
        ([*ENCODER, "--input", "0x8x16"], "--input '0x8x16' is empty"),
        ([f"{HERE}.Layers", "--input", "2x3"], "Layers has no forward"),
        ([f"{HERE}.Layers", "--input", "2x3", "--read"], "Layers has no forward"),
        (["torch.nn.ReLU", "--input", "2x3"], "ReLU has no parameters to train: add --read"),
        ([f"{HERE}.Pairs", "--init", "width=6", "--input", "2x6", "--read"], "leave --read out"),
        ([f"{HERE}.Stepless", "--input", "2x3"], "has no training_step: give the class one, or add --read"),
        (["graph", "--device", "cpu"], "--device is for models that are no arms"),
        (["nowhere.ckpt"], "there is no file nowhere.ckpt"),
        (["nowhere.safetensors"], "tells shapes of weights"),
    ],
)
def test_mistakes_say_what_to_type(argv: list[str], says: str, capsys: pytest.CaptureFixture) -> None:
    assert says in refused(argv, capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture) -> None:
    argv = [*ENCODER, "--input", "4x8x16", "--device", "cuda"]
    assert "torch sees no CUDA device here; leave it out, or type --device cpu" in refused(argv, capsys)


def test_the_cost_of_what_no_memory_holds(capsys: pytest.CaptureFixture) -> None:
    # Seventy billion parameters.
    argv = ["transformers.LlamaForCausalLM", "--init", "hidden_size=8192", "intermediate_size=28672"]
    argv += ["num_hidden_layers=80", "num_attention_heads=64", "num_key_value_heads=8"]
    told = billed([*argv, "--read", "--batch", "1", "--time", "16"], capsys)
    assert 60e9 < told["flops"] / 16 / 2 < 75e9
