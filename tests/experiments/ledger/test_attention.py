import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nested import nested_tensor as nested
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from experiments.ledger import Ledger, UnpricedOperator

B, H, T, D = 2, 3, 5, 4
PAIRS = B * H * T * T
CAUSAL = B * H * T * (T + 1) // 2


def heads(device="cpu", time=T):
    return [torch.randn(B, H, time, D, device=device, requires_grad=True) for _ in range(3)]


def bill(function, *parts, **kwargs):
    gradient = torch.ones(*parts[0].shape[:-1], parts[2].shape[-1], device=parts[0].device)
    with Ledger() as ledger:
        function(*parts, **kwargs).backward(gradient)
    return ledger


def fused(*args, **kwargs):
    # Looked up when called: a reference taken earlier would reach the kernel itself.
    return F.scaled_dot_product_attention(*args, **kwargs)


def spelled(query, key, value):
    return torch.softmax(query @ key.transpose(-1, -2) * D**-0.5, -1) @ value


def test_spelled_and_fused_attention_cost_the_same():
    one, other = bill(spelled, *heads()), bill(fused, *heads())
    assert one.by_phase == other.by_phase == {"forward": PAIRS * (4 * D + 6), "backward": PAIRS * (8 * D + 5)}
    assert one.matmul_flops == other.matmul_flops == PAIRS * 12 * D


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_causal_pairs_on_every_kernel(device, dropout):
    ledger = bill(fused, *heads(device), is_causal=True, dropout_p=dropout)
    assert ledger.by_operator["aten.scaled_dot_product_attention"] == ledger.flops
    assert ledger.by_phase == {"forward": CAUSAL * (4 * D + 6), "backward": CAUSAL * (8 * D + 5)}
    # forward: three read, one written; backward: three, the output and its gradient read, three written
    assert ledger.bytes_by_operator["aten.scaled_dot_product_attention"] == 4 * B * H * T * D * (4 + 8)


@pytest.mark.parametrize("kernel", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_kernels_agree(kernel):
    with sdpa_kernel(kernel):
        ledger = bill(fused, *heads(), is_causal=True)
    assert ledger.matmul_flops == CAUSAL * 12 * D


def test_operator_called_behind_the_function_costs_the_same():
    direct = torch._C._nn.scaled_dot_product_attention
    one = bill(direct, *heads(), is_causal=True)
    other = bill(fused, *heads(), is_causal=True)
    assert one.by_phase == other.by_phase
    assert one.matmul_flops == other.matmul_flops


def test_causal_with_more_queries_than_keys_and_fewer():
    for time, source in ((7, 4), (4, 7)):
        query, key = torch.randn(1, 1, time, D), torch.randn(1, 1, source, D)
        with Ledger() as ledger:
            F.scaled_dot_product_attention(query, key, key, is_causal=True)
        alive = torch.ones(time, source).tril().sum().item()
        assert ledger.matmul_flops == alive * 4 * D


def test_masks_are_billed_by_what_they_let_through():
    mask = torch.zeros(T, T, dtype=torch.bool)
    mask[:, 0] = True
    boolean = bill(fused, *heads(), attn_mask=mask)
    added = bill(fused, *heads(), attn_mask=torch.zeros(T, T).masked_fill(~mask, -torch.inf))
    alive = B * H * T
    assert boolean.by_phase == {"forward": alive * (4 * D + 6), "backward": alive * (8 * D + 5)}
    assert added.by_phase["forward"] == alive * (4 * D + 7)


def counted(function, *parts, **kwargs):
    with Ledger() as ledger:
        function(*parts, **kwargs)
    return ledger.flops


MASK = torch.rand(B, T, T) < 0.5
HALF = [part.detach() for part in heads()]


@pytest.mark.parametrize(
    ("mapped", "parts", "plain", "mask"),
    [
        (torch.vmap(fused), HALF, HALF, None),
        (torch.vmap(torch.vmap(fused)), HALF, HALF, None),
        (torch.vmap(fused, in_dims=1), HALF, HALF, None),
        (torch.vmap(fused, in_dims=(0, None, None)), [HALF[0], HALF[1][0], HALF[2][0]], HALF, None),
        (
            torch.vmap(lambda q, k, v, m: fused(q, k, v, attn_mask=m)),
            [*HALF, MASK],
            HALF,
            MASK[:, None],
        ),
        (
            torch.vmap(torch.vmap(lambda q, k, v, m: fused(q, k, v, attn_mask=m), in_dims=(0, 0, 0, None))),
            [*HALF, MASK],
            HALF,
            MASK[:, None],
        ),
    ],
    ids=["rows", "rows and heads", "heads", "one memory", "masks", "masks, rows and heads"],
)
def test_attention_under_vmap_costs_what_it_costs_without(mapped, parts, plain, mask):
    assert counted(mapped, *parts) == counted(fused, *plain, attn_mask=mask) > 0


def test_gradients_of_transforms_are_billed():
    def loss(*parts):
        return fused(*parts).sum()

    grad = torch.func.grad(loss, argnums=(0, 1, 2))
    once, mapped = Ledger(), Ledger()
    with once:
        grad(*HALF)
    with mapped:
        torch.vmap(grad)(*HALF)
    # Transforms sum the output's gradient themselves, which is less than a hundredth here.
    exact = PAIRS * (8 * D + 5)
    for ledger in once, mapped:
        assert exact <= ledger.by_phase["backward"] < 1.02 * exact


@pytest.mark.parametrize(
    "parts",
    [
        (HALF[0][:1], HALF[1], HALF[2]),
        (HALF[0], HALF[1][:1], HALF[2][:1]),
        (HALF[0], HALF[1][:, :1], HALF[2][:, :1]),
        (HALF[0], HALF[1], HALF[2][:1]),
    ],
)
def test_rows_that_are_broadcast_are_billed(parts):
    assert counted(fused, *parts) == PAIRS * (4 * D + 6)


def test_grouped_queries_are_all_billed():
    query = torch.randn(B, 2 * H, T, D)
    for keys in HALF[1], HALF[1][:, :1]:
        assert counted(fused, query, keys, keys, enable_gqa=True) == 2 * PAIRS * (4 * D + 6)


def test_one_query_and_many_masks():
    one = [part[:1] for part in HALF]
    with sdpa_kernel(SDPBackend.MATH):
        assert counted(fused, *one, attn_mask=MASK[:, None]) == H * int(MASK.sum()) * (4 * D + 6)


def test_masks_that_are_names():
    upper, lower = causal_upper_left(T, T), causal_lower_right(2, T)
    assert counted(fused, *HALF, attn_mask=upper) == CAUSAL * (4 * D + 6)
    query = HALF[0][:, :, :2]
    plain = fused(HALF[0], *HALF[1:], attn_mask=upper), fused(query, *HALF[1:], attn_mask=lower)
    with Ledger():
        watched = fused(HALF[0], *HALF[1:], attn_mask=upper), fused(query, *HALF[1:], attn_mask=lower)
    torch.testing.assert_close(watched, plain)
    assert counted(fused, query, *HALF[1:], attn_mask=lower) == B * H * (T - 1 + T) * (4 * D + 6)


def test_masks_of_fake_tensors_let_all_pairs_live():
    with FakeTensorMode():
        mask = torch.ones(T, T, dtype=torch.bool)
        assert counted(fused, *heads(), attn_mask=mask) == PAIRS * (4 * D + 6)


def test_sequences_of_unequal_length():
    lengths = 5, 7
    parts = [
        nested([torch.randn(n, H, D) for n in lengths], layout=torch.jagged, requires_grad=True)
        for _ in range(3)
    ]
    with Ledger() as ledger:
        fused(*(part.transpose(1, 2) for part in parts)).values().sum().backward()
    pairs = H * sum(n * n for n in lengths)
    cost = ledger.costs("operator")["aten.scaled_dot_product_attention"]
    assert cost.flops == pairs * (4 * D + 6 + 8 * D + 5)
    layer = nn.Sequential(nn.Linear(D, 3), nn.GELU())
    x = torch.randn(sum(lengths), D)
    assert counted(layer, nested(list(x.split(lengths)), layout=torch.jagged)) == counted(layer, x)


def test_kernels_that_torch_miscounts_have_no_price():
    x = torch.randn(B, T, H, D, device="meta")
    with pytest.raises(UnpricedOperator), Ledger():
        torch.ops.aten._flash_attention_forward(x, x, x, None, None, T, T, 0.0, True, False)


def test_only_gradients_asked_for_are_billed():
    query, key, value = heads()
    ledger = bill(fused, query.detach(), key.detach(), value)
    assert ledger.by_phase["backward"] == PAIRS * 2 * D


def test_backward_twice_is_billed_twice():
    parts = heads()
    with Ledger() as ledger:
        y = F.scaled_dot_product_attention(*parts).sum()
        y.backward(retain_graph=True)
        y.backward()
    assert ledger.costs("operator")["aten.scaled_dot_product_attention"].matmul_flops == PAIRS * (4 + 16) * D


class Attention(nn.Module):
    def __init__(self, device="cpu"):
        super().__init__()
        self.qkv = nn.Linear(H * D, 3 * H * D, bias=False, device=device)
        self.out = nn.Linear(H * D, H * D, device=device)
        self.norm = nn.RMSNorm(H * D, device=device)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (H, D)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.1 if self.training else 0.0)
        return x + self.dropout(self.out(y.transpose(1, 2).reshape(x.shape)))


def whole(model, device, backward=True):
    model.zero_grad()
    x = torch.randn(B, T, H * D, device=device)
    gradient = torch.ones_like(x)
    with Ledger(model) as ledger, torch.set_grad_enabled(backward):
        y = model(x)
        if backward:
            y.backward(gradient)
    return ledger.to_dict()["work"]


def test_cpu_and_meta_train_and_eval_have_one_bill():
    bills = [
        whole(model.train(training), device)
        for device in ("cpu", "meta")
        for model in [nn.Sequential(Attention(device), Attention(device))]
        for training in (True, False)
    ]
    assert all(bill == bills[0] for bill in bills)


def test_recording_gradients_does_not_change_the_forward():
    model = Attention()
    forward = [row for row in whole(model, "cpu") if row["phase"] == "forward"]
    assert forward == whole(model, "cpu", backward=False)


def test_encoder_layer_costs_the_same_in_its_fast_path():
    d, f, time, batch = 64, 256, 16, 2
    layer = nn.TransformerEncoderLayer(d, 4, f, dropout=0.1, batch_first=True)
    x = torch.randn(batch, time, d)
    with Ledger(layer) as train:
        layer(x)
    layer.eval()
    with Ledger(layer) as fast, torch.no_grad():
        layer(x)
    assert train.matmul_flops == 2 * batch * time * (4 * d * d + 2 * d * f) + 4 * batch * time * time * d
    assert fast.to_dict() == train.to_dict()
    assert torch.backends.mha.get_fastpath_enabled()


def test_functions_are_put_back():
    before = F.scaled_dot_product_attention, F.dropout
    with pytest.raises(ZeroDivisionError), Ledger():
        1 / 0  # noqa: B018
    assert (F.scaled_dot_product_attention, F.dropout) == before


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("device", "dropout"), [("cpu", 0.0), ("cpu", 0.1), ("meta", 0.0)])
def test_grouped_queries_cost_their_pairs(groups, device, dropout):
    query = torch.randn(B, H, T, D, device=device, requires_grad=True)
    key, value = (torch.randn(B, groups, T, D, device=device, requires_grad=True) for _ in range(2))
    ledger = bill(fused, query, key, value, is_causal=True, enable_gqa=True, dropout_p=dropout)
    assert ledger.by_phase == {"forward": CAUSAL * (4 * D + 6), "backward": CAUSAL * (8 * D + 5)}


@pytest.mark.parametrize("kernel", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_padding_masks_bill_the_keys_that_are_there(kernel):
    lengths = torch.tensor([T, 2])
    there = (torch.arange(T) < lengths[:, None])[:, None, None]
    added = torch.zeros(B, 1, 1, T).masked_fill(~there, torch.finfo(torch.float32).min)
    alive = H * T * (T + 2)
    with sdpa_kernel(kernel):
        boolean, numbers = (bill(fused, *heads(), attn_mask=mask) for mask in (there, added))
    assert boolean.by_phase == {"forward": alive * (4 * D + 6), "backward": alive * (8 * D + 5)}
    assert numbers.by_phase == {"forward": alive * (4 * D + 7), "backward": alive * (8 * D + 5)}


@pytest.mark.parametrize("training", [True, False])
def test_multihead_attention_with_and_without_weights(training):
    layer = nn.MultiheadAttention(H * D, H, dropout=0.1, batch_first=True).train(training)
    x = torch.randn(B, T, H * D)
    bills = []
    for need_weights in (True, False):
        with Ledger(layer) as ledger:
            layer(x, x, x, need_weights=need_weights)
        bills.append(ledger)
    with_weights, without = bills
    assert with_weights.matmul_flops == without.matmul_flops == 2 * B * T * 4 * (H * D) ** 2 + PAIRS * 4 * D
    # Weights wanted, the queries are scaled instead of the scores, and the weights averaged over heads.
    queries_scaled, scores_scaled, averaged = B * T * H * D, PAIRS, PAIRS
    assert with_weights.flops - without.flops == queries_scaled - scores_scaled + averaged


def test_transformer_encoder_with_padding_costs_the_same_in_its_fast_path():
    layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    x, padding = torch.randn(B, T, 8), torch.zeros(B, T, dtype=torch.bool)
    padding[0, 3:] = True
    with Ledger(layers) as train:
        layers(x, src_key_padding_mask=padding)
    layers.eval()
    with Ledger(layers) as fast, torch.no_grad():
        layers(x, src_key_padding_mask=padding)
    assert (fast.flops, fast.matmul_flops) == (train.flops, train.matmul_flops)
