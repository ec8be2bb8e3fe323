"""A W&B sweep file: read, and checked key by key."""

from __future__ import annotations

import difflib
import functools
import json
import math
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from experiments.errors import RunError
from experiments.sweep.parameter import CHOICES, IN_A_GRID, KEYS, Parameter

METHODS = ("grid", "random", "bayes")
IMPUTE = ("worst", "best", "latest")
MACROS = (
    *("env", "interpreter", "program", "args", "args_no_hyphens", "args_no_boolean_flags"),
    *("args_append_hydra", "args_override_hydra", "args_json", "args_json_file"),
)
COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
KEYS_OF_FILE = (
    "program",
    "command",
    "method",
    "metric",
    "parameters",
    "name",
    "description",
    "project",
    "entity",
    "run_cap",
    "early_terminate",
    "apiVersion",
    "kind",
)
# W&B knows these too; what they ask for exists only on its servers.
ONLINE_ONLY = ("controller", "job", "image_uri", "scheduler", "metrics")


@dataclass(frozen=True)
class Metric:
    """What a sweep is after.

    Args:
        name: As it is logged.
        goal: Which way is better.
        target: No further trial begins once one has reached this.
        impute: What ``bayes`` takes a failed trial to have been worth.
    """

    name: str
    goal: Literal["minimize", "maximize"] = "minimize"
    target: float | None = None
    impute: Literal["worst", "best", "latest"] = "worst"

    def cost(self, value: float) -> float:
        """The value as something to be made small."""
        return -value if self.goal == "maximize" else value

    def reached(self, value: float | None) -> bool:
        """Whether this is as good as was asked for."""
        return self.target is not None and value is not None and self.cost(value) <= self.cost(self.target)


@dataclass(frozen=True)
class EarlyTerminate:
    """Hyperband as W&B reads it: at certain numbers of logged values, only the best 1/eta of the trials go on.

    Args:
        min_iter: The first of these numbers; the next ones are eta times as large.
        max_iter: Or: the largest, itself no stop; ``s`` smaller ones, each a part of 1/eta of the next.
        eta: See above.
        s: See above.
        strict: Judge the value at the stop, not the best value so far.
    """

    min_iter: int | None = None
    max_iter: int | None = None
    eta: float = 3
    s: int = 0
    strict: bool = True


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Args:
        path: Where it lies.
        raw: What it says.
        method: How parameters are chosen.
        parameters: In the order of their names.
        metric: What it is after; ``grid`` and ``random`` can do without.
        early_terminate: When a trial is given up.
        command: What a trial runs, with W&B's ``${...}``.
        run_cap: Trials in all.
    """

    path: Path
    raw: Mapping[str, Any]
    method: str
    parameters: tuple[Parameter, ...]
    metric: Metric | None
    early_terminate: EarlyTerminate | None
    command: tuple[str, ...]
    run_cap: int | None

    @property
    def name(self) -> str:
        """The name of the sweep, by default the file's."""
        return str(self.raw.get("name") or self.path.stem)

    def named(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a trial by their names, with dots between levels."""
        return {one.name: functools.reduce(operator.getitem, one.path, params) for one in self.parameters}


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file.

    Raises:
        RunError: If something is wrong with it; the message names the key.
    """
    if not path.is_file():
        raise RunError(f"there is no file {path}: give the path of a W&B sweep file, such as sweep.yaml")
    try:
        # As it comes back from W&B's server: a key such as 0 is a text there.
        raw = json.loads(json.dumps(yaml.safe_load(path.read_text()), default=str))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    try:
        return _sweep(path, _mapping(raw, ""))
    except _WrongError as wrong:
        raise RunError(f"{path}: {wrong}") from None


class _WrongError(ValueError):
    pass


def _sweep(path: Path, raw: Mapping[str, Any]) -> Sweep:
    for key in ONLINE_ONLY:
        if key in raw:
            _refuse(key, "needs W&B's servers; create that sweep with `wandb sweep`, or take the key out")
    _known(raw, KEYS_OF_FILE, "")
    method = _one_of(raw, "method", METHODS, "") or _refuse(
        "method", f"is missing: one of {', '.join(METHODS)}"
    )
    nested = raw.get("parameters")
    if not nested:
        _refuse("parameters", "is missing: name what is to be varied")
    parameters = tuple(_parameters(_mapping(nested, "parameters"), "parameters", ()))
    names = [parameter.name for parameter in parameters]
    for name in names:
        if names.count(name) > 1:
            _refuse(f"parameters.{name}", "is there twice, once by its dots and once level by level")
    if method == "grid":
        for parameter in parameters:
            if parameter.distribution not in IN_A_GRID:
                _refuse(
                    f"parameters.{parameter.name}",
                    f"{parameter.distribution} has no end, and method: grid tries every value; give values, or one "
                    f"of {', '.join(IN_A_GRID)}",
                )
    metric = _metric(raw)
    early = _early_terminate(raw)
    if metric is None and (method == "bayes" or early):
        what = "method: bayes" if method == "bayes" else "early_terminate"
        _refuse("metric", f"is missing: {what} needs metric.name, as your program logs it")
    return Sweep(path, raw, method, parameters, metric, early, _command(raw), _whole(raw, "run_cap", "", 1))


def _parameters(nested: Mapping[str, Any], where: str, above: tuple[str, ...]) -> Iterable[Parameter]:
    """In the order of their names, level by level, as W&B goes through a grid."""
    for name, entry in sorted(nested.items(), key=lambda item: str(item[0])):
        here = f"{where}.{name}"
        if not isinstance(name, str) or not NAME.fullmatch(name):
            _refuse(here, "a name begins with a letter or _ and goes on with letters, digits and _ . -")
        entry = _mapping(entry, here)
        if "parameters" in entry:
            _known(entry, ("parameters",), here)
            inner = f"{here}.parameters"
            yield from _parameters(_mapping(entry["parameters"], inner), inner, (*above, name))
        else:
            yield _parameter((*above, name), entry, here)


def _parameter(path: tuple[str, ...], entry: Mapping[str, Any], where: str) -> Parameter:
    distribution = entry.get("distribution") or _implied(entry, where)
    if distribution not in KEYS:
        _refuse(f"{where}.distribution", f"{distribution!r} is none of {', '.join(KEYS)}", distribution, KEYS)
    keys = KEYS[distribution]
    _known(entry, (*keys, "distribution"), where, f" of {distribution}")
    for key, default in keys.items():
        if default is None and key not in entry:
            _refuse(f"{where}.{key}", f"is missing: {distribution} needs {' and '.join(keys)}")
    options = {key: entry.get(key, default) for key, default in keys.items()}
    if distribution in CHOICES:
        _check_choices(options, where)
    elif distribution != "constant":
        _check_numbers(distribution, options, where)
    return Parameter(path, distribution, options)


def _implied(entry: Mapping[str, Any], where: str) -> str:
    if "value" in entry:
        return "constant"
    if "values" in entry:
        return "categorical_w_probabilities" if "probabilities" in entry else "categorical"
    if "min" in entry and "max" in entry:
        whole = all(isinstance(entry[key], int) for key in ("min", "max"))
        return "int_uniform" if whole else "uniform"
    _refuse(where, "says no values: give value, values, min and max, or a distribution")


def _check_choices(options: Mapping[str, Any], where: str) -> None:
    values = options["values"]
    if not isinstance(values, list) or not values:
        _refuse(f"{where}.values", f"must be a list of at least one value, not {values!r}")
    if "probabilities" in options:
        shares = options["probabilities"]
        if not isinstance(shares, list) or len(shares) != len(values):
            _refuse(f"{where}.probabilities", f"must be a list of {len(values)} numbers, one for each value")
        for number, share in enumerate(shares):
            _number(share, f"{where}.probabilities[{number}]", least=0)
        if not math.isclose(sum(shares), 1, abs_tol=1e-6):
            _refuse(f"{where}.probabilities", f"must add up to 1, not to {sum(shares):g}")


def _check_numbers(distribution: str, options: Mapping[str, Any], where: str) -> None:
    for key, value in options.items():
        _number(value, f"{where}.{key}")
        if key in ("a", "b", "q") and value <= 0:
            _refuse(f"{where}.{key}", f"must be above 0, not {value}")
        if key == "sigma" and value < 0:
            _refuse(f"{where}.sigma", f"must not be below 0, not {value}")
    if "min" not in options:
        return
    low, high = options["min"], options["max"]
    if distribution == "int_uniform" and not (isinstance(low, int) and isinstance(high, int)):
        _refuse(where, f"int_uniform needs whole numbers, not min {low} and max {high}")
    if low >= high:
        _refuse(where, f"min {low} is not below max {high}")
    if distribution.endswith("_values") and low <= 0:
        _refuse(f"{where}.min", f"must be above 0 for {distribution}, not {low}")
    if distribution.endswith("log_uniform") and max(abs(low), abs(high)) > 700:
        _refuse(
            where, f"{distribution} takes min and max as natural logarithms; you mean {distribution}_values"
        )


def _metric(raw: Mapping[str, Any]) -> Metric | None:
    if "metric" not in raw:
        return None
    entry = _mapping(raw["metric"], "metric")
    _known(entry, ("name", "goal", "target", "impute", "impute_while_running"), "metric")
    if not isinstance(entry.get("name"), str):
        _refuse("metric.name", "is missing: the name under which your program logs it")
    if str(entry.get("impute_while_running", "false")).lower() != "false":
        _refuse("metric.impute_while_running", "needs W&B's servers; take it out, or say false")
    target = entry.get("target")
    if target is not None:
        _number(target, "metric.target")
    goal: Any = _one_of(entry, "goal", ("minimize", "maximize"), "metric") or "minimize"
    impute: Any = _one_of(entry, "impute", IMPUTE, "metric") or "worst"
    return Metric(entry["name"], goal, target, impute)


def _early_terminate(raw: Mapping[str, Any]) -> EarlyTerminate | None:
    if "early_terminate" not in raw:
        return None
    where = "early_terminate"
    entry = _mapping(raw[where], where)
    _known(entry, ("type", "min_iter", "max_iter", "eta", "s", "strict"), where)
    if _one_of(entry, "type", ("hyperband",), where) is None:
        _refuse(f"{where}.type", "is missing: hyperband")
    least, most = _whole(entry, "min_iter", where, 1), _whole(entry, "max_iter", where, 1)
    steps = _whole(entry, "s", where, 1)
    if least is None and (most is None or steps is None):
        _refuse(where, "needs min_iter, or max_iter and s")
    eta = entry.get("eta", 3)
    _number(eta, f"{where}.eta")
    if eta <= 1:
        _refuse(f"{where}.eta", f"must be above 1, not {eta}")
    if most is not None and steps is not None and most / eta < 1:
        _refuse(f"{where}.max_iter", f"{most} with eta {eta} leaves no stop: raise it")
    strict = entry.get("strict", True)
    if not isinstance(strict, bool):
        _refuse(f"{where}.strict", f"must be true or false, not {strict!r}")
    return EarlyTerminate(least, most if steps else None, float(eta), steps or 0, strict)


def _command(raw: Mapping[str, Any]) -> tuple[str, ...]:
    given = raw.get("command", list(COMMAND))
    if not isinstance(given, list) or not given:
        _refuse("command", "must be a list of words, such as [${env}, python, train.py, ${args}]")
    words = tuple(str(word) for word in given)
    for word in words:
        name = word[2:-1]
        macro = word.startswith("${") and word.endswith("}") and not name.startswith("envvar:")
        if macro and name not in MACROS:
            _refuse(
                "command", f"{word} is none of {', '.join(f'${{{one}}}' for one in MACROS)}", name, MACROS
            )
    program = raw.get("program")
    if "${program}" in words and not isinstance(program, str):
        _refuse("program", "is missing: the script a trial runs")
    if isinstance(program, str) and program.endswith(".py") and not Path(program).is_file():
        _refuse("program", f"there is no file {program} in {Path.cwd()}, where trials are started")
    return words


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not value:
        raise _WrongError(f"{where or 'the file'} must be keys and values, not {value!r}")
    return value


def _known(entry: Mapping[str, Any], allowed: Iterable[str], where: str, what: str = "") -> None:
    for key in entry:
        if key not in allowed:
            place = f"{where}.{key}" if where else str(key)
            _refuse(place, f"is no key{what}; allowed are {', '.join(allowed)}", str(key), allowed)


def _one_of(entry: Mapping[str, Any], key: str, allowed: tuple[str, ...], where: str) -> str | None:
    place = f"{where}.{key}" if where else key
    if key not in entry:
        return None
    value = entry[key]
    if value not in allowed:
        _refuse(place, f"{value!r} is none of {', '.join(allowed)}", str(value), allowed)
    return value


def _whole(entry: Mapping[str, Any], key: str, where: str, least: int) -> int | None:
    value = entry.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        _refuse(f"{where}.{key}" if where else key, f"must be a whole number from {least} on, not {value!r}")
    return value


def _number(value: Any, where: str, least: float = -math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        hint = " (YAML reads 1e-3 as text: write 1.0e-3)" if isinstance(value, str) else ""
        _refuse(where, f"must be a number, not {value!r}{hint}")
    if value < least:
        _refuse(where, f"must not be below {least:g}, not {value}")


def _refuse(where: str, why: str, given: str = "", allowed: Iterable[str] = ()) -> NoReturn:
    close = difflib.get_close_matches(str(given), [str(name) for name in allowed], n=1) if given else []
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise _WrongError(f"{where}: {why}{hint}")
