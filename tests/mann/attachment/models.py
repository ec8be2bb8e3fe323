"""Small models with random weights, and what is attached to them."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mann import NGramMemory, PointerReadout, ProductKeyMemory
from tests.contracts import SOURCE, opened

os.environ["HF_HUB_OFFLINE"] = "1"
transformers: Any = pytest.importorskip("transformers")

VOCAB = 29
TOKENS: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
LONG = {"max_position_embeddings": 64}
CONFIGS: dict[str, dict[str, Any]] = {
    "GPT2": {**TOKENS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "Llama": {**TOKENS, **SIZES, **LONG, "num_key_value_heads": 1},
    "GPTNeoX": {**TOKENS, **SIZES, **LONG},
    "Mistral": {**TOKENS, **SIZES, **LONG, "num_key_value_heads": 1, "sliding_window": 4},
    "Gemma2": {**TOKENS, **SIZES, **LONG, "num_key_value_heads": 1, "head_dim": 8},
    "Bloom": {**TOKENS, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "OPT": {
        **TOKENS,
        **LONG,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 24,
    },
}

NGRAM = partial(NGramMemory, orders=(2, 3, 4), n_rows=64, d_row=4)
KEYS = partial(ProductKeyMemory, n_keys=8, k=4, n_heads=1, d_query=8)
POINTER = partial(PointerReadout, source=SOURCE, k=4, d_pointer=4)


def bare(name: str = "Llama", **settings: Any) -> Any:
    """A model in eval mode; the same for the same name."""
    config = getattr(transformers, f"{name}Config")(**{**CONFIGS[name], **settings})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    # As they are initialised, small models say nearly the same whatever they read.
    return opened(model.float()).eval() if name != "Bloom" else model.eval()


def ids(rows: int = 2, time: int = 12, seed: int = 0) -> Tensor:
    """Tokens without special ones."""
    return torch.randint(3, VOCAB, (rows, time), generator=torch.Generator().manual_seed(seed))


def trained(attached: Any) -> Any:
    """As it might be after some training of what was added."""
    opened(attached.parts)
    return attached


def hooks(model: nn.Module) -> int:
    """How many hooks there are."""
    names = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks_with_kwargs",
    )
    names += ("_forward_hooks_always_called",)
    return sum(len(getattr(part, name)) for part in model.modules() for name in names)
