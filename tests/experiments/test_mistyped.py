"""Mistakes in the options of ``mnemograph fit``: the reason alone, and the name that was meant."""

import pytest

from experiments.cli import main
from experiments.mistyped import reason

BUDGET = "--trainer.callbacks+=FlopBudget"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--data.batch_sizee=3"], "--data.batch_sizee=3: did you mean --data.batch_size?"),
        (["--modle.rates=3"], "did you mean --model.rates?"),
        (["d_modl=3"], "did you mean --model.network.d_model?"),
        (["--qqqqqq=3"], "unrecognized arguments: --qqqqqq=3 (see"),
        (["--model.network.n_layer=1"], "Option 'n_layer' is not accepted: did you mean 'n_layers'?"),
        (["--data.source=TextCorpus", "--data.source.pth=x"], "did you mean 'path'?"),
        (["--data.batch_size=x"], "data.batch_size: expected int, got: x"),
        ([BUDGET, "--trainer.callbacks.max_flop=3"], "did you mean 'max_flops'?"),
        ([BUDGET], "experiments.ledger.FlopBudget: the following arguments are required: max_flops"),
        (["--trainer.callbacks+=FlopBudgett"], "trainer.callbacks: there is no class FlopBudgett here"),
        (["--model.network=mann.Foo"], "model.network: mann.Foo: module 'mann' has no attribute 'Foo'"),
        (
            ["--model.network.memory={0: {class_path: mann.NGramMemory, init_args: {n_rowz: 256}}}"],
            "mann.Transformer: memory: Option 'n_rowz' is not accepted: did you mean 'n_rows'?",
        ),
    ],
)
def test_an_option_is_named_with_the_one_that_was_meant(argv, says, capsys):
    assert main(["fit", *argv]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mnemograph")]
    assert says in line
    assert line.count("did you mean") <= 1
    assert line.endswith(" (see mnemograph fit --help)")
    assert not any(noise in line for noise in ("Subtypes", "NoneType", "Given value"))


def test_what_a_constructor_refuses_is_all_that_is_said(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", BUDGET, "--trainer.callbacks.max_flops=0"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "mnemograph fit: max_flops is 0.0: give what training may spend, such as max_flops=1e13"


def test_an_error_of_another_form_stays_as_it_is():
    assert reason("one\n  two") == "one two"
    everything = "Does not validate\nErrors:\n  - Expected a <class 'NoneType'>\nGiven value: 3"
    assert reason(everything) == "Does not validate Expected a <class 'NoneType'>"
