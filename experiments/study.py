"""A study: one question, the arms that answer it, and which runs that takes, the most telling ones first."""

from __future__ import annotations

import difflib
import importlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments import studies
from experiments.arms import ARMS, NO_STORE, SAME_TOKENS, WHOLE_CORPUS, Arm, arm_named
from experiments.definition import definition
from experiments.derived import DERIVED
from experiments.errors import RunError, own_line, told
from experiments.frontier import DENSE, OTHER_ARM, OTHER_SIZE, TUNED_HERE, UNTUNED
from experiments.run import DEFAULTS, Run
from experiments.studies import study_names
from experiments.workspace import CorpusSpec, Workspace

_Place = tuple[str, str, int, int, float]  # arm, regime, seed, width, budget


@dataclass(frozen=True)
class Study:
    """Arms compared with tuned dense transformers, at several sizes, budgets and seeds.

    Dense runs at every budget with several widths around the one that tuning found best for it (an IsoFLOP profile):
    with all seeds at that best width, with the first seed at the others. Arms run at the best width too.

    Args:
        data: The text.
        arms: Arms that read nothing but what they were trained on: names, or :class:`~experiments.arms.Arm`.
        widths: Widths to choose from.
        frontier: How many widths dense has at each budget: those nearest to the best one.
        reach_frontier: How many it has at the budgets of ``reach``.
        budgets: Training FLOPs, everything counted.
        seeds: Each decides initial weights and order of data.
        whole_corpus: Arms that may look up all of the training text; another question, so never in one row.
        controls: Arms that explain the others, at the largest budget; those with a store run in each regime that is
            compared.
        control_seeds: How many of the seeds the controls run with.
        reach: Budgets only dense runs at, below and above the others, so that multipliers on both sides of 1
            can be read off the frontier; with the first seed, the spread being known from the other budgets.
        best_width: What tuning found, by budget; others take the one of the nearest budget.
        settings: Changes to :data:`experiments.run.DEFAULTS`, for every run.
        sized: Settings that go with a width, for every arm.
        tuned: What tuning found, by arm, regime, width and budget, over all other settings; a width or budget nobody
            tuned an arm at takes what was found at the nearest.
        name: Given by :func:`load_study`: the name of the file.
        question: Given by :func:`load_study`: what the file's docstring asks.

    Raises:
        RunError: If an arm is unknown or something to compare is missing.
    """

    data: CorpusSpec
    arms: Sequence[str | Arm]
    widths: Sequence[int]
    budgets: Sequence[float]
    seeds: Sequence[int] = range(3)
    frontier: int = 4
    reach_frontier: int = 3
    whole_corpus: Sequence[str | Arm] = ()
    controls: Sequence[str | Arm] = ()
    control_seeds: int = 1
    reach: Sequence[float] = ()
    best_width: Mapping[float, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    sized: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    tuned: Mapping[tuple[str, str, int, float], Mapping[str, Any]] = field(default_factory=dict)
    name: str = ""
    question: str = ""

    def __post_init__(self) -> None:
        for what in ("arms", "whole_corpus", "controls", "widths", "budgets", "seeds", "reach"):
            if isinstance(given := getattr(self, what), str | Arm | int | float):
                shown = f"Arm({given.name!r}, ...)" if isinstance(given, Arm) else repr(given)
                raise RunError(f"{what}={shown} is one of them, not several: write {what}=({shown},)")
        for what, values in (("widths", self.widths), ("budgets", self.budgets)):
            if not values or min(values) <= 0:
                raise RunError(f"{what} must be positive numbers, got {list(values)}")
        if not self.seeds:
            raise RunError("a study needs at least one seed")
        if len(set(self.seeds)) < len(self.seeds):
            raise RunError(f"seeds {list(self.seeds)} are not all different: give each once")
        for what in ("frontier", "reach_frontier", "control_seeds"):
            if getattr(self, what) < 1:
                raise RunError(f"{what} is {getattr(self, what)}: give 1 or more")
        self._check_names()
        for arm in map(self._arm, (*self.arms, *self.whole_corpus, *self.controls)):
            if arm.like:
                arm_named(arm.like, self.arm_table)
        for arm in self.whole_corpus:
            if self._arm(arm).source is None:
                raise RunError(
                    f"{self._arm(arm).name!r} looks nothing up, so it cannot read the whole corpus"
                )

    def _check_names(self) -> None:
        """Names must tell arms apart, and settings must exist, before anything is trained."""
        known: dict[str, Arm] = {DENSE: ARMS[DENSE]}
        for arm in map(self._arm, (*self.arms, *self.whole_corpus, *self.controls)):
            if known.setdefault(arm.name, arm) != arm:
                what = "the baseline has" if arm.name == DENSE else "another arm of this study has"
                raise RunError(f"an arm is called {arm.name!r}, as {what}: give it another name")
            if arm.name.endswith(DERIVED):
                raise RunError(
                    f"an arm is called {arm.name!r}, as what is derived from one: give it another name"
                )
        given = (self.settings, *(arm.settings for arm in known.values()), *self.sized.values())
        for name in dict.fromkeys(name for settings in given for name in settings):
            if name not in DEFAULTS:
                close = difflib.get_close_matches(name, DEFAULTS, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise RunError(f"unknown setting {name!r}: {hint}The settings are {', '.join(DEFAULTS)}")

    @property
    def arm_table(self) -> dict[str, Arm]:
        """Every arm a run may name: the library's, and what this study adds."""
        own = [arm for arm in (*self.arms, *self.whole_corpus, *self.controls) if isinstance(arm, Arm)]
        return ARMS | {arm.name: arm for arm in own}

    def plan(self) -> list[Run]:
        """The runs, each once. Stopped anywhere, what has run until then is the best partial report."""
        return [self._run(place) for place in dict.fromkeys(self._places())]

    def narrowed(
        self,
        *,
        arms: Sequence[str] | None = None,
        widths: Sequence[int] | None = None,
        budgets: Sequence[float] | None = None,
        seeds: Sequence[int] | None = None,
        data: CorpusSpec | None = None,
    ) -> Study:
        """The same question for other arms (dense always runs), sizes, budgets, seeds or another text.

        Raises:
            RunError: If an arm is unknown.
        """
        changes: dict[str, Any] = {}
        if arms is not None:
            changes |= self._chosen(arms)
        if budgets is not None:
            # A third and three and a third: the frontier must reach beyond the budgets on both sides.
            changes |= {"budgets": budgets, "reach": (min(budgets) / 3, max(budgets) * 10 / 3)}
        given: dict[str, Any] = {"widths": widths, "seeds": seeds, "data": data}
        if widths is not None:  # asked for by name: all of them, at every budget
            given["frontier"] = given["reach_frontier"] = len(widths)
        return replace(self, **changes, **{name: value for name, value in given.items() if value is not None})

    def quick(self) -> Study:
        """The smallest study of this kind that still gives every kind of number, in a few minutes."""
        return replace(
            self,
            widths=(32, 48),
            budgets=(2e11,),
            reach=(7e10, 6e11),
            best_width={7e10: 32, 2e11: 32, 6e11: 48},
            seeds=tuple(self.seeds)[:1],
            whole_corpus=(),
            controls=(),
            settings={**self.settings, "evaluation_tokens": 32_768},
        )

    def width_at(self, budget: float) -> int:
        """The width that is best at a budget, as far as is known."""
        if not self.best_width:
            return sorted(self.widths)[len(self.widths) // 2]
        nearest = min(self.best_width, key=lambda known: abs(math.log(known / budget)))
        return min(self.widths, key=lambda width: abs(math.log(width / self.best_width[nearest])))

    def widths_at(self, budget: float) -> list[int]:
        """The widths of the dense frontier at a budget: the nearest to the best one, the wider of two as near."""
        best = self.width_at(budget)
        nearest = sorted(set(self.widths), key=lambda width: (round(abs(math.log(width / best)), 9), -width))
        return sorted(nearest[: self.frontier if budget in self.budgets else self.reach_frontier])

    def settings_of(self, arm: str, regime: str, width: int, budget: float) -> dict[str, Any]:
        """Every setting of a run, defaults too: a changed default is another run, not a finished one."""
        found, _ = self._found(self.arm_table[arm], regime, width, budget)
        own = self.arm_table[arm].settings
        return DEFAULTS | dict(self.settings) | dict(own) | dict(self.sized.get(width, {})) | found

    def definition_of(self, arm: str) -> dict[str, str]:
        """What an arm of your own is made of, as a setting: made otherwise it is another run."""
        found = self.arm_table[arm]
        return {} if ARMS.get(arm) is found else {"definition": definition(found)}

    @property
    def tuning_budgets(self) -> list[float]:
        """Every budget something runs at: the smallest one compared, then outwards, the nearest first."""
        budgets = {float(budget) for budget in (*self.budgets, *self.reach)}
        return sorted(budgets, key=lambda budget: abs(math.log(budget / min(self.budgets))))

    def tuning_places(self, budget: float) -> list[tuple[str, str, int]]:
        """Arm, regime and width of everything that is tuned by itself at a budget."""
        dense = [(DENSE, NO_STORE, width) for width in self.widths_at(budget)]
        if budget not in self.budgets:
            return dense
        places = [(arm, self._regime(arm)) for arm in map(self._arm, self.arms)]
        places += [(arm, WHOLE_CORPUS) for arm in map(self._arm, self.whole_corpus)]
        own = [arm for arm in map(self._arm, self.controls) if not arm.like]
        places += [(arm, regime) for arm in own for regime in self._regimes(arm)]
        width = self.width_at(budget)
        return dense + [(arm.name, regime, width) for arm, regime in places if arm.name != DENSE]

    def _places(self) -> Iterator[_Place]:
        first, *others = self.seeds
        rising, falling = sorted(self.budgets), sorted(self.budgets, reverse=True)
        same = [(arm, self._regime(arm)) for arm in map(self._arm, self.arms) if arm.name != DENSE]
        whole = [(arm, WHOLE_CORPUS) for arm in map(self._arm, self.whole_corpus)]
        controls = [(arm, regime) for arm in map(self._arm, self.controls) for regime in self._regimes(arm)]
        dense = [(arm_named(DENSE, self.arm_table), NO_STORE)]
        # The one large store takes longest: the first worker begins with it while the others train dense, and
        # arms that would wait for it come later.
        yield from self._at(whole[:1], rising[:1], first)
        yield from self._at(dense, rising, first)
        yield from self._at(same, rising, first)
        yield from self._at(whole, rising, first)
        yield from self._at(dense, self.reach, first)
        for budget in (*rising, *self.reach):
            for width in self.widths_at(budget):
                yield from self._at(dense, [budget], first, width)
        yield from self._at(controls, falling[:1], first)
        # Long runs before short ones from here on, so that no worker is left with a long one at the end.
        for rank, seed in enumerate(others, start=1):
            yield from self._at(dense, falling, seed)
            yield from self._at([*same, *whole], falling, seed)
            if rank < self.control_seeds:
                yield from self._at(controls, falling[:1], seed)

    def _at(
        self, arms: Sequence[tuple[Arm, str]], budgets: Sequence[float], seed: int, width: int | None = None
    ) -> Iterator[_Place]:
        for budget in budgets:
            for arm, regime in arms:
                yield arm.name, regime, seed, width or self.width_at(budget), float(budget)

    def _run(self, place: _Place) -> Run:
        name, regime, seed, width, budget = place
        arm = self.arm_table[name]
        settings = self.settings_of(name, regime, width, budget)
        # Mixed with counts is what to beat, at the places where arms are compared.
        compared = not arm.control and budget in self.budgets and width == self.width_at(budget)
        settings |= {"counts": compared}
        settings |= self.definition_of(name)
        _, settings_from = self._found(arm, regime, width, budget)
        return Run(self.name, name, regime, seed, width, budget, settings, settings_from)

    def _found(self, arm: Arm, regime: str, width: int, budget: float) -> tuple[dict[str, Any], str]:
        """What tuning found for a run, and whether that was found there, elsewhere or not at all."""
        kind = self._regime(arm) if arm.source is None else regime
        for name in (arm.name, arm.like):
            # Dense was tuned where nothing is stored, whoever takes after it.
            kind = NO_STORE if name == DENSE else kind
            known = [(w, b) for tuned, where, w, b in self.tuned if (tuned, where) == (name, kind)]
            if known:
                nearest = min(
                    known, key=lambda size: (abs(math.log(size[0] / width)), abs(math.log(size[1] / budget)))
                )
                found = dict(self.tuned[(name, kind, *nearest)])
                here = (name, *nearest) == (arm.name, width, budget)
                # Borrowed from another arm or size: nobody tried it here.
                found = found if here else found | {"trials": 0}
                elsewhere = OTHER_SIZE if name == arm.name else OTHER_ARM
                return found, TUNED_HERE if found.get("trials") else elsewhere
        return {}, UNTUNED

    def _regime(self, arm: Arm) -> str:
        # A memory without a store knows what it was trained on, which is the same question.
        return NO_STORE if arm.name == DENSE else SAME_TOKENS

    def _regimes(self, arm: Arm) -> tuple[str, ...]:
        """A control belongs beside every claim it explains, in its regime."""
        both = arm.source is not None and bool(self.whole_corpus)
        return (self._regime(arm), WHOLE_CORPUS) if both else (self._regime(arm),)

    def _arm(self, arm: str | Arm) -> Arm:
        return arm if isinstance(arm, Arm) else arm_named(arm, ARMS)

    def _chosen(self, names: Sequence[str]) -> dict[str, Any]:
        chosen = {arm_named(name, self.arm_table).name for name in names}
        kept = {
            group: tuple(arm for arm in getattr(self, group) if self._arm(arm).name in chosen)
            for group in ("arms", "whole_corpus", "controls")
        }
        listed = {self._arm(arm).name for group in kept.values() for arm in group}
        # An arm of the library that this study does not list can still be asked for.
        added = {name: self.arm_table[name] for name in names if name not in listed and name != DENSE}
        kept["arms"] += tuple(name for name, arm in added.items() if not arm.control)
        kept["controls"] += tuple(name for name, arm in added.items() if arm.control)
        return kept


@dataclass
class StudyWorkspace(Workspace):
    """The workspace of a study; worker processes load its arms themselves, as those may hold what no pickle can.

    Args:
        study: Name or path of the study.
    """

    study: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return _workspace, (self.study, self.spec, self.out, self.cache, self.wandb)


def named_study(name: str) -> str:
    """A study's name as a worker in another folder finds it too."""
    return str(Path(name).resolve()) if name.endswith(".py") else name


def _workspace(study: str, spec: CorpusSpec, out: Path, cache: Path, wandb: Any) -> Workspace:
    return Workspace(spec, out, cache, wandb, load_study(study).arm_table)


def load_study(name: str) -> Study:
    """A study by name, or from a Python file of your own that assigns ``study = Study(...)``.

    Raises:
        RunError: If there is none.
    """
    if name.endswith(".py"):
        module = _module_at(Path(name))
    elif name in study_names():
        module = importlib.import_module(f"{studies.__name__}.{name}")
    else:
        close = difflib.get_close_matches(name, study_names(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise RunError(
            f"unknown study {name!r}: {hint}The studies are {', '.join(study_names())}; "
            "a file of your own goes by its path, such as mine.py"
        )
    study = getattr(module, "study", None)
    if not isinstance(study, Study):
        raise RunError(f"{name} assigns no study: end the file with `study = Study(...)`")
    question = (module.__doc__ or "").strip().partition("\n\n")[0]
    return replace(study, name=study.name or Path(name).stem, question=study.question or question)


def _module_at(path: Path) -> ModuleType:
    if not path.is_file():
        raise RunError(
            f"there is no file {path}: give the path of a study, or one of {', '.join(study_names())}"
        )
    # An ordinary import, not one from a file: what it defines (a corpus of its own) must unpickle in workers.
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        module = importlib.import_module(path.stem)
    except RunError:
        raise
    except Exception as error:
        raise RunError(_fault(path, error)) from error
    if module.__file__ is None or Path(module.__file__).resolve() != path.resolve():
        raise RunError(f"{path} is hidden by another module named {path.stem!r}: rename the file")
    return module


def _fault(path: Path, error: Exception) -> str:
    """What is wrong with a study's file, and in which line."""
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}, line {error.lineno}: {error.msg}. Correct it there"
    line = own_line(error) or str(path)
    if isinstance(error, ModuleNotFoundError):
        return f"{line}: there is no module {error.name!r}. Install it, or correct the import"
    return f"{line}: {told(error)}. Correct it there"
