import json
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch

from benchmarks import algorithms
from benchmarks.algorithms import SYMBOLS, TASKS, errors, examples, train
from experiments.data.copying_tasks import BLANK, DELIMITER, END, SPECIAL
from mann.networks import NTM

VOCAB = SPECIAL + SYMBOLS


def machine(tokens, wrong_symbol=False, end_after=0):
    """A machine that does the task, as well as it is told to: log-probabilities of what it says."""
    log_p = torch.zeros(*tokens.shape, VOCAB)
    for row, text in enumerate(tokens.tolist()):
        length, times = text.index(DELIMITER), text.count(DELIMITER)
        said = text[:length] * times
        if wrong_symbol:
            said[0] = SPECIAL + (said[0] - SPECIAL + 1) % SYMBOLS
        for place, symbol in enumerate(said, start=length + times):
            if place < len(text):
                log_p[row, place, symbol] = 1.0
        end = length + times + len(said) + end_after
        if end < len(text):
            # Likelier than the symbol, which is there too.
            log_p[row, end, END] = 2.0
    return log_p


def test_content_and_end_are_told_apart():
    assert errors(machine, 4, 3, 8) == {"content": 0.0, "end": 0.0}
    assert errors(lambda tokens: machine(tokens, wrong_symbol=True), 4, 3, 8) == {
        "content": round(1 / 12, 5),
        "end": 0.0,
    }
    # Too early, in the middle of the symbols, and never.
    assert errors(lambda tokens: machine(tokens, end_after=-2), 4, 3, 8) == {"content": 0.0, "end": 1.0}
    assert errors(lambda tokens: machine(tokens, end_after=9), 4, 3, 8) == {"content": 0.0, "end": 1.0}
    assert errors(machine, 4, None, 8) == {"content": 0.0}


def test_what_is_asked_is_longer_than_what_is_trained():
    assert TASKS["copy"].asked == [(10, None), (20, None), (40, None)]
    asked = TASKS["repeat-copy"].asked
    assert asked == [(10, 3), (20, 1), (20, 2), (20, 3), (10, 6), (40, 3)]
    tokens, answers = examples(5, np.array([1, 3]), 2, np.random.default_rng(0))
    assert (tokens == DELIMITER).sum(1).tolist() == [1, 3]
    assert (answers >= 0).sum(1).tolist() == [6, 16]
    assert (tokens[answers >= 0] == BLANK).all()


@pytest.mark.parametrize("task", sorted(TASKS))
def test_training_begins_with_short_ones(task):
    torch.manual_seed(0)
    network = NTM(VOCAB, d_model=4, d_hidden=8, n_rows=8)
    before = network.recurrent.weight.detach().clone()
    args = Namespace(rate=1e-3, steps=3, seconds=60.0, batch=2, clip=1.0, polish=10, verbose=False)
    about = train(network, TASKS[task], args, seed=0)
    assert about["steps"] == 3
    assert about["learned_at"] is None
    assert about["reached"] == ([3] if task == "copy" else [2, 1])
    assert not torch.equal(network.recurrent.weight, before)


def test_runs_that_are_there_are_not_made_again(tmp_path, monkeypatch, capsys):
    path = tmp_path / "found.json"
    command = ["algorithms", "--tasks", "copy", "--networks", "NTM", "--steps", "1", "--test", "1", "--seeds"]
    monkeypatch.setattr(sys, "argv", [*command, "0", "--json", str(path)])
    algorithms.main()
    first = json.loads(path.read_text())
    assert capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, "0", "1", "--json", str(path)])
    algorithms.main()
    both = json.loads(path.read_text())
    assert both["runs"][0] == first["runs"][0]
    assert [run["seed"] for run in both["runs"]] == [0, 1]
    monkeypatch.setattr(sys, "argv", [*command, "0", "--batch", "3", "--json", str(path)])
    with pytest.raises(SystemExit):
        algorithms.main()
    assert "other settings" in capsys.readouterr().err
