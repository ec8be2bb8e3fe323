"""Which parts are put where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["KINDS", "Build", "Slot", "Where", "plan"]

Build = Callable[..., nn.Module]
Where = Build | Mapping[int, Build] | None
KINDS = ("memory", "mixer", "feedforward", "readout")


@dataclass(frozen=True)
class Slot:
    """A part and its place.

    Args:
        kind: One of :data:`KINDS`.
        layer: Which decoder layer it belongs to; ``None`` for a readout.
        build: Makes it.
    """

    kind: str
    layer: int | None
    build: Build

    @property
    def name(self) -> str:
        """Where it is among all that is attached."""
        return self.kind if self.layer is None else f"{self.kind}.{self.layer}"


def plan(
    layers: Sequence[int] | Mapping[int, Build] | None,
    parts: Mapping[str, Where],
    readout: Build | None,
    count: int,
) -> list[Slot]:
    """Slots of all that is asked for.

    Args:
        layers: Where parts go that do not say it themselves; or memories, each with its layer.
        parts: By kind, for those layers, or each with its layer.
        readout: One for the whole model.
        count: Decoder layers of the model.

    Raises:
        ValueError: If that is nothing, or at layers that do not exist.
    """
    parts = dict(parts)
    if isinstance(layers, Mapping):
        if parts.get("memory") is not None:
            raise ValueError(
                "layers={1: ...} says which memories there are: give no memory=..., or layers=[1]"
            )
        parts["memory"], layers = layers, list(layers)
    slots = [] if readout is None else [Slot("readout", None, readout)]
    for kind, given in parts.items():
        if given is None:
            continue
        if not isinstance(given, Mapping):
            if not layers:
                raise ValueError(
                    f"{kind}=... at which layers? Give layers=[1, 3], or {kind}={{1: ..., 3: ...}}"
                )
            given = dict.fromkeys(layers, given)
        # A memory may also stand behind the last layer.
        last = count if kind == "memory" else count - 1
        if wrong := [layer for layer in given if not 0 <= layer <= last]:
            raise ValueError(f"{kind} at layers {wrong}, but there are {kind} slots 0..{last}")
        slots += [Slot(kind, layer, build) for layer, build in sorted(given.items())]
    if not slots:
        raise ValueError("nothing to attach: give memory=, mixer=, feedforward= or readout=")
    return sorted(slots, key=lambda slot: KINDS.index(slot.kind))


def arguments_of(build: Build) -> dict[str, Any]:
    """What is bound by :func:`functools.partial`."""
    return dict(getattr(build, "keywords", {}))
