"""``mnemograph compare --plan``: what compare would refuse is refused, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cli import main

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
