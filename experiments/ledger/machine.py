"""Seconds and joules of the machine, where it tells; beside the FLOPs, never instead of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")
UNAVAILABLE = "unavailable"


class Machine:
    """Seconds, and joules where the processor or the GPU counts them.

    .. code-block:: python

        with Machine() as machine:
            train()
        print(machine.seconds, machine.joules, machine.source)

    Energy is read from the RAPL counters of Intel and AMD (packages, and memory where it has a counter of its own)
    and from NVIDIA's NVML (``pip install nvidia-ml-py``; every GPU this process may use). It is that of the whole
    machine: other programs' work is in it. A counter runs over after some minutes; :meth:`read` must be called more
    often than that.

    Args:
        powercap: Folder of the counters.

    Attributes:
        seconds: Wall time inside the ``with`` blocks so far, up to the last :meth:`read`.
        joules: Energy in the same time; ``None`` where the machine does not tell.
        source: Where it was read: "rapl", "nvml", "rapl+nvml", or "unavailable" and why.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self.seconds = 0.0
        self.joules: float | None = None
        self._counters, reason = _rapl(powercap)
        kinds = ["rapl"] * bool(self._counters)
        graphics = _nvml()
        self._counters += graphics
        self.source = "+".join(kinds + ["nvml"] * bool(graphics)) or reason
        self._since: float | None = None

    def __enter__(self) -> Machine:
        self._since = time.perf_counter()
        if self._counters:
            self.joules = self.joules or 0.0
            for counter in self._counters:
                counter.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.read()
        self._since = None

    def read(self) -> None:
        """Add what has passed since the last reading."""
        if self._since is None:
            return
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now
        if self.joules is None:
            return
        try:
            self.joules += sum(counter.joules() for counter in self._counters)
        except Exception as error:  # a counter that is gone is no reason to end a training
            self._forget(str(error))

    def to_dict(self) -> dict[str, Any]:
        """The three attributes, ready for JSON."""
        return {"seconds": self.seconds, "joules": self.joules, "joules_source": self.source}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`to_dict` gave; joules are known only if they were in every part."""
        self.seconds = state["seconds"]
        if state["joules"] is not None and self._counters:
            self.joules = state["joules"]
        elif self._counters:
            self._forget("an earlier part of this run was not measured")
        elif state["joules"] is not None:
            self.source = f"{UNAVAILABLE} (a later part of this run could not be measured)"

    def _forget(self, why: str) -> None:
        self._counters, self.joules = [], None
        self.source = f"{UNAVAILABLE} ({why})"


class _Counter:
    """A number that grows with the energy used and begins again at ``span``."""

    def __init__(self, read: Callable[[], int], unit: float, span: int | None = None) -> None:
        self._read, self._unit, self._span = read, unit, span
        self._last = 0

    def start(self) -> None:
        self._last = self._read()

    def joules(self) -> float:
        now = self._read()
        used, self._last = now - self._last, now
        if used < 0 and self._span is not None:
            used += self._span
        return max(used, 0) * self._unit


def _rapl(folder: Path) -> tuple[list[_Counter], str]:
    """Counters that do not contain one another, and why there are none."""
    found: list[_Counter] = []
    reason = UNAVAILABLE
    # The memory-mapped copy (intel-rapl-mmio) counts the same package again; the platform (psys) contains it.
    for zone in sorted(folder.glob("intel-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
            if not name.startswith("package") and name != "dram":
                continue
            span = int((zone / "max_energy_range_uj").read_text())
            counter = _Counter(lambda path=zone / "energy_uj": int(path.read_text()), 1e-6, span + 1)
            counter.start()
        except PermissionError:
            reason = f"{UNAVAILABLE} ({zone / 'energy_uj'} may be read by root only)"
        except (OSError, ValueError):
            continue
        else:
            found.append(counter)
    return found, reason


def _nvml() -> list[_Counter]:
    if not torch.cuda.is_available():
        return []
    found: list[_Counter] = []
    # Neither the package nor the counter need be there: boards before Volta have none.
    with suppress(Exception):
        nvml = import_module("pynvml")
        nvml.nvmlInit()
        for number in range(torch.cuda.device_count()):
            handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(number).uuid}")
            counter = _Counter(lambda handle=handle: nvml.nvmlDeviceGetTotalEnergyConsumption(handle), 1e-3)
            counter.start()
            found.append(counter)
    return found
