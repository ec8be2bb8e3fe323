import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from experiments.arms import ARMS, Arm
from experiments.data import CodeCorpus, CorpusError
from experiments.errors import RunError
from experiments.run import DEFAULTS, Run
from experiments.step import check_sizes, step_bill
from experiments.studies import study_names
from experiments.study import Study, load_study
from mann import NGramMemory
from tests.experiments.data import toy

STUDY: dict[str, Any] = {
    "data": CodeCorpus(),
    "arms": ("ngram", "graph"),
    "whole_corpus": ("graph",),
    "controls": ("shuffled edges",),
    "widths": (48, 64, 96),
    "budgets": (1e12, 3e12),
    "reach": (3e11, 1e13),
    "reach_frontier": 2,
    "best_width": {3e11: 48, 1e12: 64, 3e12: 96, 1e13: 96},
    "seeds": range(3),
    "name": "tried",
}


def _study(**changes: Any) -> Study:
    return Study(**{**STUDY, **changes})


def _places(runs: Sequence[Run]) -> list[tuple]:
    return [(run.arm, run.regime, run.seed, run.width, run.budget) for run in runs]


def test_every_run_that_is_needed_is_planned_once() -> None:
    best = {1e12: 64, 3e12: 96}
    expected = {("dense", "none", 0, width, budget) for width in (48, 64, 96) for budget in best}
    expected |= {
        ("dense", "none", seed, width, budget) for seed in range(3) for budget, width in best.items()
    }
    # Beyond the budgets compared, fewer widths: the nearest to the best one.
    beyond = {3e11: (48, 64), 1e13: (64, 96)}
    expected |= {("dense", "none", 0, width, budget) for budget, some in beyond.items() for width in some}
    for arm, regime in (("ngram", "same tokens"), ("graph", "same tokens"), ("graph", "whole corpus")):
        expected |= {
            (arm, regime, seed, width, budget) for seed in range(3) for budget, width in best.items()
        }
    for regime in ("same tokens", "whole corpus"):
        expected.add(("shuffled edges", regime, 0, 96, 3e12))
    planned = _places(_study().plan())
    assert len(planned) == len(set(planned))
    assert set(planned) == expected


def test_the_plan_begins_with_one_large_store_and_then_dense() -> None:
    places = _places(_study().plan())
    assert places[0] == ("graph", "whole corpus", 0, 64, 1e12)
    assert [place[0] for place in places[1:3]] == ["dense", "dense"]
    # The next run that needs the store comes when the first has long built it.
    assert min(n for n, place in enumerate(places) if n and place[1] == "whole corpus") >= 5


def test_the_first_seed_is_complete_before_the_second_begins() -> None:
    seeds = [run.seed for run in _study().plan()]
    assert seeds == sorted(seeds)


def test_what_is_compared_comes_before_other_widths_and_controls() -> None:
    runs = [run for run in _study().plan() if run.seed == 0]
    arms = max(n for n, run in enumerate(runs) if run.arm in ("ngram", "graph"))
    others = [
        n for n, run in enumerate(runs) if run.arm == "dense" and run.width == 48 and run.budget >= 1e12
    ]
    controls = [n for n, run in enumerate(runs) if run.arm == "shuffled edges"]
    assert arms < min(others) < min(controls)
    assert {runs[n].budget for n in controls} == {3e12}


def test_later_seeds_run_long_ones_first() -> None:
    budgets = [run.budget for run in _study(reach=()).plan() if run.seed == 2 and run.arm != "dense"]
    assert budgets == sorted(budgets, reverse=True)


def test_a_run_holds_every_setting_so_that_changed_defaults_make_another_run() -> None:
    study = _study(
        tuned={
            ("ngram", "same tokens", 64, 1e12): {"batch": 8},
            ("graph", "whole corpus", 64, 1e12): {"k": 8},
        },
        sized={96: {"layers": 4, "batch": 2}},
        settings={"time": 128},
    )
    by_place = {(run.arm, run.width, run.budget): run for run in study.plan()}
    assert by_place["dense", 64, 1e12].settings == {**DEFAULTS, "time": 128, "counts": True}
    assert by_place["ngram", 64, 1e12].settings["batch"] == 8
    wide = by_place["ngram", 96, 3e12].settings
    assert (wide["layers"], wide["batch"]) == (4, 8)
    assert by_place["dense", 96, 3e12].settings["batch"] == 2
    graphs = {run.regime: run.settings["k"] for run in study.plan() if run.arm == "graph"}
    assert graphs == {"same tokens": DEFAULTS["k"], "whole corpus": 8}
    key = by_place["dense", 96, 3e12].key("ab" * 32)
    assert key != next(run for run in _study().plan() if run.width == 96 and run.budget == 3e12).key(
        "ab" * 32
    )


def test_counts_run_where_arms_are_compared() -> None:
    counted = {(run.arm, run.width, run.budget) for run in _study().plan() if run.settings["counts"]}
    assert counted == {
        (arm, w, b) for arm in ("dense", "ngram", "graph") for w, b in ((64, 1e12), (96, 3e12))
    }


def test_an_arm_of_ones_own_takes_part() -> None:
    mine = Arm("mine", settings={"batch": 2})
    study = _study(arms=("ngram", mine), controls=(), whole_corpus=())
    assert study.arm_table["mine"] is mine
    runs = [run for run in study.plan() if run.arm == "mine"]
    assert len(runs) == 6
    assert {run.settings["batch"] for run in runs} == {2}
    assert {run.regime for run in runs} == {"same tokens"}


@pytest.mark.parametrize(
    ("one", "says"),
    [
        ({"arms": Arm("mine", dict)}, r"arms=\(Arm\('mine', ...\),\)"),
        ({"controls": "ngram"}, r"controls=\('ngram',\)"),
        ({"budgets": 3e9}, r"budgets=\(3000000000.0,\)"),
    ],
)
def test_one_in_place_of_several_is_named(one: dict[str, Any], says: str) -> None:
    with pytest.raises(RunError, match=says):
        _study(**one)


ORDERS = (2, 3)


def _memory(n_layers: int, source: object, orders: tuple[int, ...] = (2,)) -> dict[str, Any]:
    return {"memory": {0: partial(NGramMemory, orders=(*orders, *ORDERS))}}


def test_an_arm_made_otherwise_is_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def keys(arm: Arm) -> set[str]:
        runs = _study(arms=(arm,), controls=(), whole_corpus=()).plan()
        return {run.key("text") for run in runs if run.arm == "mine"}

    made = [
        _memory,
        partial(_memory, orders=(4,)),
        lambda layers, source: {"memory": {0: partial(NGramMemory, orders=(2, 3))}},
        lambda layers, source: {"memory": {0: partial(NGramMemory, orders=(2, 4))}},
    ]
    found = [keys(Arm("mine", slots)) for slots in made]
    assert len(set.union(*found)) == sum(map(len, found)) == 6 * len(made)
    assert keys(Arm("mine", _memory)) == found[0]
    monkeypatch.setattr(sys.modules[__name__], "ORDERS", (2,))
    assert not keys(Arm("mine", _memory)) & found[0]
    # Those of the library are in the digest of its code.
    assert all("definition" not in run.settings for run in _study().plan())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"arms": ("ngarm",)}, "did you mean 'ngram'"),
        ({"widths": ()}, "widths must be positive"),
        ({"budgets": (1e12, -1.0)}, "budgets must be positive"),
        ({"seeds": ()}, "at least one seed"),
        ({"whole_corpus": ("ngram",)}, "'ngram' looks nothing up"),
        ({"seeds": (0, 0)}, r"seeds \[0, 0\] are not all different"),
        ({"frontier": 0}, "frontier is 0: give 1 or more"),
        ({"arms": (replace(ARMS["ngram"], name="dense"),)}, "'dense', as the baseline has"),
        ({"arms": (Arm("a"), Arm("a", settings={"batch": 2}))}, "'a', as another arm of this study has"),
        ({"arms": (Arm("dense + counts"),)}, "as what is derived from one"),
        ({"settings": {"bacth": 3}}, "unknown setting 'bacth': did you mean 'batch'"),
        ({"arms": (Arm("a", settings={"bacth": 3}),)}, "unknown setting 'bacth'"),
    ],
)
def test_a_study_that_makes_no_sense_says_so(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RunError, match=says):
        _study(**changes).plan()


def test_narrowing_keeps_dense_and_a_frontier_around_the_budgets() -> None:
    study = _study().narrowed(arms=["graph"], budgets=[1e11], seeds=range(1), widths=[32, 64])
    places = _places(study.plan())
    assert {(arm, regime) for arm, regime, *_ in places} == {
        ("dense", "none"),
        ("graph", "same tokens"),
        ("graph", "whole corpus"),
    }
    dense = sorted(budget for arm, *_, budget in places if arm == "dense")
    assert dense[0] < 1e11 / 2
    assert dense[-1] > 3e11
    assert {width for *_, width, _ in places} == {32, 64}
    assert study.name == "tried"


def test_an_arm_the_study_does_not_list_can_be_asked_for() -> None:
    study = _study().narrowed(arms=["knn", "random neighbours"])
    assert study.arms == ("knn",)
    assert study.controls == ("random neighbours",)
    with pytest.raises(RunError, match="did you mean 'knn'"):
        _study().narrowed(arms=["knnn"])


def test_a_run_says_where_its_settings_came_from_and_is_the_same_run_for_it() -> None:
    rates = {"rates": {"matrix": 0.01}}
    study = _study(
        arms=("ngram", "knn", Arm("mine")),
        controls=("shuffled edges",),
        tuned={
            ("dense", "none", 64, 1e12): {**rates, "trials": 8},
            ("ngram", "same tokens", 64, 1e12): {**rates, "trials": 0},  # as a study borrows by hand
            ("graph", "whole corpus", 96, 3e12): {**rates, "trials": 8},
        },
    )
    found = {(run.arm, run.regime, run.width, run.budget): run.settings_from for run in study.plan()}
    assert found["dense", "none", 64, 1e12] == "own search"
    assert found["dense", "none", 96, 1e12] == found["dense", "none", 96, 1e13] == "another size"
    assert found["ngram", "same tokens", 64, 1e12] == "another size"
    assert found["knn", "same tokens", 64, 1e12] == found["mine", "same tokens", 64, 1e12] == "defaults"
    assert found["graph", "whole corpus", 96, 3e12] == "own search"
    assert found["shuffled edges", "whole corpus", 96, 3e12] == "another arm"
    assert found["shuffled edges", "same tokens", 96, 3e12] == "defaults"
    assert all(run.key("a") == replace(run, settings_from="").key("a") for run in study.plan())


def test_what_is_like_dense_takes_its_settings_though_it_trains_in_another_regime() -> None:
    tuned = {("dense", "none", 64, 1e12): {"layers": 1, "batch": 4, "trials": 8}}
    (run,) = (
        run
        for run in _study(arms=("cache",), tuned=tuned).plan()
        if run.arm == "cache" and run.width == 64 and not run.seed
    )
    assert (run.settings["layers"], run.settings["batch"], run.settings["trials"]) == (1, 4, 0)
    assert run.settings_from == "another arm"


def test_best_width_of_a_budget_nobody_tuned_is_that_of_the_nearest() -> None:
    study = _study()
    assert [study.width_at(budget) for budget in (1e11, 4e11, 2e12, 1e15)] == [48, 48, 96, 96]
    assert _study(widths=(64, 128)).width_at(3e12) in (64, 128)
    assert _study(best_width={}).width_at(1e12) == 64


def test_quick_is_small_and_has_a_frontier() -> None:
    runs = load_study("memory_per_flop").quick().plan()
    assert sum(run.budget for run in runs) < 3e12
    assert {run.seed for run in runs} == {0}
    dense = [run for run in runs if run.arm == "dense"]
    assert len({run.width for run in dense}) == 2
    assert min(run.budget for run in dense) < 2e11 < max(run.budget for run in dense)
    assert {"ngram", "knn", "graph"} <= {run.arm for run in runs}


@pytest.mark.parametrize("name", study_names())
def test_studies_that_come_along_are_sound(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    assert study.question.endswith("?") or "? " in study.question
    runs = study.plan()
    assert {run.study for run in runs} == {name}
    assert len({run.key("ab" * 32) for run in runs}) == len(runs)
    assert {run.arm for run in runs} <= set(ARMS)
    assert len({run.width for run in runs if run.arm == "dense"}) >= 4
    assert set(study.best_width) == {*study.budgets, *study.reach}
    path = Path(load_study.__code__.co_filename).parent / "studies" / f"{name}.py"
    assert len(path.read_text().splitlines()) < 40


def test_a_study_from_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "my_question.py"
    path.write_text(
        '"""Is mine better?\n\nAt length."""\n'
        "from experiments.arms import Arm\nfrom experiments.data import CodeCorpus\n"
        "from experiments.study import Study\n"
        "def slots(n_layers, source): return {}\n"
        "study = Study(data=CodeCorpus(), arms=(Arm('mine', slots),), widths=(32,), budgets=(1e11,))\n"
    )
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    study = load_study(str(path))
    assert (study.name, study.question) == ("my_question", "Is mine better?")
    assert "mine" in {run.arm for run in study.plan()}


def test_a_study_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    with pytest.raises(RunError, match=r"unknown study 'memory_per_flops': did you mean 'memory_per_flop'"):
        load_study("memory_per_flops")
    with pytest.raises(RunError, match="there is no file"):
        load_study(str(tmp_path / "none.py"))
    (tmp_path / "holds_no_study.py").write_text("")
    with pytest.raises(RunError, match="assigns no study"):
        load_study(str(tmp_path / "holds_no_study.py"))
    (tmp_path / "json.py").write_text("")
    with pytest.raises(RunError, match="rename the file"):
        load_study(str(tmp_path / "json.py"))


def test_the_bill_of_a_step_grows_with_the_sizes() -> None:
    small = {"batch": 1, "time": 32, "layers": 1}
    bill = step_bill(ARMS["dense"], 300, 32, small)
    assert 0 < bill.flops < step_bill(ARMS["dense"], 300, 64, small).flops
    assert bill.flops < step_bill(ARMS["ngram"], 300, 32, small).flops
    assert bill.flops < step_bill(ARMS["graph"], 300, 32, small).flops
    assert set(bill.by_phase) >= {"forward", "backward", "optimizer"}


def test_sizes_that_make_no_run_are_found_before_training() -> None:
    settings = {**DEFAULTS, "batch": 1, "time": 32, "layers": 1, "heads": 3}
    odd = Run("tried", "dense", "none", 0, 32, 1e12, settings)
    text = toy.corpus(n=200)
    with pytest.raises(RunError, match=r"dense at width 32: .*heads"):
        check_sizes([odd], ARMS, text)
    poor = Run("tried", "dense", "none", 0, 48, 1e3, settings)
    with pytest.raises(RunError, match=r"a budget of 1e\+03 FLOPs pays for no step.*--budgets"):
        check_sizes([poor], ARMS, text)
    fitting = Run("tried", "dense", "none", 0, 48, 3e8, settings)
    check_sizes([fitting], ARMS, text)
    with pytest.raises(RunError, match=r"train on [\d,]+ tokens, but the text has [\d,]+, enough for"):
        check_sizes([fitting, replace(fitting, budget=1e12)], ARMS, text)
    with pytest.raises(CorpusError, match="split 'valid' has"):
        check_sizes([fitting], ARMS, replace(text, valid=toy.split(1, name="valid", n=1)))
