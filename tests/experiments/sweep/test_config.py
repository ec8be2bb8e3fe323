"""Sweep files: what W&B takes is read, what it would not take is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.errors import RunError
from experiments.sweep.config import EarlyTerminate, Metric, read_sweep

EXAMPLES = sorted((Path(__file__).parents[3] / "experiments" / "sweeps").glob("*.yaml"))
GOOD: dict[str, Any] = {
    "command": ["${env}", "python", "-m", "mine", "${args}"],
    "method": "random",
    "parameters": {"x": {"min": 0.0, "max": 1.0}},
}


def read(tmp_path: Path, **changes: Any) -> Any:
    path = tmp_path / "sweep.yaml"
    kept = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(kept))
    return read_sweep(path)


@pytest.mark.parametrize(
    "path", [path for path in EXAMPLES if path.stem != "base"], ids=lambda path: path.stem
)
def test_the_examples_are_sweep_files(path: Path) -> None:
    sweep = read_sweep(path)
    assert sweep.metric is not None
    assert sweep.metric.name == "valid/bits_per_byte"


def test_what_is_not_said_is_as_w_and_b_has_it(tmp_path: Path) -> None:
    metric = {"name": "loss"}
    early = {"type": "hyperband", "min_iter": 3}
    sweep = read(tmp_path, metric=metric, early_terminate=early, run_cap=7, description="why not")
    assert sweep.metric == Metric("loss", "minimize", None, "worst")
    assert sweep.early_terminate == EarlyTerminate(min_iter=3, eta=3, strict=True)
    assert (sweep.name, sweep.run_cap) == ("sweep", 7)
    entries = {
        "a": {"value": 1},
        "b": {"values": [1, 2]},
        "c": {"values": [1, 2], "probabilities": [0.5, 0.5]},
        "d": {"min": 1, "max": 2},
        "e": {"min": 1, "max": 2.5},
        "f": {"parameters": {"g": {"distribution": "q_normal"}}},
    }
    read_ = read(tmp_path, parameters=entries).parameters
    assert {one.name: one.distribution for one in read_} == {
        "a": "constant",
        "b": "categorical",
        "c": "categorical_w_probabilities",
        "d": "int_uniform",
        "e": "uniform",
        "f.g": "q_normal",
    }
    assert dict(read_[-1].options) == {"mu": 0.0, "sigma": 1.0, "q": 1.0}


def x(**entry: Any) -> dict[str, Any]:
    return {"parameters": {"x": entry}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methd": "grid"}, "methd: is no key; allowed are .*did you mean 'method'"),
        ({"method": None}, "method: is missing: one of grid, random, bayes"),
        ({"method": "baies"}, "method: 'baies' is none of .*did you mean 'bayes'"),
        ({"method": "bayes"}, "metric: is missing: method: bayes needs metric.name"),
        ({"scheduler": {"engine": "ax"}}, "scheduler: needs W&B's servers"),
        ({"parameters": None}, "parameters: is missing"),
        ({"parameters": {"x": 3}}, "parameters.x must be keys and values"),
        ({"parameters": {"0x": {"value": 3}}}, "parameters.0x: a name begins with"),
        (x(), "parameters.x must be keys and values"),
        (x(min=1), "parameters.x: says no values"),
        (x(min=2, max=1), "parameters.x: min 2 is not below max 1"),
        (x(min=1, max="1e-3x"), "parameters.x.max: must be a number, not '1e-3x'"),
        (x(min=0, max=1, distribution="log_uniform_values"), "parameters.x.min: must be above 0"),
        (x(min=1, max=4096, distribution="log_uniform"), "you mean log_uniform_values"),
        (x(min=0.5, max=1, distribution="int_uniform"), "int_uniform needs whole numbers"),
        (x(min=1, max=2, distribution="unifrom"), "x.distribution: 'unifrom' .*did you mean 'uniform'"),
        (
            x(min=1, max=2, q=1, distribution="uniform"),
            "parameters.x.q: is no key of uniform; allowed are min",
        ),
        (x(min=1, max=2, q=0, distribution="q_uniform"), "parameters.x.q: must be above 0"),
        (x(sigma=-1, distribution="normal"), "parameters.x.sigma: must not be below 0"),
        (x(min=1, distribution="uniform"), "parameters.x.max: is missing: uniform needs min and max"),
        (x(values=[]), "parameters.x.values: must be a list of at least one"),
        (x(values=[1, 2], probabilities=[1]), "parameters.x.probabilities: must be a list of 2 numbers"),
        (x(values=[1, 2], probabilities=[1, 1]), "parameters.x.probabilities: must add up to 1, not to 2"),
        ({"parameters": {"o": {"parameters": {"x": {"min": 2, "max": 1}}}}}, "o.parameters.x: min 2"),
        ({"method": "grid"}, "parameters.x: uniform has no end"),
        ({"metric": {"goal": "minimize"}}, "metric.name: is missing"),
        ({"metric": {"name": "l", "goal": "minimise"}}, "metric.goal: .*did you mean 'minimize'"),
        ({"metric": {"name": "l", "target": "low"}}, "metric.target: must be a number"),
        ({"run_cap": 0}, "run_cap: must be a whole number from 1 on, not 0"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1}}, "metric: is missing: early_terminate"),
        ({"early_terminate": {"min_iter": 1}}, "early_terminate.type: is missing"),
        ({"early_terminate": {"type": "hyperband", "max_iter": 9}}, "needs min_iter, or max_iter and s"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 1}}, "eta: must be above 1"),
        ({"early_terminate": {"type": "hyperband", "max_iter": 2, "s": 1}}, "leaves no stop"),
        ({"command": ["${program}"]}, "program: is missing"),
        ({"program": "nowhere.py"}, "program: there is no file nowhere.py"),
        ({"command": ["true", "${arg}"]}, r"command: \$\{arg\} is none of .*did you mean 'args'"),
        (
            {"parameters": {"a.b": {"value": 1}, "a": {"parameters": {"b": {"value": 2}}}}},
            "parameters.a.b: is there twice",
        ),
        ({"command": "python mine.py"}, "command: must be a list of words"),
    ],
)
def test_a_bad_file_is_refused_by_name(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=says) as told:
        read(tmp_path, **changes)
    assert "\n" not in str(told.value)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no file"):
        read_sweep(tmp_path / "sweep.yaml")
    path = tmp_path / "broken.yaml"
    path.write_text("parameters: {x: [")
    with pytest.raises(RunError, match="is no YAML"):
        read_sweep(path)
    path.write_text("- a\n- b\n")
    with pytest.raises(RunError, match="the file must be keys and values"):
        read_sweep(path)
    path.write_text("method: random\nparameters: {x: {min: 1e-3, max: 1}}\n")
    with pytest.raises(RunError, match=r"write 1.0e-3"):
        read_sweep(path)
