"""What ``mnemograph bill`` is asked about: a class, a checkpoint or a Hugging Face folder, made into a model."""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from torch import nn

from experiments.errors import RunError

CLASS = "mnemograph bill torch.nn.TransformerEncoderLayer --init d_model=64 nhead=4 --input 4x128x64"
# What holds weights and not what is computed with them.
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".npz")


@dataclass(frozen=True)
class Target:
    """A model that can be built.

    Args:
        name: What it is called.
        build: Makes it.
        vocab_size: Number of tokens it takes, where that is known: then it needs no ``--input``.
        trains_itself: Whether it is a LightningModule, which has its own step and optimizer.
    """

    name: str
    build: Callable[[], nn.Module]
    vocab_size: int | None = None
    trains_itself: bool = False


def find_target(name: str, init: Sequence[str], class_path: str | None) -> Target:
    """The model of a class path, a ``.ckpt`` of Lightning, or a folder of Hugging Face.

    Nothing is imported that the command line does not name, and no weights are loaded.

    Args:
        name: What was typed.
        init: Constructor arguments, as ``name=value``.
        class_path: The class of a checkpoint.

    Raises:
        RunError: If there is no such thing; the message says what to type.
    """
    path = Path(name)
    if path.suffix == ".ckpt":
        return _of_checkpoint(path, init, class_path)
    if path.suffix == ".safetensors" or path.exists():
        return _of_folder(path if path.is_dir() else path.parent, path)
    return of_class(name, init)


def of_class(name: str, init: Sequence[str], given: dict[str, Any] | None = None) -> Target:
    """The model of a class and its constructor arguments.

    Args:
        name: Dotted path.
        init: Arguments as typed.
        given: Arguments by name, which those typed replace.
    """
    made = _class(name)
    config = getattr(made, "config_class", None)
    # A Hugging Face model takes one object that holds its arguments.
    arguments = _arguments(config or made, init, given or {}, name)

    def build() -> nn.Module:
        try:
            return made(config(**arguments())) if config else made(**arguments())
        except (AssertionError, TypeError, ValueError) as error:
            typed = f" {' '.join(init)}" if init else " the defaults"
            raise RunError(f"{name} cannot be made of{typed}: {error or repr(error)}") from error

    vocab = getattr(config(**arguments()), "vocab_size", None) if config else None
    return Target(name.rsplit(".", 1)[-1], build, vocab, issubclass(made, LightningModule))


def _class(name: str) -> Any:
    home, _, word = name.rpartition(".")
    # A model of one's own lies where the command is typed, which an installed command does not look into.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = import_module(home)
    except ImportError as error:
        raise RunError(f"no module {home!r} for {name} ({error}); a class is written {CLASS}") from error
    found = getattr(module, word, None)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        names = [key for key in dir(module) if key[:1].isupper()]
        raise RunError(f"{home} has no model {word!r}{_close(word, names)}")
    return found


def _arguments(
    signature: Any, init: Sequence[str], given: dict[str, Any], name: str
) -> Callable[[], dict[str, Any]]:
    """Makes the arguments, those typed as the constructor's annotations say; what they contain is made each time."""
    from jsonargparse import ArgumentParser

    typed: dict[str, str] = {}
    for item in init:
        word, equals, value = item.partition("=")
        if not equals:
            raise RunError(f"--init {item!r} has no value: write it as --init {item}=64")
        typed[word] = value
    every = ArgumentParser(exit_on_error=False, add_help=False)
    takes = every.add_class_arguments(signature, fail_untyped=False, instantiate=False)
    for word in {**given, **typed}:
        if word not in takes:
            raise RunError(f"{name} takes no {word!r}{_close(word, takes) or ', only ' + ', '.join(takes)}")
    needs = [
        word for word, one in inspect.signature(signature).parameters.items() if one.default is one.empty
    ]
    missing = [word for word in takes if word in needs and word not in {**given, **typed}]
    if missing:
        wanted = " ".join(f"{word}=..." for word in missing)
        raise RunError(f"{name} needs {', '.join(missing)}: add --init {wanted}")
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    others: set[str | int] = {word for word in takes if word not in typed}
    parser.add_class_arguments(signature, fail_untyped=False, instantiate=False, skip=others)
    try:
        read = parser.parse_args([f"--{word}={value}" for word, value in typed.items()])
    except argparse.ArgumentError as error:
        raise RunError(f"{name}: {' '.join(str(error).split())}") from error

    def make() -> dict[str, Any]:
        made = parser.instantiate_classes(read)
        return {**given, **{word: getattr(made, word) for word in typed}}

    return make


def _of_checkpoint(path: Path, init: Sequence[str], class_path: str | None) -> Target:
    if not path.exists():
        raise RunError(f"there is no file {path}")
    try:
        state = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except Exception as error:
        raise RunError(
            f"{path} cannot be read without running code that it contains ({str(error).splitlines()[0]}); "
            f"name its class instead: {CLASS}"
        ) from error
    kept = dict(state.get("hyper_parameters", {})) if isinstance(state, dict) else {}
    named = kept.pop("_class_path", None)
    kept.pop("_instantiator", None)
    if class_path is None:
        # A file must not decide what is imported.
        told = f"it names {named}, so " if named else ""
        raise RunError(f"which class is {path}? {told}type --class {named or 'package.Model'}")
    return of_class(class_path, init, kept)


def _of_folder(folder: Path, path: Path) -> Target:
    config = folder / "config.json"
    if path.is_file() and path.suffix not in WEIGHTS and path != config:
        inside = f"; a class in it is written {path.stem}.Model" if path.suffix == ".py" else ""
        raise RunError(
            f"{path} is no model{inside}: give an arm, a class, a .ckpt of Lightning, or a folder of Hugging Face, "
            f"such as {CLASS}"
        )
    if path.is_dir() and not config.exists():
        raise RunError(
            f"{path} is no model: a folder of Hugging Face has a config.json. Or name a class: {CLASS}"
        )
    if not config.exists():
        raise RunError(
            f"{path} tells shapes of weights, not what is computed with them, and there is no {config}: "
            f"name its class instead, {CLASS}"
        )
    about = json.loads(config.read_text(encoding="utf-8"))
    names = about.get("architectures") or []
    if len(names) != 1 or not names[0].isidentifier():
        raise RunError(
            f"{config} names {len(names)} architectures: type the class, transformers.GPT2LMHeadModel"
        )
    made = _class(f"transformers.{names[0]}")
    settings = made.config_class.from_json_file(config)
    return Target(names[0], lambda: made(settings), getattr(settings, "vocab_size", None))


def read_input(specs: Sequence[str], device: str) -> Any:
    """A batch of made-up values.

    A spec is ``4x128x64`` (float32), ``bfloat16 4x128x64``, ``int64 8x128 <2048``, each optionally behind ``name=``.
    Named inputs make a dictionary, several others a tuple.

    Args:
        specs: One for each tensor.
        device: Where it shall be; on "meta" it takes no memory.
    """
    named: dict[str, torch.Tensor] = {}
    plain: list[torch.Tensor] = []
    for spec in specs:
        name, equals, rest = spec.rpartition("=")
        tensor = _tensor(rest, spec, device)
        if equals:
            named[name] = tensor
        else:
            plain.append(tensor)
    if named and plain:
        raise RunError("give every --input a name (tokens=int64 8x128 <2048), or none")
    return named or (plain[0] if len(plain) == 1 else tuple(plain))


def _tensor(text: str, spec: str, device: str) -> torch.Tensor:
    words = text.split()
    kind = words.pop(0) if words and not words[0][:1].isdigit() else "float32"
    bound = int(words.pop()[1:]) if words and words[-1][:1] == "<" and words[-1][1:].isdigit() else 2
    dtype = getattr(torch, kind, None)
    if len(words) != 1 or not isinstance(dtype, torch.dtype) or not words[0].replace("x", "").isdigit():
        raise RunError(
            f"--input {spec!r}: write 4x128x64, or 'int64 8x128 <2048', or 'tokens=int64 8x128 <2048'"
        )
    shape = [int(size) for size in words[0].split("x") if size]
    if 0 in shape:
        raise RunError(f"--input {spec!r} is empty: every size must be at least 1, such as 4x128x64")
    if device == "meta" or dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.randint(0, bound, shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _close(word: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, names, n=1)
    return f": did you mean {close[0]!r}?" if close else ""
