"""How what is attached gets into a model's forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mann.attachment.call import Call, begin
from mann.attachment.head import OwnHead, use_own_head
from mann.attachment.history import keep, length_of
from mann.attachment.layers import (
    ATTENTION,
    MLP,
    Arguments,
    borrowed_roles,
    find_layers,
    find_part,
    settings_of,
)
from mann.attachment.slots import Slot
from mann.norm import rms_norm
from mann.state import Streaming

__all__ = ["Hooked", "cast"]


class Hooked(nn.Module):
    """Parts beside a model, and the hooks by which they are heard in it.

    Args:
        model: A causal language model.
        slots: What is added where.
        names: Where things are in the model: ``path``, ``attention`` and ``mlp``.
    """

    def __init__(self, model: nn.Module, slots: Sequence[Slot], names: Mapping[str, str | None]) -> None:
        super().__init__()
        hooks = model._forward_pre_hooks.values()
        if any(isinstance(getattr(hook, "__self__", None), Hooked) for hook in hooks):
            raise ValueError("the model has something attached: detach() that first, or attach all at once")
        self.names, self.slots = dict(names), list(slots)
        places = list(self._places_of(model))
        self.model = model
        self.parts = self._built(settings_of(model), places)
        self._asking = {name for name in (slot.name for slot in self.slots) if self._asks(name)}
        self._arguments = Arguments(model)
        self._call: Call | None = None
        # What the next forward pass is told, and leaves: by ``_run`` of Attached.
        self._next: dict[str, Any] = {}
        self._silent = False
        self._lent = list(borrowed_roles(model))
        for parameter, role in self._lent:
            parameter.role = role  # type: ignore[attr-defined]
        self._handles = list(self._hooks(places))

    def _places_of(self, model: nn.Module) -> Iterator[tuple[Slot, nn.Module]]:
        """The module of the model that each slot is at."""
        layers = find_layers(model, self.names["path"])
        for slot in self.slots:
            if slot.layer is None:
                yield slot, model
                continue
            layer = layers[min(slot.layer, len(layers) - 1)]
            if slot.kind != "memory":
                argument, usual = ("attention", ATTENTION) if slot.kind == "mixer" else ("mlp", MLP)
                name = self.names[argument]
                layer = find_part(layer, usual if name is None else (name,), argument)
            yield slot, layer

    def _built(self, config: Any, places: Sequence[tuple[Slot, nn.Module]]) -> nn.ModuleDict:
        parts = nn.ModuleDict()
        # Models without attention have no heads.
        more = {"mixer": (getattr(config, "num_attention_heads", 1),), "readout": (config.vocab_size,)}
        for slot, place in places:
            part = slot.build(config.hidden_size, *more.get(slot.kind, ()))
            if slot.layer is None:
                use_own_head(part, config.vocab_size)
            if (near := next(place.parameters(), None)) is not None:
                part.to(near.device, torch.float64 if near.dtype == torch.float64 else None)
            if slot.layer is None:
                parts[slot.kind] = part
                continue
            if slot.kind not in parts:
                parts[slot.kind] = nn.ModuleDict()
            parts.get_submodule(slot.kind).add_module(str(slot.layer), part)
        for name, part in parts.named_modules():
            if isinstance(part, Streaming):
                part.state_key = name
        return parts

    def _hooks(self, places: Sequence[tuple[Slot, nn.Module]]) -> Iterator[Any]:
        model: Any = self.model
        count = len(find_layers(model, self.names["path"]))
        yield model.register_forward_pre_hook(self._begin, with_kwargs=True)
        if model.base_model is not model:
            yield model.base_model.register_forward_hook(self._finish)
        for slot, place in places:
            if slot.kind == "memory" and slot.layer != count:
                yield place.register_forward_pre_hook(partial(self._before, slot.name), with_kwargs=True)
            elif slot.layer is not None:
                yield place.register_forward_hook(partial(self._beside, slot.name), with_kwargs=True)
        yield model.register_forward_hook(self._end, with_kwargs=True, always_call=True)

    def part(self, name: str) -> nn.Module:
        """What is in a slot, by its kind and layer: ``part("memory.1")``.

        Args:
            name: Of the slot.
        """
        return self.parts.get_submodule(name)

    @property
    def readout(self) -> nn.Module | None:
        """The readout, if there is one."""
        return self.part("readout") if "readout" in self.parts else None

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._silent:
            return
        # model.eval() is for what was added, too.
        if self.parts.training != module.training:
            self.parts.train(module.training)
        inside = sorted(name for name in self._asking if name.startswith(("mixer", "feedforward")))
        if inside and module.training and getattr(module, "is_gradient_checkpointing", False):
            raise ValueError(
                "gradient checkpointing runs layers again when their tokens are gone, which "
                f"{', '.join(inside)} cannot do: disable it (model.gradient_checkpointing_disable()), or attach "
                "memories and ProductKeyMemory alone"
            )
        if "context" in self._next:
            context, targets = self._next["context"], self._next["targets"]
            time = context.tokens.shape[1]
            self._call = Call(context.tokens, context.documents, time, context=context, targets=targets)
        else:
            self._call = begin(self._arguments(args, kwargs))

    def _asks(self, name: str) -> bool:
        """Whether a part wants to know the tokens."""
        takes = inspect.signature(self.part(name).forward).parameters
        return not name.startswith("feedforward") or "context" in takes

    def _before(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if self._silent:
            return None
        key, x = _first(args, kwargs)
        x = x + self._update(name, x)
        return ((x, *args[1:]), kwargs) if key is None else (args, {**kwargs, key: x})

    def _beside(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if self._silent:
            return None
        y = output if isinstance(output, Tensor) else output[0]
        if name.startswith("memory"):
            y = y + self._update(name, y)
        else:
            x = rms_norm(cast(_first(args, kwargs)[1], self.part(name)))
            y = y + self._update(name, x).to(y.dtype)
        return y if isinstance(output, Tensor) else (y, *output[1:])

    def _update(self, name: str, x: Tensor) -> Tensor:
        """What a part adds at the new positions."""
        if x.ndim != 3:
            raise ValueError(
                f"{name} is given a stream of shape {tuple(x.shape)}, it takes [batch, time, width]: this model has "
                "another kind of layers"
            )
        part, dtype = self.part(name), x.dtype
        x = cast(x, part)
        if name not in self._asking:
            return part(x).to(dtype)
        call = self._call
        if call is None:
            raise ValueError(
                f"{name} does not know the tokens: call the whole model, not a part of it, and disable gradient "
                "checkpointing if that has run a layer again"
            )
        wide = call.widen(name, part, x, call.time)
        return part(wide, call.context_of(wide.shape[1], x.device))[:, -call.time :].to(dtype)

    def _finish(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._call is not None:
            # Something around a model, as of PEFT, gives another output.
            self._call.final = (
                output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", None)
            )

    def _end(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        call, self._call = self._call, None
        if self._silent or call is None or output is None:
            return None
        given = self._arguments(args, kwargs)
        if self.readout is not None:
            output = self._read_out(self.readout, call, given, output)
        if "context" in self._next:
            self._next["call"] = call
        cache = getattr(output, "past_key_values", None) or given.get("past_key_values")
        if cache is not None and length_of(cache) == call.tokens.shape[1]:
            keep(cache, call.read())
        return output

    def _read_out(self, readout: nn.Module, call: Call, given: Mapping[str, Any], output: Any) -> Any:
        """The output with log-probabilities in place of logits; or, with targets, the loss in the call."""
        logits = getattr(output, "logits", None)
        if logits is None or call.final is None or isinstance(given.get("logits_to_keep"), Tensor):
            raise ValueError(
                "a readout needs the last hidden state and its logits: return_dict=True, and logits_to_keep a number"
            )
        if call.context is not None and call.targets is None:
            return output
        wide = call.widen("readout", readout, cast(call.final, readout), logits.shape[1])
        context = call.context_of(wide.shape[1], wide.device)
        self._own_head().know(wide, logits)
        if call.targets is not None:
            call.loss = readout(wide, context, call.targets)
            return output
        output["logits"] = readout(wide, context)[:, -logits.shape[1] :].to(logits.dtype)
        if (labels := given.get("labels")) is not None:
            count = given.get("num_items_in_batch")
            settings = {} if count is None else {"num_items_in_batch": count}
            model: Any = self.model
            loss = partial(model.loss_function, labels=labels, vocab_size=logits.shape[-1], **settings)
            # Whatever else the model added to its loss stays.
            output["loss"] = output["loss"] + (loss(logits=output["logits"]) - loss(logits=logits))
        return output

    def _own_head(self) -> OwnHead:
        head = getattr(self.readout, "softmax", None)
        if not isinstance(head, OwnHead):
            raise ValueError("the readout has lost the head of its model: attach it again")
        return head


def cast(x: Tensor, part: nn.Module) -> Tensor:
    """In the type of the part's numbers: they are in float32 unless they were cast, for they are trained.

    Args:
        x: Any states.
        part: What they are for.

    Shapes:
        x and output: ``[batch, time, width]``.
    """
    return x.to(next((p.dtype for p in part.parameters() if p.is_floating_point()), x.dtype))


def _first(args: Any, kwargs: Any) -> tuple[str | None, Tensor]:
    """What a module is given first, and by which name if by one."""
    if args:
        return None, args[0]
    name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
    return name, kwargs[name]
