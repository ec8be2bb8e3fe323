"""What was attached to a model, in a folder: weights as safetensors, everything else as JSON, no code."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mann.attachment.layers import settings_of
from mann.attachment.slots import KINDS, Build
from retrieval import Datastore, Source
from retrieval.snapshot import SnapshotError, open_snapshot, writing_snapshot

__all__ = ["KIND", "VERSION", "Spec", "is_given_again", "load", "save"]

KIND, VERSION = "attached memory", 1
_WEIGHTS = "memory.safetensors"
_SIZES = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
# Numbers of each parameter by which a model is known again, and how near they must be: bfloat16 has eight bits.
_SAMPLE, _NEAR = 4, 0.02


def is_given_again(value: object) -> bool:
    """Whether an argument is a store or the like, which is not saved: it is given again when the memory is loaded."""
    return isinstance(value, (Source, Datastore)) or isinstance(getattr(value, "fingerprint", None), str)


def save(attached: Any, folder: str | Path, tokenizer: Any, sources: Mapping[str, Any] | None) -> None:
    """As :meth:`Attached.save_pretrained`."""
    spec = Spec(sources or {})
    slots = [
        {"kind": slot.kind, "layer": slot.layer, "build": spec.of(slot.build, slot.name)}
        for slot in attached.slots
    ]
    tensors, extra = {}, {}
    for name, value in attached.parts.state_dict().items():
        if isinstance(value, Tensor):
            tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        else:
            extra[name] = value
    about = {
        "slots": slots,
        "names": attached.names,
        "sources": {name: _fingerprint(value) for name, value in spec.sources.items()},
        "extra": extra,
        "sizes": _sizes(attached.model),
        "weights": _sample(attached.model),
        "tokenizer": None if tokenizer is None else _vocabulary(tokenizer),
    }
    with writing_snapshot(folder, KIND, VERSION, about) as beside:
        save_file(tensors, beside / _WEIGHTS)


def load(
    attach: Callable[..., Any],
    model: nn.Module | str | Path,
    folder: str | Path,
    sources: Mapping[str, Any] | None,
    tokenizer: Any,
    same_weights: bool,
) -> Any:
    """As :meth:`Attached.from_pretrained`."""
    about = open_snapshot(folder, KIND, VERSION)
    sources = dict(sources or {})
    _check_sources(about["sources"], sources, folder)
    builds: dict[str, Any] = {}
    for slot in about["slots"]:
        build, kind, layer = _made(slot["build"], sources, folder), slot["kind"], slot["layer"]
        if kind not in KINDS:
            raise SnapshotError(
                f"{folder} attaches a {kind!r}, which is none of {KINDS}: it is not to be trusted"
            )
        if layer is None:
            builds[kind] = build
        else:
            builds.setdefault(kind, {})[layer] = build
    if tokenizer is not None and about["tokenizer"] not in (None, _vocabulary(tokenizer)):
        raise ValueError(
            f"the memory in {folder} was trained with another tokenizer, by whose tokens its tables were looked up: "
            "give the tokenizer it was saved with"
        )
    if not isinstance(model, nn.Module):
        model = _loaded(str(model))
    _check_model(about, model, folder, same_weights)
    names = {name: about["names"].get(name) for name in ("path", "attention", "mlp")}
    try:
        attached = attach(model, **builds, **names)
    except TypeError as error:
        raise _unfit(folder, error) from None
    try:
        tensors = load_file(Path(folder) / _WEIGHTS)
        attached.parts.load_state_dict({**tensors, **about["extra"]})
    except RuntimeError as error:
        attached.detach()
        raise _unfit(folder, error) from None
    except BaseException:
        attached.detach()
        raise
    return attached


def _unfit(folder: str | Path, error: Exception) -> SnapshotError:
    return SnapshotError(
        f"what is in {folder} does not fit what this version makes of it ({str(error).splitlines()[-1].strip()}): "
        "load it with the version that saved it, or train it anew"
    )


class Spec:
    """Turns what builds a part into JSON.

    Args:
        sources: Names of stores.

    Attributes:
        sources: Stores that occurred, by their names.
    """

    def __init__(self, sources: Mapping[str, Any]) -> None:
        self.names = {id(value): name for name, value in sources.items()}
        self.sources: dict[str, Any] = {}

    def of(self, value: Any, where: str) -> Any:
        """What stands for a value.

        Args:
            value: A builder, or an argument.
            where: What it is, for messages; a store without a name gets the last part of it.

        Raises:
            ValueError: If nothing can.
        """
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (list, tuple)):
            return [self.of(item, where) for item in value]
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {"dictionary": {key: self.of(item, f"{where}.{key}") for key, item in value.items()}}
        if is_given_again(value):
            return {"source": self._name(value, where.rpartition(".")[2])}
        if callable(value):
            return self._build(value, where)
        raise ValueError(
            f"{where} is a {type(value).__name__}, which cannot be saved: numbers, texts, lists, classes of mann and "
            "stores can"
        )

    def _build(self, build: Any, where: str) -> Any:
        kind = build.func if isinstance(build, partial) else build
        name = next((name for name, value in _exported().items() if value is kind), None)
        if name is None:
            raise ValueError(
                f"{where} is made by {getattr(kind, '__qualname__', kind)}, which could not be loaded: only classes "
                "that mann exports can be saved, alone or in functools.partial"
            )
        given = build.keywords if isinstance(build, partial) else {}
        if getattr(build, "args", ()):
            raise ValueError(
                f"{where} is a partial with nameless arguments: give {name} its arguments by name"
            )
        return {
            "class": name,
            "arguments": {key: self.of(item, f"{where}.{key}") for key, item in given.items()},
        }

    def _name(self, value: Any, argument: str) -> str:
        if id(value) not in self.names:
            taken = {*self.sources, *self.names.values()}
            names = (
                argument if number == 1 else f"{argument}{number}" for number in range(1, len(taken) + 2)
            )
            self.names[id(value)] = next(name for name in names if name not in taken)
        self.sources[self.names[id(value)]] = value
        return self.names[id(value)]


def _made(value: Any, sources: Mapping[str, Any], folder: str | Path) -> Any:
    """What :class:`Spec` has turned into JSON; of classes none but those that ``mann`` exports."""
    if isinstance(value, list):
        return [_made(item, sources, folder) for item in value]
    if not isinstance(value, dict):
        return value
    if "dictionary" in value:
        return {key: _made(item, sources, folder) for key, item in value["dictionary"].items()}
    if "source" in value:
        return sources[value["source"]]
    if value["class"] not in _exported():
        raise SnapshotError(
            f"{folder} asks for {value['class']!r}, which is no class that this version of mann exports: update "
            "mnemograph, or do not trust it"
        )
    given = {key: _made(item, sources, folder) for key, item in value["arguments"].items()}
    return partial(_exported()[value["class"]], **given)


def _exported() -> dict[str, Build]:
    mann = importlib.import_module("mann")
    things = {name: getattr(mann, name) for name in mann.__all__}
    return {
        name: thing
        for name, thing in things.items()
        if isinstance(thing, type) and issubclass(thing, nn.Module)
    }


def _check_sources(wanted: Mapping[str, Any], sources: Mapping[str, Any], folder: str | Path) -> None:
    for name, fingerprint in wanted.items():
        if name not in sources:
            raise ValueError(f"the memory in {folder} reads a store: give sources={{{name!r}: ...}}")
        if fingerprint != _fingerprint(sources[name]):
            raise ValueError(
                f"{name!r} is another store than the memory in {folder} was trained with: rebuild that one"
            )


def _check_model(about: Mapping[str, Any], model: nn.Module, folder: str | Path, same_weights: bool) -> None:
    sizes = _sizes(model)
    if other := [
        f"{name} {about['sizes'].get(name)}" for name in sizes if sizes[name] != about["sizes"].get(name)
    ]:
        raise ValueError(
            f"the memory in {folder} was attached to another model ({', '.join(other)}), this one has "
            f"{', '.join(f'{name} {value}' for name, value in sizes.items())}: load that one"
        )
    if not same_weights:
        return
    here, there = _sample(model), about["weights"]
    both = [(torch.tensor(here[name]), torch.tensor(there[name])) for name in here.keys() & there.keys()]
    near = sum(torch.allclose(a, b, rtol=_NEAR, atol=1e-6, equal_nan=True) for a, b in both)
    if near < len(both) or 2 * len(both) < len(there):
        raise ValueError(
            f"the memory in {folder} was trained beside other weights than those of this model ({len(there) - near} of "
            f"{len(there)} parameters differ): load that model (after train='all', the one that was trained, saved by "
            "attached.model.save_pretrained), or say same_weights=False"
        )


def _sizes(model: nn.Module) -> dict[str, Any]:
    config = settings_of(model)
    return {name: getattr(config, name, None) for name in _SIZES}


def _sample(model: nn.Module) -> dict[str, list[float]]:
    """A few numbers of every parameter."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not parameter.is_meta and parameter.numel():
            at = torch.linspace(0, parameter.numel() - 1, _SAMPLE, device=parameter.device).long()
            found[name] = parameter.detach().flatten()[at].float().tolist()
    return found


def _fingerprint(source: Any) -> str | None:
    fingerprint = getattr(source, "fingerprint", None)
    return fingerprint if isinstance(fingerprint, str) else None


def _vocabulary(tokenizer: Any) -> str:
    text = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _loaded(name: str) -> nn.Module:
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        raise ValueError(
            f"to load {name!r} by its name, install transformers; or give the model itself"
        ) from None
    return transformers.AutoModelForCausalLM.from_pretrained(name)
