"""Decoders of Hugging Face's transformers, with random weights: all of them priced, in training and in generation."""

import os

import pytest
import torch
from torch import nn

from experiments.ledger import Ledger
from tests.experiments.ledger.settings import assert_one_bill, bill

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")

TOKENS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DEPTH = {"hidden_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64}
GROUPED = {**TOKENS, **DEPTH, **HEADS, "num_key_value_heads": 2}
EXPERTS = {"num_experts_per_tok": 2, "head_dim": 8}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
LOCAL = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}

CONFIGS = {
    "GPT2": {**TOKENS, **GPT, "pad_token_id": None},
    "GPTJ": {**TOKENS, **GPT, "rotary_dim": 4},
    "GPTNeoX": {**TOKENS, **DEPTH, **HEADS, "attention_dropout": 0.1, "hidden_dropout": 0.1},
    "OPT": {**TOKENS, **DEPTH, "ffn_dim": 48, "num_attention_heads": 4, "word_embed_proj_dim": 32},
    "Phi": GROUPED,
    "Llama": {**GROUPED, "attention_dropout": 0.1},
    "Mistral": {**GROUPED, "sliding_window": 4},
    "Qwen3": {**GROUPED, "head_dim": 8},
    "Gemma3Text": {**GROUPED, "head_dim": 8, **LOCAL},
    "Mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen3Moe": {**GROUPED, **EXPERTS, "num_experts": 4, "moe_intermediate_size": 16},
    "GptOss": {**GROUPED, **EXPERTS, **LOCAL, "num_local_experts": 4},
    "DeepseekV3": {
        **GROUPED,
        **LATENT,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
    "Mamba": {**TOKENS, **DEPTH, "state_size": 4},
    "Mamba2": {
        **TOKENS,
        **DEPTH,
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "Rwkv": {**TOKENS, **DEPTH, "attention_hidden_size": 32, "context_length": 64},
}
IDS = torch.arange(20).reshape(2, 10) * 3 + 3


def decoder(name, attention):
    config = getattr(transformers, f"{name}Config")(**CONFIGS[name])
    with torch.device("cpu"):
        return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def supports(name, attention):
    config = getattr(transformers, f"{name}Config")
    kind = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING[config]
    return getattr(kind, f"_supports_{attention}")


class Loss(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.model.tie_weights()
        return self

    def forward(self, ids):
        return self.model(input_ids=ids, labels=ids).loss


def training(name, attention):
    return lambda: (Loss(decoder(name, attention)), torch.arange(20).reshape(2, 10) * 3 + 3)


WINDOWS = {"Mistral": "a mask without values lets every pair live", "Gemma3Text": "as Mistral"}
EXPERT_MODELS = ("Mixtral", "Qwen3Moe", "GptOss", "DeepseekV3")
ONLY_HALF = "Expected inputs of BF16"
KINDS = [
    (name, kind) for name in CONFIGS for kind in ("sdpa", "eager") if kind == "eager" or supports(name, kind)
]


@pytest.mark.parametrize(("name", "attention"), KINDS)
def test_one_bill(name, attention):
    cannot = {"meta": ONLY_HALF} if name in EXPERT_MODELS else {}
    if name == "Rwkv":
        # Its weights are rescaled in evaluation, which backward refuses.
        cannot = {"eval": "inplace"}
    differs = {"meta": WINDOWS[name]} if attention == "sdpa" and name in WINDOWS else {}
    if name == "Rwkv":
        differs = {"inference_mode": "weights are rescaled in evaluation"}
    assert_one_bill(training(name, attention), cannot, differs)


@pytest.mark.parametrize("name", CONFIGS)
def test_generation_with_a_cache_grows_by_single_tokens(name):
    model = decoder(name, "eager").eval()

    def generated(tokens):
        with Ledger(model) as ledger:
            model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=tokens, do_sample=False)
        return ledger.matmul_flops

    first, second, third = (generated(tokens) for tokens in (1, 2, 3))
    with Ledger(model) as whole, torch.no_grad():
        model(IDS)
    assert 0 < second - first <= third - second < whole.matmul_flops


@pytest.mark.parametrize("name", ["Llama", "Gemma3Text", "Mistral"])
def test_flex_attention_has_the_products_of_the_mask(name):
    model = decoder(name, "flex_attention").eval()
    with Ledger(model) as flex, torch.no_grad():
        model(IDS)
    with Ledger(masked := decoder(name, "sdpa").eval()) as sdpa, torch.no_grad():
        masked(IDS)
    pairs = flex.costs("operator")["flex_attention"].matmul_flops
    assert pairs == sdpa.costs("operator")["aten.scaled_dot_product_attention"].matmul_flops
    assert flex.matmul_flops == sdpa.matmul_flops


def test_llama_by_hand():
    ledger = bill(training("Llama", "sdpa"))
    tokens, d, f, vocab, pairs = 20, 32, 48, 64, 2 * 4 * 55
    weights = 2 * (2 * d * d + 2 * d * d // 2 + 3 * d * f) + vocab * d
    attention = 2 * 2 * pairs * 16
    phases = {name: cost.matmul_flops for name, cost in ledger.costs("phase").items()}
    assert phases["forward"] == 2 * tokens * weights + attention
    assert phases["backward"] == 2 * phases["forward"]
