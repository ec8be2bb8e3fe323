"""Tables that stay where they are, in memory of the host or in a file, while the network computes somewhere else."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from retrieval.snapshot import checksum, open_snapshot, writing_snapshot

__all__ = ["STORAGES", "HostTable"]

STORAGES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
KIND, VERSION, FILE = "host table", 1, "table.npy"
# Bytes of the scale that stands behind the codes of a row, so that both come with one read.
SCALE_BYTES = 4
# How NumPy, which has no bfloat16, holds each.
_HELD = {"float32": np.float32, "bfloat16": np.int16, "int8": np.int8}


class HostTable(nn.Module):
    r"""Rows of numbers that are kept in few bytes on the host, and read in float32 on the device that asks.

    .. math:: \text{int8}: \quad w_{ij} \approx \sigma_i c_{ij}, \qquad \sigma_i = \max_j |w_{ij}| \, / \, 127

    The table does not follow the module to another device or type. A read moves the rows that were named, as they
    are stored, and nothing else; its gradient comes back as the sum of each named row, taken in float32.

    In memory, ``"float32"`` and ``"bfloat16"`` are trained, by the optimisers of :mod:`mann.table_optim`, which round
    bfloat16 by chance and keep its moments in float32 (AdamW on the whole table does neither); the gradient of a
    bfloat16 table is rounded to it once summed. ``"int8"`` and whatever is mapped from a file are read only.

    Args:
        n_rows: Number of rows.
        d_row: Numbers per row.
        storage: ``"float32"``, ``"bfloat16"``, or ``"int8"`` with a scale a row.
        path: Folder that :meth:`save` wrote, to be mapped into memory page by page as it is read.
        verify: Whether to compare the checksum of the file, which reads all of it once.

    Shapes:
        input: rows of any shape; output: the same, and ``d_row``.

    Raises:
        ValueError: If the storage is unknown, or the file or a loaded state is of another table.
        retrieval.snapshot.SnapshotError: If there is no table at ``path``, or it is damaged.
    """

    weight: Tensor

    def __init__(
        self,
        n_rows: int,
        d_row: int,
        storage: str = "float32",
        path: str | Path | None = None,
        *,
        verify: bool = True,
    ) -> None:
        super().__init__()
        if storage not in STORAGES:
            raise ValueError(f"storage {storage!r}: use one of {', '.join(STORAGES)}")
        if min(n_rows, d_row) < 1:
            raise ValueError(f"a table of {n_rows} rows of {d_row} numbers: give at least one of each")
        self.n_rows, self.d_row, self.storage = n_rows, d_row, storage
        self.path, self.sha256 = None if path is None else str(path), ""
        if path is not None:
            self._map(verify)
        elif storage == "int8":
            self.register_buffer("weight", _packed(torch.zeros(n_rows, d_row)))
        else:
            self.weight = nn.Parameter(torch.empty(n_rows, d_row, dtype=STORAGES[storage]))
            self.weight.role = "table"  # type: ignore[attr-defined]
            nn.init.normal_(self.weight, std=0.02)

    @classmethod
    def of(cls, weights: Float[Tensor, "rows width"], storage: str = "float32") -> HostTable:
        """A table of these numbers, each rounded to the nearest.

        Args:
            weights: The numbers.
            storage: How to keep them.

        Shapes:
            weights: ``[rows, width]``
        """
        table = cls(weights.shape[0], weights.shape[1], storage)
        with torch.no_grad():
            table.weight.copy_(_packed(weights) if storage == "int8" else weights)
        return table

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> HostTable:
        """The table in a folder, whatever its size, mapped.

        Args:
            path: Folder that :meth:`save` wrote.
            verify: Whether to compare the checksum of the file.
        """
        about = open_snapshot(path, KIND, VERSION, verify=False)
        return cls(about["rows"], about["width"], about["storage"], path, verify=verify)

    def save(self, path: str | Path) -> None:
        """Write a folder that can be mapped; a killed writer leaves what was there before.

        Args:
            path: The folder.
        """
        held = self.weight.detach().cpu()
        array = (held.view(torch.int16) if self.storage == "bfloat16" else held).numpy()
        about = self._about()
        with writing_snapshot(path, KIND, VERSION, about) as folder:
            np.save(folder / FILE, array, allow_pickle=False)
            about["sha256"] = checksum(folder / FILE)

    @property
    def mapped(self) -> bool:
        """Whether the rows are in a file."""
        return self.path is not None

    def read(self, rows: Int[Tensor, "*batch"], device: Any = None) -> Float[Tensor, "*batch width"]:
        """The rows in float32.

        Args:
            rows: Which, on any device.
            device: Where they are wanted; by default where ``rows`` are.

        Shapes:
            rows: ``[*batch]``; result: ``[*batch, width]``
        """
        device = rows.device if device is None else torch.device(device)
        if self.weight.requires_grad and torch.is_grad_enabled():
            return _Read.apply(self.weight, rows, device)
        return _decoded(_picked(self.weight, rows, device), self.d_row)

    def forward(self, rows: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch width"]:
        return self.read(rows)

    def _about(self) -> dict[str, Any]:
        return {"rows": self.n_rows, "width": self.d_row, "storage": self.storage, "sha256": self.sha256}

    def _map(self, verify: bool) -> None:
        folder = Path(str(self.path))
        about = open_snapshot(folder, KIND, VERSION, verify=verify)
        self._same(about, f"{folder} holds")
        array = np.load(folder / FILE, mmap_mode="r", allow_pickle=False)
        width = self.d_row + (SCALE_BYTES if self.storage == "int8" else 0)
        if array.shape != (self.n_rows, width) or array.dtype != _HELD[self.storage]:
            raise ValueError(f"{folder / FILE} has {array.shape} of {array.dtype}: save the table again")
        with warnings.catch_warnings():
            # That it must not be written to: nothing here does.
            warnings.simplefilter("ignore", UserWarning)
            held = torch.from_numpy(array)
        # No buffer: a state does not hold what a file does.
        object.__setattr__(self, "weight", held.view(torch.bfloat16) if self.storage == "bfloat16" else held)
        self.sha256 = about["sha256"]

    def _same(self, about: dict[str, Any], whose: str) -> None:
        names = ("rows", "width", "storage")
        wanted = {name: value for name, value in self._about().items() if name in names or value}
        if any(about[name] != value for name, value in wanted.items()):
            found = {name: about[name] for name in wanted}
            raise ValueError(
                f"{whose} another table, {found} where {wanted} is wanted: give the one it was made with"
            )

    def get_extra_state(self) -> Tensor:
        """Which table it is, as the bytes of a JSON text."""
        return torch.tensor(list(json.dumps(self._about()).encode()), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse the state of another table."""
        self._same(json.loads(bytes(state.tolist())), "the state is of")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HostTable:
        # It stays where it is, but for a table that has never been anywhere.
        return super()._apply(fn, recurse) if self.weight.is_meta and not self.mapped else self

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {name: value for name, value in state.items() if not (self.mapped and name == "weight")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.mapped:
            self._map(verify=False)

    def extra_repr(self) -> str:
        return f"{self.n_rows}, {self.d_row}, storage={self.storage!r}, path={self.path!r}"


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: Tensor, rows: Tensor, device: torch.device) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(rows)
        ctx.shape, ctx.dtype, ctx.home = weight.shape, weight.dtype, weight.device
        return _decoded(_picked(weight, rows, device), weight.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        (rows,) = ctx.saved_tensors
        # Summed where it is: of a row that was read often one sum travels.
        named, who = rows.to(grad.device).flatten().unique(return_inverse=True)
        sums = grad.new_zeros(len(named), ctx.shape[1]).index_add_(0, who, grad.flatten(0, -2))
        sums, named = sums.to(ctx.home, ctx.dtype), named.to(ctx.home)
        found = torch.sparse_coo_tensor(
            named[None], sums, ctx.shape, check_invariants=False, is_coalesced=True
        )
        return found, None, None


def _picked(weight: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """Rows as they are stored, on a device."""
    return F.embedding(rows.to(weight.device), weight.detach()).to(device)


def _decoded(stored: Tensor, width: int) -> Tensor:
    if stored.dtype != torch.int8:
        return stored.float()
    # A copy in any case: numbers of four bytes cannot be seen where none of them begins.
    scale = stored[..., width:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    return stored[..., :width].float() * scale


def _packed(weights: Float[Tensor, "rows width"]) -> Int[Tensor, "rows packed"]:
    """Codes of each row, and the bytes of its scale behind them."""
    scale = weights.float().abs().amax(1, keepdim=True) / 127
    codes = (weights / scale.clamp_min(torch.finfo(torch.float32).tiny)).round().to(torch.int8)
    return torch.cat([codes, scale.view(torch.int8)], 1)
