"""``mnemograph compare --plan``: what compare would refuse is refused, and nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.results import Results
from experiments.study import load_study
from experiments.workspace import Workspace

SMALL = ["--arms", "ngram", "--budgets", "2e9", "--widths", "32", "--seeds", "1", "--vocab-size", "300"]
WORDS = ("cat", "dog", "hen", "cow", "fox", "owl", "bat", "elk", "emu", "yak")
LEAKING = '''"""Does tomorrow help?"""
import torch
from experiments.arms import Arm
from experiments.data import TextCorpus
from experiments.study import Study
from mann import Memory

class Tomorrow(Memory):
    def __init__(self, d_model):
        super().__init__()
        self.mix = torch.nn.Linear(d_model, d_model)

    def forward(self, x, context):
        return self.mix(x).flip(1)

def slots(n_layers, source):
    return {"memory": {1: Tomorrow}}

study = Study(
    data=TextCorpus("texts", 300), arms=(Arm("tomorrow", slots),), widths=(32,), budgets=(1e9,), seeds=range(1)
)
'''


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNEMOGRAPH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MNEMOGRAPH_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def text(tmp_path: Path) -> str:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(12):
        lines = [f"The {word} number {number} met the {other}.\n" for word in WORDS for other in WORDS]
        (folder / f"tale{number}.txt").write_text("".join(lines * 4))
    return str(folder)


def refused(argv: list[str], capsys: pytest.CaptureFixture) -> str:
    assert main(["compare", "--plan", *argv]) == 2
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if not line.startswith("Building the corpus")]
    assert (said.out, len(lines)) == ("", 1), said
    assert not Path("runs").exists()
    return lines[0]


def test_text_that_is_none_or_too_little_is_refused(capsys: pytest.CaptureFixture) -> None:
    Path("empty.txt").touch()
    Path("bytes.txt").write_bytes(bytes(range(256)) * 20)
    Path("tiny.txt").write_text("abc")
    Path("folder").mkdir()
    assert "holds 0 bytes of text" in refused([*SMALL, "--data", "empty.txt"], capsys)
    assert "bytes.txt looks binary, for it holds zero bytes" in refused(
        [*SMALL, "--data", "bytes.txt"], capsys
    )
    assert "holds 3 bytes of text" in refused([*SMALL, "--data", "tiny.txt"], capsys)
    assert "has no files" in refused([*SMALL, "--data", "folder"], capsys)


def test_sizes_and_budgets_that_make_no_run_are_refused(text: str, capsys: pytest.CaptureFixture) -> None:
    plan = [*SMALL, "--data", text]
    assert "width 33: d_model=33 cannot" in refused([*plan, "--widths", "33"], capsys)
    assert "vocab_size is 10" in refused([*plan, "--vocab-size", "10"], capsys)
    assert "Bring more text, or lower --budgets" in refused([*plan, "--budgets", "1e30"], capsys)
    assert "pays for no step" in refused([*plan, "--budgets", "1e5"], capsys)


def test_an_arm_that_costs_more_than_the_budget_is_refused(text: str, capsys: pytest.CaptureFixture) -> None:
    wide = LEAKING.replace(".flip(1)", "").replace("slots),", "slots, settings={'batch': 64}),")
    Path("dear_study.py").write_text(wide)
    said = refused(["dear_study.py"], capsys)
    assert "pays for no step: tomorrow of width 32 takes" in said
    assert "give it a smaller batch" in said


def test_what_the_report_says_to_set_is_what_the_same_folder_takes(
    text: str, capsys: pytest.CaptureFixture
) -> None:
    """More seeds, another best width, a budget that dense alone had before: what has run stays."""
    said = "study = Study(\n    data=TextCorpus('texts', 300), arms=('ngram',), widths=(16, 32), {}\n)\n"
    imports = "from experiments.data import TextCorpus\nfrom experiments.study import Study\n"
    before = "budgets=(1e9,), reach=(2e9,), best_width={1e9: 32, 2e9: 32}, seeds=range(1)"
    Path("mine_before.py").write_text(imports + said.format(before))
    study = load_study("mine_before.py")
    corpus = study.data.load()
    revision = Workspace(study.data, Path("out"), Path("cache")).revision
    with Results(Path("out"), corpus.fingerprint, study.name) as results:
        about = {"parent": None, "corpus": corpus.fingerprint, "code": revision}
        results.append([run.to_dict() | about | {"run": run.key(corpus.fingerprint)} for run in study.plan()])
    capsys.readouterr()
    after = "budgets=(1e9, 2e9), reach=(), best_width={1e9: 16, 2e9: 16}, seeds=range(2)"
    Path("mine_after.py").write_text(imports + said.format(f"name='mine_before', {after}"))
    assert main(["compare", "mine_after.py", "--out", "out", "--plan"]) == 0
    # Dense of width 32 at both budgets; that of width 16 is there, but not yet mixed with counts.
    assert "2 of 10 runs have finished before" in capsys.readouterr().out


def test_a_place_where_nothing_can_be_written_is_refused(text: str, capsys: pytest.CaptureFixture) -> None:
    Path("file").touch()
    plan = [*SMALL, "--data", text, "--out"]
    assert "cannot write to file" in refused([*plan, "file"], capsys)
    assert "is a file" in refused([*plan, "file/below/it"], capsys)
    Path("other").mkdir()
    (Path("other") / "results.jsonl").write_text("{}\n")
    assert "lacks run" in refused([*plan, "other"], capsys)


def test_an_arm_that_reads_the_future_is_refused(text: str, capsys: pytest.CaptureFixture) -> None:
    Path("leaking_study.py").write_text(LEAKING)
    said = refused(["leaking_study.py"], capsys)
    assert "arm 'tomorrow' reads the future: with other tokens from position" in said
    assert main(["compare", "leaking_study.py", "--out", "out"]) == 2
    assert "arm 'tomorrow' reads the future" in capsys.readouterr().err
    assert not Path("out").exists()
    assert main(["tune", "leaking_study.py", "--out", "out"]) == 2
    assert "arm 'tomorrow' reads the future" in capsys.readouterr().err


def test_that_an_arm_could_not_be_asked_stays_with_its_rows_and_in_every_form_of_the_report(
    text: str, capsys: pytest.CaptureFixture
) -> None:
    by_chance = LEAKING.replace("import torch", "import random\nimport torch")
    by_chance = by_chance.replace("self.mix(x).flip(1)", "random.random() * self.mix(x)")
    by_chance = by_chance.replace('"tomorrow"', '"by chance"').replace(
        "widths=(32,)", "widths=(16,), reach=()"
    )
    Path("chance_study.py").write_text(by_chance)
    argv = ["chance_study.py", "--out", "out", "--workers", "1"]
    assert main(["compare", *argv]) == 0
    said = capsys.readouterr()
    why = "by chance was not asked whether it reads the future: position 0 says something else each time"
    assert f"Note: {why}" in said.err
    assert f"{why} it reads the same" in said.out
    rows = [json.loads(line) for line in (Path("out") / "results.jsonl").read_text().splitlines()]
    assert {row["arm"]: row["unasked"][: len(why)] for row in rows if row["parent"] is None} == {
        "dense": "",
        "by chance": why,
    }
    forms = {
        "table": "tables.txt",
        "json": "summary.json",
        "markdown": "report.md",
        "html": "report.html",
        "latex": "tables.tex",
    }
    assert main(["report", "out", "--format", ",".join(forms)]) == 0
    for file in forms.values():
        assert why in (Path("out") / file).read_text(), file
    capsys.readouterr()
    assert main(["compare", *argv, "--plan"]) == 0
    assert "2 of 2 runs have finished before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "line", "says"),
    [
        ("study_that_imports.py", "import nothing_there", "line 2: there is no module 'nothing_there'"),
        ("study_that_begins.py", "study = Study(", "line 2: '(' was never closed"),
        ("study_that_divides.py", "x = 1 / 0", "line 2: ZeroDivisionError: division by zero"),
    ],
)
def test_a_mistake_in_a_study_is_told_with_its_line(
    name: str, line: str, says: str, capsys: pytest.CaptureFixture
) -> None:
    Path(name).write_text(f'"""Is it so?"""\n{line}\n')
    said = refused([name], capsys)
    assert says in said
    assert name in said
    assert "unexpected" not in said
