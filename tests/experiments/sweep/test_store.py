"""The folder of a sweep: nothing that ended is lost, nothing of another sweep is mixed in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.errors import ResultsError
from experiments.sweep.config import Sweep, read_sweep
from experiments.sweep.store import Store
from experiments.sweep.trial import FAILED, FINISHED, STOPPED, State, Trial, ranked


def sweep_of(tmp_path: Path, **changes: Any) -> Sweep:
    path = tmp_path / "sweep.yaml"
    content = {"method": "random", "parameters": {"x": {"min": 1, "max": 9}}, "command": ["true"], **changes}
    path.write_text(yaml.safe_dump(content))
    return read_sweep(path)


def trial(number: int, value: float | None = 1.0, state: State = FINISHED) -> Trial:
    return Trial(number, {"x": 1}, state, value, 3, 0.5, f"r-{number}", {"x": 0.1}, {2: 0.5}, "")


def filled(out: Path, sweep: Sweep) -> list[Trial]:
    trials = [trial(0), trial(2, state=STOPPED), trial(1, None, FAILED)]
    with Store(out, sweep, 0) as store:
        for one in trials:
            store.append(one)
    return trials


def test_what_ended_is_there_again_and_so_are_the_ids(tmp_path: Path) -> None:
    sweep, out = sweep_of(tmp_path), tmp_path / "out"
    trials = filled(out, sweep)
    with Store(out, sweep, 0) as again, Store(tmp_path / "other", sweep, 0) as other:
        assert again.trials == trials
        assert again.run(3) != other.run(3)
        first = again.run(3)
    with Store(out, sweep, 0) as again:
        assert again.run(3) == first


def test_a_line_that_was_cut_off_is_repeated_and_the_next_stands_alone(tmp_path: Path) -> None:
    sweep, out = sweep_of(tmp_path), tmp_path / "out"
    trials = filled(out, sweep)
    path = out / "trials.jsonl"
    whole = path.read_bytes()
    for cut in (5, len(whole.splitlines()[-1]) - 1):
        path.write_bytes(whole[: -cut - 1])
        with Store(out, sweep, 0) as store:
            assert store.trials == trials[:2]
            assert "cut off" in store.notes[0]
            store.append(trial(7))
        with Store(out, sweep, 0) as store:
            assert store.trials == [*trials[:2], trial(7)]
    path.write_text('{"number": 1}\n' + whole.decode())
    with (
        pytest.raises(ResultsError, match=r"line 1 of .* is no trial: delete that line"),
        Store(out, sweep, 0),
    ):
        pass


def test_another_sweep_is_refused_and_set_aside_when_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    trials = filled(out, sweep_of(tmp_path))
    with Store(out, sweep_of(tmp_path, name="renamed", run_cap=9), 0) as store:
        assert store.trials == trials
    for changes, seed, what in (
        ({"parameters": {"x": {"min": 1, "max": 8}}}, 0, "parameters"),
        ({"metric": {"name": "loss"}}, 0, "metric"),
        ({}, 1, "seed"),
    ):
        with (
            pytest.raises(ResultsError, match=f"begun with another {what}: .*--fresh"),
            Store(out, sweep_of(tmp_path, **changes), seed),
        ):
            pass
    with Store(out, sweep_of(tmp_path, method="grid"), 0, fresh=True) as store:
        assert store.trials == []
        assert "earlier-1" in store.notes[0]
    kept = (out / "earlier-1" / "trials.jsonl").read_text().splitlines()
    assert [Trial.of(json.loads(line)) for line in kept] == trials


def test_a_file_the_command_names_may_not_change_unnoticed(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("a: 1")
    sweep, out = sweep_of(tmp_path, command=["true", str(base)]), tmp_path / "out"
    filled(out, sweep)
    base.write_text("a: 2")
    with pytest.raises(ResultsError, match=r"base.yaml changed since .*--allow-mixed"), Store(out, sweep, 0):
        pass
    with Store(out, sweep, 0, mixed=True) as store:
        assert len(store.trials) == 3


def test_data_and_variables_the_command_names_may_not_change_unnoticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (texts := tmp_path / "texts").mkdir()
    (texts / "a.txt").write_text("one")
    base = tmp_path / "base.yaml"
    base.write_text("a: 1")
    monkeypatch.setenv("TEXTS", str(texts))
    command = ["true", f"--config={base}", "--data=${envvar:TEXTS}", "${args}"]
    sweep, out = sweep_of(tmp_path, command=command), tmp_path / "out"
    filled(out, sweep)

    def refused() -> str:
        with pytest.raises(ResultsError) as told, Store(out, sweep, 0):
            pass
        return str(told.value)

    (texts / "a.txt").write_text("two")
    assert f"{texts} changed" in refused()
    (texts / "a.txt").write_text("one")
    base.write_text("a: 2")
    assert "base.yaml changed" in refused()
    base.write_text("a: 1")
    monkeypatch.setenv("TEXTS", "elsewhere")
    assert "$TEXTS" in refused()
    monkeypatch.setenv("TEXTS", str(texts))
    with Store(out, sweep, 0) as store:
        assert len(store.trials) == 3


def test_the_code_of_mnemograph_may_not_change_unnoticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, out = sweep_of(tmp_path, command=["mnemograph", "fit", "${args}"]), tmp_path / "out"
    filled(out, sweep)
    monkeypatch.setattr("experiments.sweep.store.code_digest", lambda: "other")
    with pytest.raises(ResultsError, match="mnemograph changed"), Store(out, sweep, 0):
        pass


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"id": 3}', "\xff"])
def test_a_folder_that_does_not_say_what_it_is_is_refused(tmp_path: Path, content: str) -> None:
    sweep, out = sweep_of(tmp_path), tmp_path / "out"
    filled(out, sweep)
    (out / "sweep.json").write_text(content)
    with pytest.raises(ResultsError, match="does not say which sweep this is"), Store(out, sweep, 0):
        pass


@pytest.mark.parametrize("change", [{"stops": []}, {"params": None}, {"value": "x"}, {"number": "0"}])
def test_a_line_that_is_no_trial_is_refused_by_number(tmp_path: Path, change: dict[str, Any]) -> None:
    sweep, out = sweep_of(tmp_path), tmp_path / "out"
    filled(out, sweep)
    path = out / "trials.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ResultsError, match=r"line 2 of .* is no trial"), Store(out, sweep, 0):
        pass


def test_a_line_that_is_there_twice_is_one_trial(tmp_path: Path) -> None:
    sweep, out = sweep_of(tmp_path), tmp_path / "out"
    trials = filled(out, sweep)
    path = out / "trials.jsonl"
    path.write_text(path.read_text() * 2)
    with Store(out, sweep, 0) as store:
        assert store.trials == trials


def test_failed_trials_are_forgotten_when_told(tmp_path: Path) -> None:
    sweep, out = sweep_of(tmp_path), tmp_path / "out"
    trials = filled(out, sweep)
    with Store(out, sweep, 0, retry=True) as store:
        assert store.trials == trials[:2]
    with Store(out, sweep, 0) as store:
        assert store.trials == trials[:2]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    sweep, out = sweep_of(tmp_path), tmp_path / "out"
    with (
        Store(out, sweep, 0),
        pytest.raises(ResultsError, match="another mnemograph process works on"),
        Store(out, sweep, 0),
    ):
        pass
    with Store(out, sweep, 0):
        pass


def test_the_best_come_first_and_stopped_ones_after_them(tmp_path: Path) -> None:
    trials = [trial(0, 3.0), trial(1, 1.0), trial(2, 0.5, STOPPED), trial(3, None, FAILED), trial(4, 2.0)]
    numbers = {
        goal: [
            one.number
            for one in ranked(trials, sweep_of(tmp_path, metric={"name": "loss", "goal": goal}).metric)
        ]
        for goal in ("minimize", "maximize")
    }
    assert numbers == {"minimize": [1, 4, 0, 2], "maximize": [0, 4, 1, 2]}
    assert [one.number for one in ranked(trials, None)] == [0, 1, 2, 4]
