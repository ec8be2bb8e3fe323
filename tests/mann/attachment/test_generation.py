from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch

from mann import STEM, BigramMemory, CacheReadout, CausalAttention, Engram, ExternalMemory
from mann.attachment import attach
from mann.attachment.history import history_of, reach
from mann.mixer.knn import KNNAttention
from tests.contracts import SOURCE
from tests.mann.attachment.models import KEYS, NGRAM, POINTER, VOCAB, bare, ids, trained, transformers

PARTS: dict[str, dict[str, Any]] = {
    "ngram": {"memory": NGRAM},
    "engram": {"memory": Engram.at_layers([0, 1], n_rows=32, d_row=4, vocab_size=VOCAB)},
    "hashes": {"memory": Engram.at_layers([0, 1], n_rows=32, d_row=4, vocab_size=VOCAB, kernel=0)},
    "bigrams": {"memory": BigramMemory.at_layers([0, 1], n_rows=64)},
    "source": {"memory": partial(ExternalMemory, source=SOURCE, k=4)},
    "keys": {"feedforward": KEYS},
    "stem": {"feedforward": partial(STEM, vocab_size=VOCAB)},
    "knn": {"mixer": partial(KNNAttention, k=4, window=4)},
    "attention": {"mixer": CausalAttention},
    "pointer": {"readout": POINTER},
    "cache": {"readout": CacheReadout},
    "all": {"memory": NGRAM, "feedforward": KEYS, "mixer": CausalAttention, "readout": POINTER},
}


def attached_to(name: str, parts: str) -> Any:
    return trained(attach(bare(name), [0, 1], **PARTS[parts]))


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different lengths, padded on the left."""
    tokens = ids()
    tokens[1, :5] = 0
    return tokens, (tokens != 0).long()


def generate(model: Any, tokens: torch.Tensor, **settings: Any) -> torch.Tensor:
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, **settings}
    return model.generate(tokens, **settings)


@pytest.mark.parametrize("parts", PARTS)
def test_with_and_without_a_cache(parts: str) -> None:
    attached = attached_to("Llama", parts)
    tokens, mask = padded()
    kept = {"attention_mask": mask, "output_logits": True, "return_dict_in_generate": True}
    one = generate(attached.model, tokens, use_cache=True, **kept)  # type: ignore[arg-type]
    other = generate(attached.model, tokens, use_cache=False, **kept)  # type: ignore[arg-type]
    assert torch.equal(one.sequences, other.sequences)  # type: ignore[attr-defined]
    for a, b in zip(one.logits, other.logits, strict=True):  # type: ignore[attr-defined]
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    without = generate(attached.detach(), tokens, attention_mask=mask)
    assert not torch.equal(without, one.sequences)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["GPT2", "Mistral", "Bloom"])
def test_with_and_without_a_cache_in_other_models(name: str) -> None:
    attached = attached_to(name, "all")
    tokens, mask = padded()
    results = [generate(attached.model, tokens, attention_mask=mask, use_cache=use) for use in (True, False)]
    assert torch.equal(*results)


@pytest.mark.parametrize("parts", ["ngram", "all"])
def test_beams_take_their_history_along(parts: str) -> None:
    attached = attached_to("Llama", parts)
    tokens, mask = padded()
    found = [
        generate(attached.model, tokens, attention_mask=mask, num_beams=2, use_cache=use)
        for use in (True, False)
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("parts", ["engram", "all"])
def test_steps_by_hand_equal_one_pass(parts: str) -> None:
    attached, tokens = attached_to("Llama", parts), ids(time=14)
    expected, cache, got = attached(tokens).logits, None, []
    for start, end in ((0, 5), (5, 6), (6, 10), (10, 11), (11, 14)):
        output = attached(tokens[:, start:end], past_key_values=cache)
        cache, got = output.past_key_values, [*got, output.logits]
    torch.testing.assert_close(torch.cat(got, 1), expected, rtol=1e-3, atol=1e-3)


def test_documents_go_on_with_the_cache() -> None:
    attached, tokens = attached_to("Llama", "all"), ids()
    tokens, mask = padded()
    expected = attached(tokens, attention_mask=mask).logits
    cache = attached(tokens[:, :8], attention_mask=mask[:, :8]).past_key_values
    got = attached(tokens[:, 8:], past_key_values=cache, attention_mask=mask).logits
    torch.testing.assert_close(got, expected[:, 8:], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_copied_and_a_shortened_cache_have_their_own_history() -> None:
    attached, tokens, other = attached_to("Llama", "all"), ids(), ids(seed=1)
    prompt = attached(tokens[:, :8]).past_key_values
    expected = {
        name: attached(torch.cat([tokens[:, :8], end], 1)).logits
        for name, end in (("a", other), ("b", tokens))
    }
    one, two = copy.deepcopy(prompt), copy.deepcopy(prompt)
    got = {
        "a": attached(other, past_key_values=one).logits,
        "b": attached(tokens, past_key_values=two).logits,
    }
    for name, logits in got.items():
        torch.testing.assert_close(logits, expected[name][:, 8:], rtol=1e-3, atol=1e-3)
    two.crop(-12)
    torch.testing.assert_close(
        attached(other, past_key_values=two).logits, expected["a"][:, 8:], rtol=1e-3, atol=1e-3
    )


def test_rows_of_a_cache_may_be_chosen_and_repeated() -> None:
    attached, tokens, more = attached_to("Llama", "all"), ids(3, 8), ids(4, 3, seed=1)
    cache = attached(tokens).past_key_values
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([5, 0, 2, 3]))
    chosen = tokens[[2, 0, 1, 1]]
    history = history_of(cache, 4)
    assert history is not None
    assert torch.equal(history.tokens, chosen)
    expected = attached(torch.cat([chosen, more], 1)).logits[:, 8:]
    torch.testing.assert_close(attached(more, past_key_values=cache).logits, expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="a batch of 3 rows for a cache of 4"):
        attached(more[:3], past_key_values=cache)


def test_what_cannot_be_followed_is_refused() -> None:
    model, tokens = bare(), ids()
    cache = model(tokens).past_key_values
    attached = attach(model, [0], memory=NGRAM)
    with pytest.raises(ValueError, match="holds 12 positions of which a memory knows 0"):
        attached(tokens, past_key_values=cache)
    with pytest.raises(ValueError, match="cannot follow a StaticCache"):
        generate(model, tokens, cache_implementation="static")
    with pytest.raises(ValueError, match="give input_ids"):
        model.generate(inputs_embeds=torch.zeros(1, 3, 16), max_new_tokens=2)
    recurrent = transformers.MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, state_size=4)
    mamba = transformers.MambaForCausalLM(recurrent).eval()
    with attach(mamba, [1], memory=NGRAM):
        assert generate(mamba, tokens, use_cache=False).shape == (2, 17)
        with pytest.raises(ValueError, match="use_cache=False"):
            generate(mamba, tokens)


def test_how_far_back_parts_look() -> None:
    for parts, expected in (
        ("ngram", 3),
        ("hashes", 2),
        ("bigrams", 1),
        ("source", SOURCE.depth - 1),
        ("knn", None),
        ("engram", None),
    ):
        attached = attached_to("Llama", parts)
        kind = next(iter(PARTS[parts]))
        assert reach(attached.part(f"{kind}.1")) == expected
        tokens = ids()
        kept = attached(tokens).past_key_values
        history = history_of(kept, 2)
        assert history is not None
        assert bool(history.states) == (expected is None)
