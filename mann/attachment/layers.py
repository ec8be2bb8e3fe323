"""Where things are in a causal language model of Hugging Face, and how it is called."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "ATTENTION",
    "MLP",
    "Arguments",
    "borrowed_roles",
    "find_layers",
    "find_part",
    "keeps_documents_apart",
    "settings_of",
]

# What decoder layers call their parts.
ATTENTION = ("self_attn", "attn", "attention", "self_attention")
MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe")


def settings_of(model: nn.Module) -> Any:
    """The configuration of its decoder.

    Args:
        model: A causal language model.

    Raises:
        ValueError: If it has none, or no head.
    """
    config, head = getattr(model, "config", None), getattr(model, "get_output_embeddings", None)
    if config is None or head is None or head() is None:
        raise ValueError(
            f"{type(model).__name__} is no causal language model of transformers: it lacks a config or a head. Load it "
            "with AutoModelForCausalLM"
        )
    text = getattr(config, "get_text_config", None)
    return config if text is None else text()


def find_layers(model: nn.Module, path: str | None = None) -> nn.ModuleList:
    """The list of its decoder layers: the one ``nn.ModuleList`` that is as long as its config says.

    Args:
        model: A causal language model.
        path: Where the list is, if it is not found, or not the only one.

    Raises:
        ValueError: If there is none, or more than one.
    """
    count = settings_of(model).num_hidden_layers
    lists = {name: part for name, part in model.named_modules() if isinstance(part, nn.ModuleList)}
    if path is not None:
        if path not in lists:
            raise ValueError(
                f"path={path!r} is no nn.ModuleList of {type(model).__name__}; it has {sorted(lists)}"
            )
        return lists[path]
    long = [name for name, part in lists.items() if len(part) == count]
    # Experts of a layer may be as many as layers.
    found = [name for name in long if not any(name.startswith(f"{other}.") for other in long)]
    if len(found) != 1:
        raise ValueError(
            f"looked in {type(model).__name__} for one nn.ModuleList of {count} decoder layers "
            f"(config.num_hidden_layers) and found {found or 'none'}: say where it is, path='model.layers'"
        )
    return lists[found[0]]


def find_part(layer: nn.Module, names: Sequence[str], argument: str) -> nn.Module:
    """The attention of a decoder layer, or its MLP.

    Args:
        layer: The layer.
        names: What it may be called.
        argument: By which argument of :func:`mann.attach` another name is given.

    Raises:
        ValueError: If there is none.
    """
    for name in names:
        if isinstance(part := getattr(layer, name, None), nn.Module):
            return part
    parts = [name for name, _ in layer.named_children()]
    raise ValueError(
        f"looked in {type(layer).__name__} for {' or '.join(names)} and found {parts}: say which it is, {argument}=..."
    )


class Arguments:
    """Reads arguments of a model's forward pass by name, however they were given.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.signature = inspect.signature(model.forward)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All that are given and not None."""
        given = dict(self.signature.bind_partial(*args, **kwargs).arguments)
        for name, kind in self.signature.parameters.items():
            if kind.kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(name, {})
        return {name: value for name, value in given.items() if value is not None}

    def __contains__(self, name: str) -> bool:
        return name in self.signature.parameters


def borrowed_roles(model: nn.Module) -> Iterator[tuple[nn.Parameter, str]]:
    """Roles that :mod:`mann.optim` cannot tell from the modules of another library.

    Args:
        model: A causal language model.
    """
    embedded = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    head = getattr(model, "get_output_embeddings")()  # noqa: B009  # not every nn.Module has it
    for part in model.modules():
        for parameter in part.parameters(recurse=False):
            if id(parameter) in embedded or hasattr(parameter, "role"):
                continue
            if part is head and parameter.ndim == 2:
                yield parameter, "head"
            elif parameter.ndim == 2 and not isinstance(part, nn.Linear):
                yield parameter, "matrix"


@torch.no_grad()
def keeps_documents_apart(model: nn.Module) -> bool:
    """Whether positions that begin anew make it take what follows for another text.

    Args:
        model: A causal language model that takes ``position_ids``, without anything attached.
    """
    modes = {part: part.training for part in model.modules()}
    device = next(model.parameters()).device
    taken = {getattr(settings_of(model), name, None) for name in ("pad_token_id", "eos_token_id")}
    one, other, *_ = (token for token in range(8) if token not in taken)
    # The second document is the same, the first is another.
    ids = torch.tensor([[one, one], [other, one]], device=device)
    try:
        model.eval()
        logits: Tensor = model(input_ids=ids, position_ids=torch.zeros_like(ids), use_cache=False).logits
    finally:
        for part, mode in modes.items():
            part.training = mode
    return bool(torch.allclose(logits[0, 1].float(), logits[1, 1].float(), rtol=1e-3, atol=1e-4))
