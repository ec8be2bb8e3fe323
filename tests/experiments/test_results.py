import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.compare import carry_out
from experiments.errors import ResultsError
from experiments.results import Results, claim, conflicts, place, read_rows
from experiments.run import Run
from experiments.scheduler import Failed
from tests.experiments.fakes import CORPUS, STUDY, FakeRun, execute

ROOT = Path(__file__).parents[2]


def _row(run: str, arm: str = "dense", parent: str | None = None, **changes: object) -> dict:
    row = {"study": STUDY, "run": run, "arm": arm, "regime": "none", "seed": 0, "width": 64, "budget": 1e12}
    return {**row, "parent": parent, "corpus": CORPUS, **changes}


def _results(folder: Path) -> Results:
    return Results(folder, CORPUS, STUDY)


def test_rows_come_back_and_the_own_row_is_written_last(tmp_path: Path) -> None:
    with _results(tmp_path / "deep" / "folder") as results:
        results.append([_row("a"), _row("a", "memory off", parent="a")])
        assert results.finished == {"a"}
        lines = (tmp_path / "deep/folder/results.jsonl").read_text().splitlines()  # on the disk already
    assert [json.loads(line)["arm"] for line in lines] == ["memory off", "dense"]
    with _results(tmp_path / "deep" / "folder") as results:
        results.append([_row("b")])
    assert [row["run"] for row in read_rows(tmp_path / "deep/folder")[0]] == ["a", "a", "b"]


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_cut_off_last_line_costs_its_own_run_only(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "results.jsonl"
    lines = [json.dumps(_row(name)) for name in "abc"]
    path.write_text("\n".join(lines)[:-cut])
    with _results(tmp_path) as results:
        assert results.finished == {"a", "b"}
        assert "cut off" in results.notes[0]
        results.append([_row("c")])
    rows, notes = read_rows(tmp_path)
    assert [row["run"] for row in rows] == ["a", "b", "c"]
    assert notes == []
    assert path.read_text().splitlines()[:2] == lines[:2]


def test_a_derived_row_alone_does_not_make_a_run_finished(tmp_path: Path) -> None:
    # The process died between the rows of one run.
    (tmp_path / "results.jsonl").write_text(
        json.dumps(_row("a", "memory off", parent="a")) + '\n{"study": "fa'
    )
    with _results(tmp_path) as results:
        assert results.finished == set()


def test_a_run_without_all_that_was_derived_from_it_is_not_finished(tmp_path: Path) -> None:
    whole = _row("a", derived=2), _row("a", "memory off", parent="a"), _row("a", "+ counts", parent="a")
    with _results(tmp_path) as results:
        results.append(whole)
        assert results.finished == {"a"}
    path = tmp_path / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    # Someone took the advice to delete a damaged line; one of the others is there twice.
    path.write_text("".join([lines[0], lines[0], lines[2]]))
    with _results(tmp_path) as results:
        assert results.finished == set()


def test_a_run_that_diverged_is_finished_and_says_why(tmp_path: Path) -> None:
    runs = [FakeRun("good"), FakeRun("hot", "nan")]
    attempts = tmp_path / "attempts"
    attempts.mkdir()

    def carried_out() -> list[Failed]:
        with _results(tmp_path) as results:
            return carry_out(runs, results, attempts, execute, workers=1, stream=io.StringIO())  # type: ignore[arg-type]

    (failed,) = carried_out()
    assert failed.diverged
    row = next(row for row in read_rows(tmp_path)[0] if row.get("name") == "hot")
    assert "the training loss became nan" in row["diverged"]
    assert carried_out() == []
    assert len(list(attempts.glob("hot.*"))) == 1


def test_a_run_that_costs_too_much_is_a_result_where_that_is_asked_for(tmp_path: Path) -> None:
    runs = [FakeRun("good"), FakeRun("dear", "poor")]

    def carried_out(unaffordable: bool) -> list[Failed]:
        with _results(tmp_path) as results:
            return carry_out(
                runs,  # type: ignore[arg-type]
                results,
                tmp_path,
                execute,
                workers=1,
                stream=io.StringIO(),
                unaffordable=unaffordable,
            )

    for asked in (False, True):
        (failed,) = carried_out(asked)
        assert (failed.unaffordable, failed.diverged) == (True, False)
    assert "less than one step" in read_rows(tmp_path)[0][-1]["diverged"]
    assert carried_out(False) == []


def test_counts_that_are_wanted_later_are_made_later(tmp_path: Path) -> None:
    """They are not part of what a run is: another best width makes no run another one."""
    plain, counted = (
        Run("study", "dense", "none", 0, 64, 1e12, {"layers": 2, "counts": counts})
        for counts in (False, True)
    )
    assert plain.key(CORPUS) == counted.key(CORPUS)

    def done(run: Run) -> dict:
        return _row(run.key(CORPUS), settings=dict(run.settings))

    with _results(tmp_path) as results:
        assert results.missing([plain, counted]) == [plain, counted]
        results.append([done(plain)])
        assert results.missing([plain, counted]) == [counted]
        results.append([done(counted)])
        assert results.missing([plain, counted]) == []


@pytest.mark.parametrize("lacking", ["run", "budget", "arm"])
def test_a_row_without_a_place_is_refused(tmp_path: Path, lacking: str) -> None:
    (tmp_path / "results.jsonl").write_text(json.dumps(_row("a") | {lacking: None}) + "\n")
    with pytest.raises(ResultsError, match=f"lacks {lacking}"), _results(tmp_path):
        pass


def test_a_whole_last_line_without_its_end_is_kept(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text(json.dumps(_row("a")) + "\n" + json.dumps(_row("b")))
    with _results(tmp_path) as results:
        assert results.finished == {"a", "b"}
        assert results.notes == []
        results.append([_row("c")])
    assert [row["run"] for row in read_rows(tmp_path)[0]] == ["a", "b", "c"]


def test_zeros_after_a_power_cut_are_a_cut_off_line(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_bytes(json.dumps(_row("a")).encode() + b"\n" + bytes(512))
    with _results(tmp_path) as results:
        assert results.finished == {"a"}


def test_damage_in_the_middle_is_refused_by_line_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(_row("a")) + "\n{broken\n" + json.dumps(_row("b")) + "\n")
    before = path.read_bytes()
    with pytest.raises(ResultsError, match=r"line 2 of .*delete that line"), _results(tmp_path):
        pass
    assert path.read_bytes() == before


def test_results_of_another_corpus_or_study_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(_row("a", corpus="cd" * 32)) + "\n")
    with pytest.raises(ResultsError, match=r"cdcdcdcdcdcd.*abababababab.*--out.*--fresh"), _results(tmp_path):
        pass
    path.write_text(json.dumps(_row("a", study="other")) + "\n")
    with pytest.raises(ResultsError, match=r"another study \(other, this one is fake\)"), _results(tmp_path):
        pass


def test_fresh_sets_aside_and_deletes_nothing(tmp_path: Path) -> None:
    old = json.dumps(_row("a", corpus="cd" * 32)) + "\n"
    for number in (1, 2):
        (tmp_path / "results.jsonl").write_text(old)
        with Results(tmp_path, CORPUS, STUDY, fresh=True) as results:
            assert results.rows == []
            assert f"results.{number}.jsonl" in results.notes[0]
    assert (tmp_path / "results.1.jsonl").read_text() == (tmp_path / "results.2.jsonl").read_text() == old


def test_two_processes_do_not_write_to_one_folder(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from experiments.results import Results\n"
        f"with Results(Path(sys.argv[1]), {CORPUS!r}, {STUDY!r}): print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    with pytest.raises(ResultsError, match=rf"\({other.pid}\) is writing to .*--out"), _results(tmp_path):
        pass
    # What a dead process held is free.
    other.kill()
    other.wait()
    with _results(tmp_path) as results:
        results.append([_row("a")])
    with _results(tmp_path) as results:
        assert results.finished == {"a"}


def test_an_unwritable_folder_is_noticed_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=r"cannot write to .*give another --out"):
        claim(tmp_path / "file" / "below")
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(ResultsError, match="cannot write"):
            claim(tmp_path / "locked")
    claim(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_runs_made_with_other_settings_are_told_apart(tmp_path: Path) -> None:
    same, other, elsewhere = _row("a"), _row("b", seed=1), _row("c", seed=2)
    derived = _row("b", "memory off", parent="b", seed=1)
    planned = {place(same): "a", place(other): "new"}
    assert conflicts([same, other, elsewhere, derived], planned) == [other]
