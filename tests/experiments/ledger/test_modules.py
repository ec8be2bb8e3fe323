"""Every layer, activation and loss of torch.nn is priced, and costs the same however it is run."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.experiments.ledger.settings import assert_one_bill

R = torch.rand
NO_KERNEL = "Meta tensors|Could not run"
NO_VALUES = "item|nonzero"


class Call(nn.Module):
    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.modules_given = function, nn.ModuleList(modules)

    def forward(self, *inputs):
        return self.function(*self.modules_given, *inputs)


def lengths(*values):
    return torch.tensor(values, device="cpu")


def signs(*size):
    return R(*size).round() * 2 - 1


ELEMENTWISE = """
    CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish PReLU ReLU ReLU6 RReLU SELU
    SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink Softmax LogSoftmax Softmin GLU Identity Flatten
    Dropout AlphaDropout FeatureAlphaDropout
"""
CASES = {name: lambda name=name: (getattr(nn, name)(), R(4, 6)) for name in ELEMENTWISE.split()}
CASES |= {
    "Threshold": lambda: (nn.Threshold(0.1, 0.0), R(4, 6)),
    "GELU tanh": lambda: (nn.GELU("tanh"), R(4, 6)),
    "Softmax2d": lambda: (nn.Softmax2d(), R(1, 4, 3, 3)),
    "Linear": lambda: (nn.Linear(4, 5), R(3, 4)),
    "Bilinear": lambda: (nn.Bilinear(4, 5, 6), R(3, 4), R(3, 5)),
    "LayerNorm": lambda: (nn.LayerNorm(5), R(2, 4, 5)),
    "RMSNorm": lambda: (nn.RMSNorm(5), R(2, 4, 5)),
    "GroupNorm": lambda: (nn.GroupNorm(2, 4), R(2, 4, 5)),
    "LocalResponseNorm": lambda: (nn.LocalResponseNorm(2), R(2, 4, 5, 5)),
    "CosineSimilarity": lambda: (nn.CosineSimilarity(), R(3, 4), R(3, 4)),
    "PairwiseDistance": lambda: (nn.PairwiseDistance(), R(3, 4), R(3, 4)),
    "Fold": lambda: (nn.Fold((4, 4), 2), R(2, 8, 9)),
    "Unfold": lambda: (nn.Unfold(2), R(2, 2, 4, 4)),
    "PixelShuffle": lambda: (nn.PixelShuffle(2), R(2, 4, 3, 3)),
    "PixelUnshuffle": lambda: (nn.PixelUnshuffle(2), R(2, 4, 4, 4)),
    "ChannelShuffle": lambda: (nn.ChannelShuffle(2), R(2, 4, 4, 4)),
    "weight norm": lambda: (nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), R(3, 4)),
    "antialias": lambda: (
        Call(lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)),
        R(2, 4, 6, 6),
    ),
    "affine_grid": lambda: (Call(lambda x: F.affine_grid(x, [2, 4, 6, 6])), R(2, 2, 3)),
    "grid_sample 3d": lambda: (Call(F.grid_sample), R(2, 4, 6, 6, 6), R(2, 3, 3, 3, 3)),
    "FractionalMaxPool2d": lambda: (nn.FractionalMaxPool2d(2, output_size=3), R(2, 4, 6, 6)),
    "FractionalMaxPool3d": lambda: (nn.FractionalMaxPool3d(2, output_size=3), R(2, 4, 6, 6, 6)),
    "Embedding": lambda: (nn.Embedding(10, 5, padding_idx=0), torch.randint(0, 10, (3, 4))),
    "Embedding renormalised": lambda: (nn.Embedding(10, 5, max_norm=1.0), torch.randint(0, 10, (3, 4))),
    "Embedding sparse": lambda: (nn.Embedding(10, 5, sparse=True), torch.randint(0, 10, (3, 4))),
    "EmbeddingBag offsets": lambda: (
        nn.EmbeddingBag(10, 5, padding_idx=0, include_last_offset=True),
        torch.randint(0, 10, (12,)),
        torch.arange(0, 13, 4),
    ),
}
for mode in ("bilinear", "nearest", "bicubic"):
    CASES[f"grid_sample {mode}"] = lambda mode=mode: (
        Call(lambda x, grid: F.grid_sample(x, grid, mode=mode)),
        R(2, 4, 6, 6),
        R(2, 3, 3, 2),
    )
for mode in ("sum", "mean", "max"):
    CASES[f"EmbeddingBag {mode}"] = lambda mode=mode: (
        nn.EmbeddingBag(10, 5, mode=mode),
        torch.randint(0, 10, (3, 4)),
    )


def image(dims):
    return R(2, 4, *(6,) * dims)


def of_dimension(d):
    def layer(name, *args, **kwargs):
        return lambda: (getattr(nn, f"{name}{d}d")(*args, **kwargs), image(d))

    modes = {1: ("linear",), 2: ("bilinear", "bicubic"), 3: ("trilinear",)}[d] + (
        *("nearest", "nearest-exact", "area"),
    )

    def unpooled():
        pool, back = getattr(nn, f"MaxPool{d}d")(2, return_indices=True), getattr(nn, f"MaxUnpool{d}d")(2)
        return Call(lambda x: back(*pool(x))), image(d)

    return {
        "Conv": layer("Conv", 4, 8, 3),
        "Conv depthwise": layer("Conv", 4, 8, 3, groups=4, padding=1, stride=2),
        "Conv circular": layer("Conv", 4, 8, 2, dilation=2, padding=1, padding_mode="circular"),
        "ConvTranspose": layer("ConvTranspose", 4, 8, 3, stride=2),
        "MaxPool": layer("MaxPool", 2),
        "AvgPool": layer("AvgPool", 2),
        "LPPool": layer("LPPool", 2, 2),
        "AdaptiveAvgPool": layer("AdaptiveAvgPool", 4),
        "AdaptiveMaxPool": layer("AdaptiveMaxPool", 4),
        "MaxUnpool": unpooled,
        "BatchNorm": layer("BatchNorm", 4),
        "InstanceNorm": layer("InstanceNorm", 4, affine=True),
        "InstanceNorm tracking": layer("InstanceNorm", 4, track_running_stats=True),
        "ReflectionPad": layer("ReflectionPad", 1),
        "ReplicationPad": layer("ReplicationPad", 1),
        "ConstantPad": layer("ConstantPad", 1, 0.0),
        "CircularPad": layer("CircularPad", 1),
        "Dropout": layer("Dropout"),
        **{
            f"Upsample {mode}": lambda mode=mode: (nn.Upsample(scale_factor=2, mode=mode), image(d))
            for mode in modes
        },
    }


for dims in (1, 2, 3):
    CASES |= {f"{name} {dims}d": case for name, case in of_dimension(dims).items()}


def packed_run(rnn, x):
    return rnn(nn.utils.rnn.pack_padded_sequence(x, lengths(6, 4, 2)))[0].data


def padded_run(encoder, x):
    return encoder(x, src_key_padding_mask=torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device))


def stack():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)


for kind in ("RNN", "LSTM", "GRU"):
    CASES[f"{kind}Cell"] = lambda kind=kind: (getattr(nn, f"{kind}Cell")(4, 5), R(3, 4))
    CASES[kind] = lambda kind=kind: (getattr(nn, kind)(4, 5), R(6, 3, 4))
    CASES[f"{kind} without biases"] = lambda kind=kind: (getattr(nn, kind)(4, 5, bias=False), R(6, 3, 4))
    CASES[f"{kind} packed"] = lambda kind=kind: (
        Call(packed_run, getattr(nn, kind)(4, 5)),
        R(6, 3, 4),
    )

CASES |= {
    "LSTM projected": lambda: (nn.LSTM(4, 5, proj_size=3), R(6, 3, 4)),
    "TransformerEncoderLayer": lambda: (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), R(2, 5, 8)),
    "TransformerEncoderLayer norm first": lambda: (
        nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, activation="gelu"),
        R(5, 2, 8),
    ),
    "TransformerEncoder padded": lambda: (Call(padded_run, stack()), R(2, 5, 8)),
    "TransformerDecoderLayer": lambda: (
        nn.TransformerDecoderLayer(8, 2, 16, batch_first=True),
        R(2, 5, 8),
        R(2, 4, 8),
    ),
    "Transformer": lambda: (nn.Transformer(8, 2, 1, 1, 16, batch_first=True), R(2, 5, 8), R(2, 4, 8)),
    "MultiheadAttention": lambda: (nn.MultiheadAttention(8, 2, dropout=0.1), *(R(5, 2, 8) for _ in range(3))),
    "MultiheadAttention without weights": lambda: (
        Call(lambda mha, x: mha(x, x, x, need_weights=False), nn.MultiheadAttention(8, 2, dropout=0.1)),
        R(5, 2, 8),
    ),
    "MultiheadAttention of others": lambda: (
        nn.MultiheadAttention(8, 2, kdim=4, vdim=3, add_bias_kv=True, add_zero_attn=True),
        *(R(5, 2, 8), R(6, 2, 4), R(6, 2, 3)),
    ),
}

TWO = "L1 MSE PoissonNLL KLDiv BCE BCEWithLogits Huber SmoothL1 MultiLabelSoftMargin"
CASES |= {
    f"{name}Loss": lambda name=name: (getattr(nn, f"{name}Loss")(), R(4, 6), R(4, 6)) for name in TWO.split()
}
CASES |= {
    "CrossEntropyLoss": lambda: (nn.CrossEntropyLoss(), R(4, 6), torch.randint(0, 6, (4,))),
    "CrossEntropyLoss of images": lambda: (
        nn.CrossEntropyLoss(),
        R(4, 6, 3, 3),
        torch.randint(0, 6, (4, 3, 3)),
    ),
    "CrossEntropyLoss smoothed": lambda: (
        nn.CrossEntropyLoss(weight=R(6), label_smoothing=0.1),
        *(R(4, 6), torch.randint(0, 6, (4,))),
    ),
    "CrossEntropyLoss of probabilities": lambda: (nn.CrossEntropyLoss(), R(4, 6), R(4, 6)),
    "NLLLoss": lambda: (nn.NLLLoss(), R(4, 6), torch.randint(0, 6, (4,))),
    "MultiMarginLoss": lambda: (nn.MultiMarginLoss(), R(4, 6), torch.randint(0, 6, (4,))),
    "MultiLabelMarginLoss": lambda: (nn.MultiLabelMarginLoss(), R(4, 6), torch.randint(0, 6, (4, 6))),
    "GaussianNLLLoss": lambda: (nn.GaussianNLLLoss(), R(4, 6), R(4, 6), R(4, 6)),
    "MarginRankingLoss": lambda: (nn.MarginRankingLoss(), R(4), R(4), signs(4)),
    "HingeEmbeddingLoss": lambda: (nn.HingeEmbeddingLoss(), R(4, 6), signs(4, 6)),
    "SoftMarginLoss": lambda: (nn.SoftMarginLoss(), R(4, 6), signs(4, 6)),
    "CosineEmbeddingLoss": lambda: (nn.CosineEmbeddingLoss(), R(4, 6), R(4, 6), signs(4)),
    "TripletMarginLoss": lambda: (nn.TripletMarginLoss(), R(4, 6), R(4, 6), R(4, 6)),
    "LinearCrossEntropyLoss": lambda: (nn.LinearCrossEntropyLoss(6, 10), R(4, 6), torch.randint(0, 10, (4,))),
    "CTCLoss": lambda: (
        Call(lambda x, y: F.ctc_loss(x.log_softmax(-1), y, lengths(10, 10), lengths(4, 3))),
        *(R(10, 2, 6), torch.randint(1, 6, (2, 4))),
    ),
    "AdaptiveLogSoftmaxWithLoss": lambda: (
        nn.AdaptiveLogSoftmaxWithLoss(8, 20, [5, 10]),
        *(R(4, 8), torch.arange(0, 20, 5)),
    ),
}

# What torch itself cannot run.
CANNOT = {
    "FractionalMaxPool3d": {"meta": NO_KERNEL},
    "MultiLabelMarginLoss": {"meta": NO_KERNEL},
    "MultiMarginLoss": {"meta": NO_KERNEL},
    "CTCLoss": {"meta": NO_KERNEL},
    "GaussianNLLLoss": {"meta": NO_VALUES},
    "AdaptiveLogSoftmaxWithLoss": {"autocast": "dtype", "meta": NO_VALUES},
}
if not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # a matter of the processor
    CANNOT |= {key: {"autocast": "primitive descriptor"} for key in ("LSTM", "LSTM without biases")}
# What is billed as torch computes it, by the rules on top of docs/counting.md.
STEPS = {"meta": "the CPU projects all steps at once"}
STATISTICS = dict.fromkeys(("eval", "inference_mode"), "running statistics are averaged over the batch")
DIFFERS = {
    **{
        f"{kind}{how}": STEPS for kind in ("RNN", "LSTM", "GRU") for how in ("", " without biases", " packed")
    },
    "LSTM projected": STEPS,
    **{f"InstanceNorm tracking {d}d": STATISTICS for d in (1, 2, 3)},
}


@pytest.mark.parametrize("name", CASES)
def test_one_bill(name):
    assert_one_bill(CASES[name], CANNOT.get(name, {}), DIFFERS.get(name, {}))


def test_every_public_module_is_swept():
    bases = {nn.Module, nn.Container, nn.RNNBase, nn.RNNCellBase}
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
    named = " ".join(CASES)
    missing = [
        name
        for name, kind in vars(nn).items()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and kind not in bases
        if not issubclass(kind, containers) and not name.startswith("Lazy")
        if name.removesuffix("1d").removesuffix("2d").removesuffix("3d") not in named
    ]
    same = {"NLLLoss2d", "ZeroPad1d", "ZeroPad2d", "ZeroPad3d", "UpsamplingNearest2d", "UpsamplingBilinear2d"}
    rest = {"CrossMapLRN2d", "DataParallel", "SyncBatchNorm", "TripletMarginWithDistanceLoss", "Unflatten"}
    assert set(missing) <= same | rest
