import io
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from experiments.errors import RunError
from experiments.forecast import Forecast, duration
from experiments.progress import Board, Display, LiveDisplay
from experiments.results import read_rows
from experiments.scheduler import (
    Advanced,
    Failed,
    Finished,
    Retried,
    Started,
    Tick,
    available_cores,
    schedule,
)
from tests.experiments.fakes import FakeRun, Unloadable, execute

ROOT = Path(__file__).parents[2]


def _events(runs: list[FakeRun], folder: Path, workers: int = 2) -> list:
    return [*schedule(runs, folder, execute, workers=workers, logs=folder / "logs")]  # type: ignore[arg-type]


def _of(kind: type, events: list) -> list:
    return [event for event in events if isinstance(event, kind)]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def _gone(pids: list[int], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(_alive, pids))


def test_every_run_finishes_in_few_processes_of_one_thread(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    runs = [FakeRun(f"run{number}", seconds=0.02) for number in range(6)]
    events = _events(runs, tmp_path)
    assert [event.run.name for event in _of(Started, events)] == [run.name for run in runs]
    finished = _of(Finished, events)
    assert sorted(event.run.name for event in finished) == sorted(run.name for run in runs)
    assert 1 <= len({event.rows[0]["pid"] for event in finished}) <= 2
    assert {event.rows[0]["threads"] for event in finished} == {"1"}
    assert {event.stage for event in _of(Advanced, events)} == {"train", "evaluate"}
    assert "chatter" not in capfd.readouterr().out
    assert "chatter of run0" in "".join(log.read_text() for log in (tmp_path / "logs").iterdir())


def test_own_threads_are_left_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    assert _of(Finished, _events([FakeRun("only")], tmp_path))[0].rows[0]["threads"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert "MKL_NUM_THREADS" not in os.environ


def test_a_dead_worker_costs_a_second_attempt_of_its_run(tmp_path: Path) -> None:
    events = _events([FakeRun("fragile", "die once"), *[FakeRun(f"run{n}") for n in range(3)]], tmp_path)
    assert [event.run.name for event in _of(Retried, events)] == ["fragile"]
    assert "memory" in _of(Retried, events)[0].reason
    assert not _of(Failed, events)
    assert len(_of(Finished, events)) == 4


@pytest.mark.parametrize(("does", "says"), [("die", "memory"), ("exit", "exit code 7")])
def test_a_run_that_kills_twice_is_given_up(tmp_path: Path, does: str, says: str) -> None:
    events = _events([FakeRun("deadly", does), *[FakeRun(f"run{n}") for n in range(2)]], tmp_path)
    (failed,) = _of(Failed, events)
    assert failed.run.name == "deadly"
    assert says in failed.reason
    assert len(list(tmp_path.glob("deadly.*"))) == 2
    assert len(_of(Finished, events)) == 2


def test_a_failing_run_is_one_line_and_the_others_go_on(tmp_path: Path) -> None:
    events = _events([FakeRun("bad", "raise"), FakeRun("nan", "nan"), FakeRun("good")], tmp_path, workers=1)
    bad, nan = _of(Failed, events)
    assert bad.reason.startswith("KeyError: ")
    assert "\n" not in bad.reason
    assert "Traceback" in bad.trace
    assert nan.reason == "the training loss became nan by step 3: lower the rates"
    assert [event.run.name for event in _of(Finished, events)] == ["good"]
    assert len(list(tmp_path.glob("bad.*"))) == 1  # what fails by itself fails again


def test_closing_stops_workers_at_once(tmp_path: Path) -> None:
    runs = [FakeRun(f"long{number}", seconds=60) for number in range(4)]
    begin = time.monotonic()
    with closing(schedule(runs, tmp_path, execute, workers=2, logs=tmp_path / "logs")) as events:  # type: ignore[arg-type]
        assert len([next(event for event in events if isinstance(event, Advanced)) for _ in range(2)]) == 2
        pids = [int(trace.read_text()) for trace in tmp_path.glob("long*")]
    assert len(pids) == 2
    assert _gone(pids)
    assert time.monotonic() - begin < 20


def test_workers_that_cannot_start_are_an_error_that_names_the_log(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"worker-1\.log says why"):
        [*schedule([FakeRun("never")], Unloadable(), execute, workers=1, logs=tmp_path)]  # type: ignore[list-item]
    assert "not here" in (tmp_path / "worker-1.log").read_text()


def _start(folder: Path, count: int, seconds: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.experiments.fakes", str(folder), str(count), str(seconds)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that a shell runs in the background are deaf to Ctrl-C, and so is what they start.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def _wait_for_rows(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(read_rows(folder)[0]) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_study_that_was_stopped_continues_where_it_was(tmp_path: Path, how: signal.Signals) -> None:
    process = _start(tmp_path, 6, 0.3)
    _wait_for_rows(tmp_path, 4)
    # Ctrl-C reaches the whole group, as from a terminal.
    os.killpg(process.pid, how) if how is signal.SIGINT else os.kill(process.pid, how)
    _, said = process.communicate(timeout=20)
    assert process.returncode == (130 if how is signal.SIGINT else -how)
    assert "Traceback" not in said
    traces = tmp_path / "traces"
    assert _gone([int(trace.read_text()) for trace in traces.iterdir()])
    kept = {row["run"] for row in read_rows(tmp_path)[0] if row["parent"] is None}
    assert 2 <= len(kept) < 6
    if how is signal.SIGKILL:
        with (tmp_path / "results.jsonl").open("a") as file:
            file.write('{"study": "fake", "run": "0123')
    again = _start(tmp_path, 6, 0.0)
    again.communicate(timeout=30)
    assert again.returncode == 0
    rows = read_rows(tmp_path)[0]
    own = [row["run"] for row in rows if row["parent"] is None]
    assert len(own) == len(set(own)) == 6
    for number in range(6):
        if FakeRun(f"run{number}").key("ab" * 32) in kept:
            assert len(list(traces.glob(f"run{number}.*"))) == 1


def test_forecast_learns_from_what_runs_take() -> None:
    forecast = Forecast()
    run, other = FakeRun("one"), FakeRun("two", arm="graph", regime="whole corpus")
    first = forecast.seconds(run)
    forecast.observe(run, 2 * first)  # type: ignore[arg-type]
    assert forecast.seconds(run) == pytest.approx(2 * first)
    # An arm that has not run yet goes by the others.
    assert forecast.seconds(other) == pytest.approx(2 * Forecast().seconds(other))
    forecast.observe(other, 1000.0)  # type: ignore[arg-type]
    assert forecast.seconds(other) == pytest.approx(1000.0)
    assert forecast.seconds(run) == pytest.approx(2 * first)
    assert forecast.measured == 2


def test_forecast_spreads_runs_over_workers() -> None:
    forecast = Forecast()
    run = FakeRun("one")
    each = forecast.seconds(run)  # type: ignore[arg-type]
    assert forecast.remaining([], [run] * 3, 2) == pytest.approx(2 * each)  # type: ignore[list-item]
    assert forecast.remaining([(run, each / 2)], [], 2) == pytest.approx(each / 2)  # type: ignore[list-item]
    assert forecast.remaining([(run, 10 * each)], [], 1) == pytest.approx(each)  # type: ignore[list-item]
    assert forecast.remaining([], [], 2) == 0


def test_rows_of_an_earlier_session_inform_the_forecast() -> None:
    run = FakeRun("one")
    row = {"arm": "dense", "regime": "none", "budget": 1e12, "seconds": {"train": 5.0, "evaluate": 1.0}}
    assert Forecast([row, {**row, "parent": "x"}]).seconds(run) == pytest.approx(6.0)  # type: ignore[arg-type]


def test_durations_read_well() -> None:
    assert [duration(s) for s in (3.2, 59.4, 61, 5000, 9000)] == ["3 s", "59 s", "1 min", "83 min", "2.5 h"]
    assert [duration(s) for s in (1e6, 1e8, 1e20)] == ["12 days", "3 years", "more than 1000 years"]


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _board(clock: _Clock, runs: list[FakeRun]) -> Board:
    return Board(runs, 1, 2, Forecast(), clock)  # type: ignore[arg-type]


def test_plain_display_is_sparing_with_lines() -> None:
    clock, stream = _Clock(), io.StringIO()
    one, two = FakeRun("one"), FakeRun("two")
    display = Display(_board(clock, [one, two]), stream)
    display.show(Started(1, one))  # type: ignore[arg-type]
    for step in range(100):
        clock.now += 0.2
        display.show(Advanced(1, one, "train", step / 100))  # type: ignore[arg-type]
    assert stream.getvalue().count("\n") == 1
    assert "1 of 3 runs" in stream.getvalue()
    assert "one: train" in stream.getvalue()
    rows = [{"parent": None, "losses": {"test": {"bits_per_byte": 1.2345}}}]
    display.show(Finished(1, one, rows, 20.0))  # type: ignore[arg-type]
    display.show(Failed(2, two, "a budget too small"))  # type: ignore[arg-type]
    assert "[2/3] one: 1.234 bits per byte (20 s)\n" in stream.getvalue().replace("1.235", "1.234")
    assert stream.getvalue().endswith("[3/3] two failed: a budget too small\n")


def test_board_says_what_its_forecast_rests_on() -> None:
    clock = _Clock()
    one, two = FakeRun("one"), FakeRun("two")
    board = _board(clock, [one, two])
    assert "first guess" in board.headline()
    assert "; processes are starting, each loads torch and the study first" in board.headline()
    board.take(Started(1, one))  # type: ignore[arg-type]
    assert "starting" not in board.headline()
    clock.now = 60.0
    board.take(Finished(1, one, [], 60.0))  # type: ignore[arg-type]
    assert board.headline() == "2 of 3 runs, 1 min gone, about 1 min left (going by 1 finished run)"


def test_a_worker_that_took_its_next_run_keeps_it_on_the_board() -> None:
    one, two = FakeRun("one"), FakeRun("two")
    board = _board(_Clock(), [one, two])
    for event in (Started(1, one), Started(1, two), Finished(1, one, [], 1.0), Tick()):  # type: ignore[arg-type]
        board.take(event)
    assert [task.run for task in board.running.values()] == [two]


def test_live_display_draws_runs_and_keeps_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    clock, stream = _Clock(), Terminal()
    one, two = FakeRun("one"), FakeRun("two")
    with LiveDisplay(_board(clock, [one, two]), stream, "memory_per_flop") as display:
        for event in (Started(1, one), Advanced(1, one, "train", 0.25), Failed(2, two, "out of luck")):  # type: ignore[arg-type]
            clock.now += 1
            display.show(event)
    drawn = stream.getvalue()
    assert all(part in drawn for part in ("memory_per_flop", "train", "25%", "two failed: out of luck"))


def test_cores_are_those_this_process_may_use() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
