import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

import experiments.compare
import experiments.run
import experiments.step
import experiments.workspace
from experiments.cli import COMMANDS, main
from experiments.commands.choice import program
from experiments.errors import RunError
from experiments.results import read_rows
from experiments.scheduler import Event, Execute, Failed, Finished
from tests.experiments import fake_cli

ROOT = Path(__file__).parents[2]
SMALL = ["--arms", "ngram", "--budgets", "1e11", "--widths", "32", "48", "--seeds", "1", "--workers", "1"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNEMOGRAPH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MNEMOGRAPH_DEBUG", raising=False)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "texts"
    path.mkdir()
    for number in range(12):
        lines = [f"The {word} number {number} met the {other}.\n" for word in WORDS for other in WORDS]
        (path / f"tale{number}.txt").write_text("".join(lines))
    return path


WORDS = ("cat", "dog", "hen", "cow", "fox", "owl", "bat", "elk", "emu", "yak")


def _ends(argv: list[str]) -> int:
    """The exit code, however it comes."""
    try:
        return main(argv)
    except SystemExit as stop:
        return int(stop.code or 0)


def _refused(argv: list[str], capsys: pytest.CaptureFixture) -> str:
    """The one line on standard error of a command that has something to correct."""
    assert _ends(argv) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    lines = [line for line in said.err.splitlines() if not line.startswith("Building the corpus")]
    assert len(lines) == 1, said.err
    assert lines[0].startswith("mnemograph")
    return lines[0]


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_without_arguments_it_says_what_it_can_do(argv: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert all(f"mnemograph {name}" in said for name in COMMANDS)
    assert len(said.splitlines()) < 20


def test_it_says_its_version(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mnemograph {importlib.metadata.version('mnemograph')}\n"

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("experiments.cli.version", missing)
    assert main(["--version"]) == 0
    assert "not installed" in capsys.readouterr().out


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "fit"])
def test_help_teaches_with_two_examples(command: str, capsys: pytest.CaptureFixture) -> None:
    assert _ends([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.split("examples:")[1].count(f"mnemograph {command}") >= min(
        2, len(COMMANDS[command].EXAMPLES.split("\n"))
    )


def test_help_answers_before_torch_could_be_loaded() -> None:
    script = (
        "import sys; from experiments.cli import main\ntry: main(['compare', '--help'])\nexcept SystemExit: pass\n"
        "slow = {'torch', 'numpy', 'lightning', 'faiss', 'rich', 'matplotlib'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_it_is_a_module_too() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "experiments"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "mnemograph compare" in told.stdout


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["compar"], "did you mean 'compare'"),
        (["--verson"], "unknown command"),
        (["compare", "--seeds", "none"], "'none' is no positive number, such as 3"),
        (["compare", "--budgets", "-1"], "--budgets"),
        (["compare", "--budgets", "nan"], "'nan' is no positive number, such as 1e12"),
        (["compare", "--wandb", "maybe"], "'maybe'"),
        (["compare", "--bugets", "1e12"], "unrecognized arguments: --bugets"),
        (["compare", "memory_per_flops", "--plan"], "did you mean 'memory_per_flop'"),
        (["compare", "--plan", "--arms", "ngramm"], "did you mean 'ngram'"),
        (["compare", "nowhere.py", "--plan"], "there is no file nowhere.py"),
        (["compare", "--plan", "--data", "no/where"], "no/where does not exist"),
        (["report", "no/where"], "there is no folder no/where"),
        (["corpus", "--data", "no/where"], "no/where does not exist"),
        (["corpus", "--vocab-size", "9"], "vocab_size is 9"),
        (["bill", "--arm", "ngramm"], "did you mean 'ngram'"),
        (["bill", "--width", "0"], "--width 0 is too small"),
        (["bill", "--width", "48", "--heads", "5"], "heads"),
        (["fit", "--data.seeed=1"], "did you mean --data.seed? (see mnemograph fit --help)"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], says: str, capsys: pytest.CaptureFixture) -> None:
    assert says in _refused(argv, capsys)


def test_unusable_text_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = ["--out", str(tmp_path / "out")]
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    assert "empty.txt" in _refused(["compare", *SMALL, *out, "--data", str(empty)], capsys)
    one = tmp_path / "one.txt"
    one.write_text("One short document.")
    assert "too little to split" in _refused(["compare", *SMALL, *out, "--data", str(one)], capsys)
    (tmp_path / "folder").mkdir()
    assert "no files" in _refused(["compare", *SMALL, *out, "--data", str(tmp_path / "folder")], capsys)


def test_an_unwritable_folder_is_one_line_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    begin = time.monotonic()
    assert "cannot write to" in _refused(["compare", "--out", str(out)], capsys)
    assert time.monotonic() - begin < 1


def test_sizes_that_make_no_run_are_one_line(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    common = [
        "compare",
        "--data",
        str(text),
        "--vocab-size",
        "300",
        "--out",
        str(tmp_path / "out"),
        "--arms",
        "ngram",
    ]
    assert "pays for no step" in _refused([*common, "--budgets", "1e6"], capsys)
    assert "width 31: d_model=31 cannot" in (said := _refused([*common, "--widths", "31"], capsys))
    assert "such as 32" in said
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    earlier = tmp_path / "out" / "results.jsonl"
    earlier.write_text("{}\n")
    assert "Bring more text, or lower --budgets" in _refused(
        [*common, "--budgets", "1e12", "--fresh"], capsys
    )
    assert [path.name for path in earlier.parent.glob("*.jsonl")] == ["results.jsonl"]
    assert earlier.read_text() == "{}\n"


def test_hints_name_the_command_as_it_was_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = tmp_path / "a folder" / "mnemograph"
    called.parent.mkdir()
    called.touch(mode=0o755)
    monkeypatch.setattr("sys.argv", [str(called), "compare"])
    assert program() == f"'{called}'"
    monkeypatch.setenv("PATH", str(called.parent))
    assert program() == "mnemograph"
    monkeypatch.setattr("sys.argv", ["pytest"])
    assert program() == "mnemograph"


def test_a_failure_nobody_foresaw_is_one_line_and_code_1(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(arguments: object) -> int:
        raise KeyError("oh")

    monkeypatch.setattr(COMMANDS["corpus"], "run", fail)
    assert main(["corpus"]) == 1
    assert (
        capsys.readouterr().err
        == "mnemograph corpus: unexpected KeyError: 'oh' (MNEMOGRAPH_DEBUG=1 shows where)\n"
    )
    monkeypatch.setenv("MNEMOGRAPH_DEBUG", "1")
    main(["corpus"])
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.usefixtures("_untrained")
def test_plan_prints_runs_and_cost_and_starts_nothing(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert main(_compare(text, out, "--plan")) == 0
    said = capsys.readouterr().out
    assert "ngram (same tokens), seed 0, width" in said
    assert "runs, " in said
    assert "training FLOPs, about" in said
    assert not out.exists()


def test_bill_and_corpus_print(text: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["bill", "--width", "32", "--layers", "1", "--time", "32", "--vocab-size", "300"]) == 0
    said = capsys.readouterr().out
    assert "pays for" in said
    assert "aten.mm" in said
    assert (
        main(["bill", "--width", "32", "--layers", "1", "--time", "32", "--vocab-size", "300", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["flops"] > 0
    assert main(["corpus", "--data", str(text), "--vocab-size", "300"]) == 0
    said = capsys.readouterr().out
    assert "fingerprint" in said
    assert "n = 16" in said


def test_fit_trains_what_the_constructors_say(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = ["--data.source=TextCorpus", f"--data.source.path={text}", "--data.source.vocab_size=300"]
    sizes = [
        "--data.n_tokens=512",
        "--data.length=32",
        "--model.network.d_model=32",
        "--model.network.n_layers=1",
    ]
    memory = ["--model.network.memory={0: {class_path: mann.NGramMemory, init_args: {n_rows: 1024}}}"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_checkpointing=false"]
    assert main(["fit", *data, *sizes, *memory, *quiet, f"--trainer.default_root_dir={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "memory.0" in said
    assert "The training loss ended at" in said
    assert "n_layer" in _refused(["fit", "--model.network.n_layer=1"], capsys)


def _here(
    runs: list, workspace: Any, execute: Execute, *, workers: int, logs: Path
) -> Generator[Event, None, None]:
    """The scheduler without its processes."""
    for run in runs:
        try:
            yield Finished(1, run, execute(run, workspace, lambda stage, share: None), 1.0)
        except RunError as error:
            yield Failed(1, run, str(error))


@pytest.fixture
def _untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of invented numbers, in this process, of one revision."""
    monkeypatch.setattr(experiments.run, "execute", fake_cli.execute)
    monkeypatch.setattr(experiments.step, "check_sizes", fake_cli.check_sizes)
    monkeypatch.setattr(experiments.compare, "schedule", _here)
    monkeypatch.setattr(experiments.workspace.Workspace, "revision", "0123abc", raising=True)


def _compare(text: Path, out: Path, *more: str) -> list[str]:
    return ["compare", "--data", str(text), "--vocab-size", "300", "--out", str(out), *SMALL, *more]


@pytest.mark.usefixtures("_untrained")
def test_a_comparison_from_beginning_to_report(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    # Some runs fail: the others are reported, and the exit code says so.
    monkeypatch.setenv("FAKE_FAILS", "ngram")
    assert main(_compare(text, out)) == 1
    said = capsys.readouterr()
    assert "To do: " in said.out
    assert "no luck with ngram: try another" in said.err
    assert "Traceback" not in said.err
    assert "1 runs failed" in said.err
    assert "no luck" in (out / "failures.log").read_text()
    before = len(read_rows(out)[0])
    # The same command again does only what is missing.
    monkeypatch.delenv("FAKE_FAILS")
    assert main(_compare(text, out)) == 0
    said = capsys.readouterr()
    assert f"{before} of {before + 1} runs have finished before" in said.out
    assert "To do: 1 runs" in said.out
    assert "bits per byte" in said.out
    assert len(read_rows(out)[0]) == before + 1
    for name in ("results.jsonl", "summary.json", "frontier.png", "report.html"):
        assert (out / name).stat().st_size > 0
        assert str(out / name) in said.out
    again = f"mnemograph compare --data {text} --vocab-size 300 --out {out}"
    assert again in (out / "report.html").read_text()
    # Drawn again without running anything.
    (out / "summary.json").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "summary.json").exists()
    assert again in (out / "report.html").read_text()
    # Another text, other settings, another revision: refused, each in one line that says what to do.
    (text / "tale99.txt").write_text("Another tale altogether, which makes it another corpus.\n" * 20)
    assert "another text" in _refused(_compare(text, out), capsys)
    (text / "tale99.txt").unlink()
    path = out / "results.jsonl"
    kept = path.read_text()
    path.write_text(kept.replace('"code": "', '"code": "older'))
    assert "--allow-mixed" in _refused(_compare(text, out), capsys)
    assert main(_compare(text, out, "--allow-mixed")) == 0
    capsys.readouterr()
    path.write_text(kept.replace('"run": "', '"run": "f'))
    assert "other settings" in _refused(_compare(text, out), capsys)


@pytest.mark.usefixtures("_untrained")
def test_a_tuning_stops_where_a_trial_is_missing_and_goes_on(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    size = ["--budgets", "1.5e11", "--widths", "32", "48", "--arms", "ngram", "--workers", "1"]
    tune = ["tune", "--data", str(text), "--vocab-size", "300", "--out", str(out), *size, "--rounds", "1"]
    monkeypatch.setenv("FAKE_FAILS", "ngram")
    assert main(tune) == 2
    assert "no luck with ngram: try another. The search goes on" in capsys.readouterr().err
    monkeypatch.delenv("FAKE_FAILS")
    assert main(tune) == 0
    said = capsys.readouterr().out
    assert "1.5e11, round 1 of 1: 8 runs" in said
    assert "ngram (same tokens), width" in said
    assert "after 8 trials" in said
    found = json.loads((out / "tuned.json").read_text())
    assert {entry["trials"] for entry in found} == {8}
    (out / "results.jsonl").write_text((out / "results.jsonl").read_text().replace('"0123abc"', '"older"'))
    assert "--fresh" in _refused(tune, capsys)
    assert "give 1 to 4" in _refused([*tune[:-1], "9", "--fresh"], capsys)


def test_when_no_run_finishes_the_reason_is_told(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(runs: list, *_: object, **__: object) -> list[Failed]:
        return [Failed(1, run, "no luck") for run in runs]

    monkeypatch.setattr(experiments.compare, "carry_out", give_up)
    monkeypatch.setattr(experiments.step, "check_sizes", fake_cli.check_sizes)
    assert main(_compare(text, tmp_path / "out")) == 2
    assert "no run finished. The first: dense, seed 0, width" in capsys.readouterr().err


def test_stopping_says_how_to_continue(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.experiments.fake_cli", *_compare(text, out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FAKE_SECONDS": "1.5"},
    )
    deadline = time.monotonic() + 60
    while not read_rows(out)[0]:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)  # Ctrl-C takes the same way, see test_scheduler
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert "Traceback" not in said
    assert f"To continue: mnemograph compare --data {text}" in said
    assert f"mnemograph report {out}" in said
    assert read_rows(out)[0]
