from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from mann import (
    STEM,
    CausalAttention,
    Context,
    LanguageModule,
    NGramMemory,
    SoftmaxReadout,
    State,
    Transformer,
)
from mann.attachment import Attached, attach
from mann.mixer.knn import KNNAttention
from mann.norm import rms_norm
from mann.optim import RoleOptimizer, parameter_roles
from tests.mann.attachment.models import (
    CONFIGS,
    KEYS,
    NGRAM,
    VOCAB,
    bare,
    hooks,
    ids,
    trained,
)

KNN = partial(KNNAttention, k=4, window=4)
DOCUMENTS = torch.tensor([[3] * 5 + [1] * 7, [0] * 9 + [3] * 3])


def everything(model: Any, **settings: Any) -> Attached:
    return attach(model, [0, 1], memory=NGRAM, mixer=KNN, feedforward=KEYS, **settings)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in CONFIGS if name != "OPT"),
        ("GPT2", torch.bfloat16),
        ("Llama", torch.bfloat16),
    ],
)
def test_starts_as_nothing_and_ends_without_a_trace(name: str, dtype: torch.dtype) -> None:
    model = bare(name).to(dtype)
    before, keys, flags = model(ids()).logits, snapshot(model), [p.requires_grad for p in model.parameters()]
    count, attributes = hooks(model), [dict(vars(p)) for p in model.parameters()]
    with everything(model) as attached:
        start = model(ids()).logits
        assert start.dtype == dtype
        assert torch.equal(start, before)
        trained(attached)
        assert not torch.allclose(model(ids()).logits, before, atol=0.1)
        assert_same(model, keys)
    assert torch.equal(model(ids()).logits, before)
    assert_same(model, keys)
    assert hooks(model) == count
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [dict(vars(p)) for p in model.parameters()] == attributes


def test_updates_are_added_where_they_belong() -> None:
    attached = trained(attach(bare(), {1: NGRAM, 2: NGRAM}, mixer={0: KNN}, feedforward={1: KEYS}))
    got = attached(ids()).logits
    model, context = attached.detach(), Context(ids())

    def beside(module: nn.Module, extra: Any) -> None:
        old = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            y = old(*args, **kwargs)
            more = extra(rms_norm(args[0] if args else kwargs["hidden_states"]))
            return (y[0] + more, *y[1:]) if isinstance(y, tuple) else y + more

        module.forward = forward

    with torch.no_grad():
        layers: Any = model.model.layers  # type: ignore[union-attr]
        beside(layers[0].self_attn, lambda x: attached.part("mixer.0")(x, context))
        beside(layers[1].mlp, attached.part("feedforward.1"))
        inside = layers[1].forward

        def last(x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            x = inside(x + attached.part("memory.1")(x, context), **kwargs)
            return x + attached.part("memory.2")(x, context)

        layers[1].forward = last
        torch.testing.assert_close(model(ids()).logits, got, rtol=1e-5, atol=1e-5)


def test_a_feedforward_may_ask_for_tokens() -> None:
    attached = trained(attach(bare(), [0], feedforward=partial(STEM, vocab_size=VOCAB)))
    one, other = attached(ids()).logits, attached(ids(seed=1)).logits
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("name", ["GPT2", "Llama", "GPTNeoX", "Gemma2"])
def test_padding_is_another_document(name: str) -> None:
    attached, tokens = trained(everything(bare(name))), ids(1, 7)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.int64), tokens], 1)
    mask = (padded != 0).long()
    places = (mask.cumsum(1) - 1).clamp(min=0)
    expected = attached(tokens).logits
    got = attached(padded, attention_mask=mask, position_ids=places).logits[:, 5:]
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    after = attached(padded.flip(1), attention_mask=mask.flip(1)).logits[:, :7]
    torch.testing.assert_close(after, attached(tokens.flip(1)).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["GPT2", "Llama", "Mistral"])
def test_documents_are_kept_apart(name: str) -> None:
    attached, tokens, targets = trained(everything(bare(name))), ids(), ids(seed=1)
    targets[:, 2] = -100
    loss = attached.loss(tokens, targets, DOCUMENTS)
    assert not loss[:, 2].any()
    for row, at in ((0, slice(0, 5)), (0, slice(5, 12)), (1, slice(0, 9)), (1, slice(9, 12))):
        alone = attached.loss(tokens[row : row + 1, at], targets[row : row + 1, at])
        torch.testing.assert_close(loss[row : row + 1, at], alone, rtol=1e-3, atol=1e-3)
    places = torch.tensor([[*range(5), *range(7)], [*range(9), *range(3)]])
    logits = attached(tokens, position_ids=places, use_cache=False).logits
    expected = -logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
    torch.testing.assert_close(loss, expected.masked_fill(targets == -100, 0.0), rtol=1e-4, atol=1e-4)


def test_the_mode_is_that_of_the_model() -> None:
    attached = attach(bare(), [0], memory=NGRAM)
    assert not any(part.training for part in attached.modules())
    attached.model.train()
    attached.model(ids())
    assert attached.part("memory.0").training
    attached.model.eval()
    attached.model(ids())
    assert not attached.part("memory.0").training


def test_asking_a_model_about_documents_leaves_it_as_it_was() -> None:
    attached = attach(bare(), [0], memory=NGRAM)
    attached.model.model.layers[1].train()  # type: ignore[union-attr]
    modes = [part.training for part in attached.modules()]
    attached.loss(ids(), ids(), DOCUMENTS)
    assert [part.training for part in attached.modules()] == modes


def test_a_model_that_cannot_tell_documents_apart_is_given_one_in_a_row() -> None:
    attached = attach(bare("Bloom"), [0], memory=NGRAM)
    with pytest.raises(ValueError, match="BloomForCausalLM does not tell documents"):
        attached.loss(ids(), ids(), DOCUMENTS)
    assert attached.loss(ids(), ids(), torch.ones_like(ids())).shape == (2, 12)


@pytest.mark.parametrize("name", ["GPT2", "Llama"])
@pytest.mark.parametrize("train", ["memory", "all"])
def test_language_module_trains_it(name: str, train: str) -> None:
    module = LanguageModule(Transformer(VOCAB, 8, 1), total_steps=8)
    attached = everything(bare(name), train=train)
    module.network = attached  # type: ignore[assignment]
    model, before = attached.model, snapshot(attached.model)
    assert {p for p in attached.parameters() if p.requires_grad} == set(
        attached.parameters() if train == "all" else attached.memory_parameters()
    )
    optimizer = module.configure_optimizers()["optimizer"]
    batch = {"tokens": ids(), "targets": ids().roll(-1, 1), "documents": DOCUMENTS}
    losses = []
    for _ in range(6):
        loss = module(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    if train == "memory":
        assert all(p.grad is None for p in model.parameters())
        assert_same(model, before)
    attached.detach()
    assert all(p.requires_grad for p in model.parameters())


def test_every_part_of_what_was_added_gets_a_gradient() -> None:
    attached = trained(everything(bare()))
    attached.loss(ids(), ids(seed=1)).sum().backward()
    for name, parameter in attached.parts.named_parameters():
        assert parameter.grad is not None, name


def test_roles_of_a_foreign_model() -> None:
    attached = everything(bare("GPT2", tie_word_embeddings=False), train="all")
    roles = {role: {id(p) for p in found} for role, found in parameter_roles(attached).items()}
    names = dict(attached.model.named_parameters())
    assert id(names["lm_head.weight"]) in roles["head"]
    assert id(names["transformer.h.0.attn.c_attn.weight"]) in roles["matrix"]
    assert id(names["transformer.wte.weight"]) in roles["embedding"]
    assert {id(attached.part(f"memory.{at}").table.weight) for at in (0, 1)} <= roles["table"]  # type: ignore[union-attr]
    tied = attach(bare("GPT2"), [0], memory=NGRAM, train="all")
    assert not parameter_roles(tied)["head"]


def test_freeze_and_unfreeze_keep_what_was_frozen_before() -> None:
    model = bare()
    model.lm_head.requires_grad_(False)
    attached = attach(model, [0], memory=NGRAM)
    assert not any(p.requires_grad for p in model.parameters())
    attached.unfreeze()
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["lm_head.weight"]
    attached.freeze()
    attached.detach()
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["lm_head.weight"]


def test_gradient_checkpointing_of_the_model_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        attached = trained(attach(bare(), [0, 1], memory=NGRAM, feedforward=KEYS, train="all")).train()
        if checkpointing:
            attached.model._set_gradient_checkpointing(
                True, partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
            )
        # Two passes before one backward: each layer is run again with its own tokens.
        (attached.loss(ids(), ids(seed=1)).sum() + attached.loss(ids(seed=2), ids(seed=1)).sum()).backward()
        gradients.append({n: p.grad.to_dense() for n, p in attached.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_is_refused_where_tokens_are_needed() -> None:
    attached = everything(bare()).train()
    attached.model._set_gradient_checkpointing(True, torch.utils.checkpoint.checkpoint)
    with pytest.raises(ValueError, match=r"gradient checkpointing .* mixer\.0, mixer\.1"):
        attached(ids())
    assert attached.eval()(ids()).logits.shape == (2, 12, VOCAB)


def test_a_copy_is_for_itself() -> None:
    attached = trained(everything(bare(), train="all"))
    before = attached(ids()).logits
    other = copy.deepcopy(attached)
    assert torch.equal(other.model(ids()).logits, before)
    roles = [{role: len(found) for role, found in parameter_roles(one).items()} for one in (attached, other)]
    assert roles[0] == roles[1]
    attached.detach()
    assert hooks(attached.model) == 0
    assert torch.equal(other.model(ids()).logits, before)
    trained(other)
    assert not torch.equal(other(ids()).logits, before)
    assert torch.equal(everything(bare())(ids()).logits, attached.model(ids()).logits)


def test_a_state_goes_on_in_streaming_parts() -> None:
    attached, state = trained(attach(bare(), [0, 1], mixer=KNN)), State()
    attached.loss(ids(), ids(), state=state)
    assert {attached.part(f"mixer.{at}").state_key for at in (0, 1)} == {"mixer.0", "mixer.1"}
    second = attached.loss(ids(seed=1), ids(), state=state)
    assert not torch.allclose(second, attached.loss(ids(seed=1), ids()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_types(dtype: torch.dtype) -> None:
    attached = trained(everything(bare().to(dtype)))
    own = torch.float64 if dtype == torch.float64 else torch.float32
    assert {p.dtype for p in attached.memory_parameters()} == {own}
    assert attached.loss(ids(), ids()).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert attached.loss(ids(), ids()).isfinite().all()
    attached.to(torch.bfloat16)
    assert attached(ids()).logits.dtype == torch.bfloat16


REFUSED = {
    "inputs_embeds": (lambda a: a(inputs_embeds=torch.zeros(1, 3, 16)), "give input_ids, not inputs_embeds"),
    "a part alone": (lambda a: a.model.model(ids()), "call the whole model"),
    "a full mask": (lambda a: a(ids(), attention_mask=torch.ones(2, 1, 12, 12)), "attention_mask must be"),
    "twice": (lambda a: attach(a.model, [0], memory=NGRAM), "has something attached"),
    "detached": (lambda a: (a.detach(), a.loss(ids(), ids())), "nothing is attached any more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_when_it_is_called(case: str) -> None:
    act, message = REFUSED[case]
    attached = attach(bare(), [0], memory=NGRAM)
    with pytest.raises(ValueError, match=message):
        act(attached)
    assert attached.model(ids()).logits.shape == (2, 12, VOCAB)


ARGUMENTS = {
    "nothing to attach": {},
    "at which layers": {"memory": NGRAM},
    "memory at layers \\[3\\], but there are memory slots 0..2": {"layers": [3], "memory": NGRAM},
    "mixer at layers \\[2\\]": {"layers": [2], "mixer": CausalAttention},
    "give no memory=": {"layers": {0: NGRAM}, "memory": NGRAM},
    "train must be": {"layers": [0], "memory": NGRAM, "train": "none"},
    "path='model.norm' is no nn.ModuleList.*model.layers": {
        "layers": [0],
        "memory": NGRAM,
        "path": "model.norm",
    },
    "looked in LlamaDecoderLayer for mixer and found .*self_attn": {
        "layers": [0],
        "mixer": CausalAttention,
        "attention": "mixer",
    },
    "SoftmaxReadout mixes with no distribution": {"readout": SoftmaxReadout},
}


@pytest.mark.parametrize("message", ARGUMENTS)
def test_refused_when_it_is_attached(message: str) -> None:
    model = bare()
    with pytest.raises(ValueError, match=message):
        attach(model, **ARGUMENTS[message])
    assert hooks(model) == 0
    assert not any(vars(p) for p in model.parameters())


def test_layers_that_are_not_found() -> None:
    model = bare()
    model.model.layers.append(nn.Identity())
    with pytest.raises(ValueError, match=r"one nn\.ModuleList of 2 decoder layers .* found none"):
        attach(model, [0], memory=NGRAM)
    model = bare()
    model.other = nn.ModuleList([nn.Identity(), nn.Identity()])
    with pytest.raises(ValueError, match=r"found \['model.layers', 'other'\]: say where it is"):
        attach(model, [0], memory=NGRAM)
    assert attach(model, [0], memory=NGRAM, path="model.layers").part("memory.0")
    with pytest.raises(ValueError, match="OPTDecoderLayer for mlp or feed_forward"):
        attach(bare("OPT"), [0], feedforward=KEYS)
    assert attach(bare("OPT"), [0], memory=NGRAM)(ids()).logits.shape == (2, 12, VOCAB)
    with pytest.raises(ValueError, match="is no causal language model"):
        attach(bare().model, [0], memory=NGRAM)


def test_optimizer_leaves_a_frozen_model_alone() -> None:
    attached = attach(bare(), {1: partial(NGramMemory, n_rows=64)})
    optimizer = RoleOptimizer(attached, {"matrix": 0.1, "table": 0.1})
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in attached.memory_parameters()}
