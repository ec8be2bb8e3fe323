"""Samplers: in order, by chance, by what was learned; always the same for the same trials before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.sweep.config import Sweep, read_sweep
from experiments.sweep.sampler import Sampler
from experiments.sweep.trial import FAILED, FINISHED, Place, State, Trial


def sweep_of(tmp_path: Path, method: str, parameters: dict[str, Any], **metric: Any) -> Sweep:
    path = tmp_path / "sweep.yaml"
    content = {"method": method, "parameters": parameters, "metric": {"name": "loss", **metric}}
    path.write_text(yaml.safe_dump({**content, "command": ["true"]}))
    return read_sweep(path)


def trial(number: int, place: Place, value: float | None, state: State = FINISHED) -> Trial:
    return Trial(number, {}, state, value, 1, 1.0, f"r{number}", place)


MIXED = {
    "x": {"distribution": "log_uniform_values", "min": 0.01, "max": 100.0},
    "kind": {"values": ["a", "b", "c"]},
    "layers": {"min": 1, "max": 5},
    "fixed": {"value": 3},
}


def cost(params: dict[str, Any]) -> float:
    return abs(params["x"] - 2) + (params["kind"] != "b") + abs(params["layers"] - 4)


def search(sampler: Sampler, n_trials: int, trials: list[Trial] | None = None) -> list[Trial]:
    done = list(trials or [])
    for number in range(len(done), n_trials):
        place = sampler.place(number, done)
        done.append(trial(number, place, cost(sampler.params(place))))
    return done


def test_a_grid_is_the_product_in_the_order_of_names_the_last_the_fastest(tmp_path: Path) -> None:
    nested = {"b": {"parameters": {"d": {"values": ["p", "q"]}, "c": {"value": 0}}}}
    sampler = Sampler(sweep_of(tmp_path, "grid", {**nested, "a": {"min": 1, "max": 3}}), 0)
    assert sampler.size == 6
    assert [sampler.params(sampler.place(number, [])) for number in range(6)] == [
        {"a": a, "b": {"c": 0, "d": d}} for a in (1, 2, 3) for d in ("p", "q")
    ]


def test_chance_depends_on_the_seed_and_the_number_alone(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "random", MIXED)
    places = [Sampler(sweep, 0).place(number, []) for number in range(20)]
    again = Sampler(sweep, 0)
    assert [again.place(number, search(again, 3)) for number in (7, 3)] == [places[7], places[3]]
    assert len({json.dumps(place) for place in places}) == 20
    assert Sampler(sweep, 1).place(7, []) != places[7]


def test_bayes_goes_on_from_what_was_written_exactly(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "bayes", MIXED)
    whole = search(Sampler(sweep, 0), 16)
    written = [Trial.of(json.loads(json.dumps(one.row()))) for one in whole[:12]]
    # One that is repeated is what it was, though later ones have ended.
    assert Sampler(sweep, 0).place(12, [*whole[:12], *whole[13:]]) == whole[12].place
    # In whatever order they ended.
    assert search(Sampler(sweep, 0), 16, written[::-1])[12:] == whole[12:]


def test_bayes_learns(tmp_path: Path) -> None:
    def best(method: str, seed: int) -> float:
        sampler = Sampler(sweep_of(tmp_path, method, MIXED), seed)
        return min(one.value or 0.0 for one in search(sampler, 40))

    chance, learned = (sorted(best(method, seed) for seed in range(3)) for method in ("random", "bayes"))
    assert learned[1] < chance[1]


def test_bayes_follows_the_goal(tmp_path: Path) -> None:
    parameters = {"x": {"min": 0.0, "max": 1.0}}

    def proposed(goal: str) -> float:
        sampler = Sampler(sweep_of(tmp_path, "bayes", parameters, goal=goal), 0)
        done = [trial(number, {"x": number / 20}, number / 20) for number in range(20)]
        return sum(sampler.params(sampler.place(number, done))["x"] for number in range(20, 25)) / 5

    assert proposed("minimize") < 0.3 < 0.7 < proposed("maximize")


def test_bayes_takes_a_failure_for_what_the_file_says(tmp_path: Path) -> None:
    parameters = {"x": {"min": 0.0, "max": 1.0}}
    done = [trial(number, {"x": number / 20}, 1.0) for number in range(10)]
    done += [trial(number, {"x": number / 20}, None, FAILED) for number in range(10, 20)]
    done[0] = trial(0, {"x": 0.0}, 0.0)
    done[1] = trial(1, {"x": 0.05}, 5.0)

    def proposed(impute: str) -> list[float]:
        sampler = Sampler(sweep_of(tmp_path, "bayes", parameters, impute=impute), 0)
        return [sampler.params(sampler.place(number, done))["x"] for number in range(20, 30)]

    assert sum(proposed("worst")) < sum(proposed("best"))


def test_bayes_keeps_away_from_where_a_trial_is_running(tmp_path: Path) -> None:
    sampler = Sampler(sweep_of(tmp_path, "bayes", {"x": {"min": 0.0, "max": 1.0}}), 0)
    done = [trial(number, {"x": number / 12}, abs(number / 12 - 0.5)) for number in range(12)]
    alone = sampler.place(12, done)
    assert sampler.place(12, done, [alone]) != alone


def test_a_grid_without_end_is_refused(tmp_path: Path) -> None:
    many = {name: {"min": 1, "max": 1000} for name in "abc"}
    with pytest.raises(ValueError, match="1000000000 combinations"):
        Sampler(sweep_of(tmp_path, "grid", many), 0)
