"""What is predicted on the meta device is what a ledger counts when the step is taken."""

from functools import partial

import lightning
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader
from torch_geometric.nn import GATConv, SAGEConv, TransformerConv

from experiments.ledger import Ledger, LedgerCallback, NotPredictable, predict
from mann import LanguageModule, NGramMemory, Transformer
from tests.experiments.ledger.test_callback import trainer

VOCAB = 50
TOKENS = torch.randint(0, VOCAB, (2, 24), generator=torch.Generator().manual_seed(0))


def by_hand(model, loss, optimizer=None, steps=2):
    """Steps on the CPU, the last of them counted."""
    stepper = None if optimizer is None else optimizer(model.parameters())
    for _ in range(steps):
        ledger = Ledger(model)
        with ledger:
            loss(model).backward()
            if stepper is not None:
                stepper.step()
                stepper.zero_grad()
    return ledger


def same(predicted, counted):
    assert predicted.to_dict() == counted.to_dict()
    assert predicted.flops > 0


def small_llama():
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=VOCAB, num_key_value_heads=2, **shape)
    )


def small_gpt2():
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=VOCAB, **shape))


@pytest.mark.parametrize("build", [small_llama, small_gpt2])
def test_hugging_face_models(build):
    batch = {"input_ids": TOKENS, "labels": TOKENS}
    counted = by_hand(build(), lambda model: model(**batch).loss, AdamW)
    same(predict(build, batch, optimizer=AdamW), counted)


def test_a_convolutional_network():
    def build():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 5),
        )

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    batch = torch.randn(4, 3, 8, 8), torch.arange(4)
    sgd = partial(SGD, lr=0.1, momentum=0.9)
    counted = by_hand(build(), lambda model: loss(model, batch), sgd)
    same(predict(build, batch, loss=loss, optimizer=sgd), counted)


@pytest.mark.parametrize("layer", [SAGEConv, partial(TransformerConv, heads=2)])
def test_graph_networks(layer):
    nodes, edges = torch.randn(10, 6), torch.randint(0, 10, (2, 40))
    counted = by_hand(layer(6, 4), lambda model: model(nodes, edges).sum(), steps=1)
    predicted = predict(lambda: layer(6, 4), (nodes, edges), loss=lambda model, batch: model(*batch).sum())
    same(predicted, counted)


def test_without_a_loss_a_gradient_of_ones_is_sent_back():
    x = torch.randn(3, 5, 16)
    build = partial(nn.TransformerEncoderLayer, 16, 4, 32, batch_first=True)
    model = build()
    ledger = Ledger(model)
    with ledger:
        out = model(x)
    ones = torch.ones_like(out)
    with ledger:
        out.backward(ones)
    same(predict(build, x), ledger)


def test_reading_is_the_forward_alone():
    build = partial(Transformer, VOCAB, 32, 2)
    model = build().eval()
    with Ledger(model) as counted, torch.no_grad():
        model(TOKENS)
    same(predict(build, TOKENS, train=False), counted)
    assert predict(build, TOKENS, train=False).by_phase.keys() == {"forward"}


MEMORIES = {"dense": {}, "ngram": {"memory": {0: NGramMemory, 2: NGramMemory}}}


@pytest.mark.parametrize("slots", MEMORIES.values(), ids=MEMORIES)
def test_a_lightning_module_costs_what_its_run_is_billed(tmp_path, slots):
    def build():
        return LanguageModule(Transformer(VOCAB, 32, 2, **slots), total_steps=100)

    batch = {"tokens": TOKENS[:, :-1].contiguous(), "targets": TOKENS[:, 1:].contiguous()}
    # The optimizer of a table updates the rows that the tokens name, whose number is not a shape.
    predicted = predict(build, batch, device="cpu" if slots else "meta")
    totals = []
    for steps in (3, 4):
        callback = LedgerCallback(every_step=True)
        run = trainer(callback, tmp_path, max_steps=steps, gradient_clip_val=None)
        run.fit(build(), DataLoader([batch] * 4, batch_size=None))
        totals.append(callback.total())
    assert predicted.flops == totals[1].flops - totals[0].flops
    assert predicted.bytes == pytest.approx(totals[1].bytes - totals[0].bytes, rel=1e-5)
    for operator, flops in predicted.by_operator.items():
        assert flops == sum(s * t.by_operator.get(operator, 0) for s, t in zip((-1, 1), totals, strict=True))


class Clipped(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = None

    def configure_model(self):
        if self.layer is None:
            self.layer = nn.Linear(4, 4)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        self.log("loss", loss)
        return {"loss": loss}

    def configure_optimizers(self):
        optimizer = AdamW(self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def test_models_configured_late_and_gradients_clipped(tmp_path):
    totals = []
    for steps in (2, 3):
        callback = LedgerCallback(every_step=True)
        run = trainer(callback, tmp_path, max_steps=steps, gradient_clip_val=1.0)
        run.fit(Clipped(), DataLoader(torch.randn(6, 4), batch_size=2))
        totals.append(callback.train_flops)
    predicted = predict(Clipped, torch.randn(2, 4), clip_norm=1.0)
    assert predicted.flops == totals[1] - totals[0]


def test_nothing_is_allocated():
    # A terabyte of parameters.
    bill = predict(lambda: nn.Linear(1 << 19, 1 << 19), torch.empty(1, 1 << 19, device="meta"), train=False)
    assert bill.flops == 2 * (1 << 38) + (1 << 19)


class Bucketed(nn.Module):
    """As many rows as the largest number says."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.layer(x[: int(lengths.max())])


def test_a_model_that_looks_at_values_says_what_to_do():
    batch = torch.randn(10, 4), torch.tensor([3, 7])
    with pytest.raises(NotPredictable, match=r"Bucketed looks at values.*device='cpu'"):
        predict(Bucketed, batch)
    counted = by_hand(Bucketed(), lambda model: model(*batch).sum(), steps=1)
    taken = predict(Bucketed, batch, loss=lambda model, batch: model(*batch).sum(), device="cpu")
    same(taken, counted)


def test_a_graph_without_loops_is_predicted():
    nodes, edges = torch.randn(10, 6), torch.stack([torch.arange(40) % 10, (torch.arange(40) + 1) % 10])
    build = partial(GATConv, 6, 4)
    counted = by_hand(build(), lambda model: model(nodes, edges).sum(), steps=1)
    same(predict(build, (nodes, edges), loss=lambda model, batch: model(*batch).sum()), counted)


def test_mistakes_of_a_model_stay_what_they_are():
    with pytest.raises(RuntimeError, match="reduction dim"):
        predict(lambda: nn.Linear(4, 4), torch.randn(2, 5))
    with pytest.raises(ValueError, match="train=False"):
        predict(lambda: nn.Embedding(4, 4).requires_grad_(False), torch.zeros(2, dtype=torch.int64))
