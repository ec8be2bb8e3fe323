"""What is wrong with options that constructors take: the reason alone, and the name that was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from importlib import import_module
from inspect import signature
from textwrap import dedent

from jsonargparse import ArgumentParser

# How jsonargparse says that a value is of none of several types, and what it says of types that were not meant.
_ONE_OF = ("Does not validate against", "- Does not validate against", "Subtypes:")
_NOT_MEANT = (
    "Expected a <class 'NoneType'>",
    "Expected a <class 'list'>",
    "Import path ",
    "Not a valid subclass of ",
    "Problem with given class_path 'lightning.Callback'",
)
_SPELLINGS = {
    r"- Expected a path but \S+ either not accessible or invalid\s+(- )?": "",
    r"Type \S+\[.*?\] expects a function or a callable class: ": "",
    r"Parser key \"(.*?)\":": r"\1:",
    r"Problem with given class_path '(.*?)':": r"\1:",
    r"\. Got value: Namespace\(.*": "",
    r"Expected a <class '(\w+)'>\. Got value": r"expected \1, got",
    r"Expected a dot import path string: (\S+)": r"there is no class \1 here; write package.Class",
}


def told(error: str, parser: ArgumentParser) -> str:
    """An error of a parser in one line, with the name that was meant.

    Args:
        error: What the parser says.
        parser: Knows the options.
    """
    unknown = re.match(r"unrecognized arguments: (-*)([^\s=]*)", error)
    if unknown is None:
        return reason(error)
    name = unknown[2]
    flat = vars(parser.get_defaults().as_flat())
    options = [key.replace(".init_args", "") for key in flat if not key.endswith("class_path")]
    ends = {option.rpartition(".")[2]: option for option in options}
    close = _closest(name, options) or ends.get(_closest(name, ends))
    return f"{error}{f': did you mean --{close}?' if close else ''}"


def reason(error: str) -> str:
    """What is wrong with a value, without what it could have been instead; a misspelt argument's nearest name.

    Args:
        error: What jsonargparse says.
    """
    text = _meant(error)
    for pattern, spelling in _SPELLINGS.items():
        text = re.sub(pattern, spelling, text)
    text = " ".join(text.split())
    unknown = re.search(r"Option '(\w+)' is not accepted", text)
    close = _closest(unknown[1], _parameters(error)) if unknown else ""
    return text.replace(unknown[0], f"{unknown[0]}: did you mean '{close}'?") if unknown and close else text


def _meant(error: str) -> str:
    lines = error.splitlines()
    start = next((number for number, line in enumerate(lines) if line.strip() == "Errors:"), None)
    if start is None:
        return error
    head = [line for line in lines[:start] if not line.strip().startswith(_ONE_OF)]
    margin = re.escape(re.match(r"\s*", lines[start])[0])  # type: ignore[index]
    inside = []
    for line in lines[start + 1 :]:
        if not re.match(rf"{margin}\s", line):
            break
        inside.append(line)
    complaints = re.split(rf"^{margin}  - ", "\n".join(inside), flags=re.MULTILINE)[1:]
    meant = next((one for one in complaints if not one.startswith(_NOT_MEANT)), complaints[0])
    first, _, rest = meant.partition("\n")
    return "\n".join([*head, _meant(f"{first}\n{dedent(rest)}")])


def _parameters(error: str) -> list[str]:
    """Arguments of the classes that an error names, which jsonargparse has imported."""
    found: list[str] = []
    for home, name in re.findall(r"class_path[ =]'([\w.]+)\.(\w+)'", error):
        found += signature(getattr(import_module(home), name)).parameters
    return found


def _closest(word: str, names: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(word, list(names), n=1)), "")
