"""The catalogue: one small module for each trap that a counter of operations may fall into, with what it costs.

`CASES` is a plain table, for the tests and for the comparison with other counters. Each expected number stands as
its derivation, in macs as docs/conventions.md defines them; sizes: N = 2 samples of L = 5 rows (10 rows in all), width
8, outputs of width 6. The loss is the sum of what forward returns. Inputs ask for no gradient unless they say so, so
that the backward of a lone layer is the gradient of its weight alone: as many macs as its forward.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from catalog import nets
from catalog.nets import Net, frozen, parameter
from torch import nn
from torch.nn.utils import parametrizations, parametrize

Inputs = Callable[[], tuple[Any, ...]]

LINEAR = 10 * 8 * 6  # rows by inputs by outputs of Linear(8, 6)
SQUARE = 10 * 8 * 8  # of Linear(8, 8)


@dataclass(frozen=True)
class Case:
    """A module, real inputs for it, and the macs of its forward and backward (None: it has no gradients).

    `train`: the forward's where it differs in train mode. `assumes`: part of what its ledger says that it took for
    granted. `on_meta`: whether it can be built there.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    forward: int
    backward: int | None
    train: int | None = None
    assumes: str | None = None
    on_meta: bool = True
    keywords: Callable[[], dict[str, Any]] = dict


def rows() -> tuple[Any, ...]:
    return (torch.randn(2, 5, 8),)


def sized(*shapes: tuple[int, ...]) -> Inputs:
    return lambda: tuple(torch.randn(shape) for shape in shapes)


def ids() -> tuple[Any, ...]:
    return (torch.arange(10).view(2, 5) % 7,)


def fc() -> nn.Linear:
    return nn.Linear(8, 6)


def square() -> nn.Linear:
    return nn.Linear(8, 8)


def net(function: Callable[..., Any], **parts: Callable[[], Any]) -> Callable[[], nn.Module]:
    """Return what builds a net of parts that are made anew each time, and where it is built."""
    return lambda: Net(function, **{name: make() for name, make in parts.items()})


def sequence(*parts: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(make() for make in parts))


def qkv() -> nn.Linear:
    return nn.Linear(8, 24)


def first(net: Any, x: torch.Tensor) -> Any:
    return net.rnn(x)[0]


def traced() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(nn.Sequential(square(), nn.ReLU(), fc()), torch.zeros(2, 5, 8))


def script(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.script(build())

    return make


def weight_norm_by_hook() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(fc())


def symmetric() -> nn.Module:
    layer = square()
    parametrize.register_parametrization(layer, "weight", nets.Symmetric())
    return layer


def int8() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(fc()), {nn.Linear}, torch.qint8)


def shared() -> nn.Module:
    layer = square()
    return nn.Sequential(nn.Sequential(layer, nn.ReLU()), nn.Sequential(layer))


def three(*trains: bool) -> Callable[[], nn.Module]:
    """Return what builds Linear(8, 8), Linear(8, 8), Linear(8, 6), frozen where `trains` is False."""

    def build() -> nn.Module:
        layers = (square(), square(), fc())
        return nn.Sequential(*(layer.requires_grad_(flag) for layer, flag in zip(layers, trains, strict=True)))

    return build


FUNCTIONAL = [
    Case("functional linear", net(lambda net, x: F.linear(x, net.w), w=lambda: parameter(6, 8)), rows, LINEAR, LINEAR),
    Case("matmul", net(lambda net, x: x @ net.w, w=lambda: parameter(8, 6)), rows, LINEAR, LINEAR),
    # einsum: 2 * 5 * 8 * 6; backward: both its operands, and the weight of the layer before
    Case(
        "einsum",
        net(lambda net, x: torch.einsum("nld,od->nlo", net.fc(x), net.w), fc=square, w=lambda: parameter(6, 8)),
        rows,
        SQUARE + LINEAR,
        2 * LINEAR + SQUARE,
    ),
    # scores of 5 by 5 rows of width 8; x itself asks for no gradient
    Case(
        "einsum of activations",
        net(lambda net, x: torch.einsum("nid,njd->nij", net.fc(x), x), fc=square),
        rows,
        SQUARE + 2 * 5 * 5 * 8,
        2 * 5 * 5 * 8 + SQUARE,
    ),
    # 2 samples, 4 filters of 3 x 3 x 3, 8 x 8 places
    Case(
        "functional convolution",
        net(lambda net, x: F.conv2d(x, net.w, padding=1), w=lambda: parameter(4, 3, 3, 3)),
        sized((2, 3, 8, 8)),
        2 * 4 * 27 * 64,
        2 * 4 * 27 * 64,
    ),
    # matrix by vector 6 * 8, dot 6; backward: dot's gradients are a number by a vector, and the matrix's is an outer
    # product, which adds nothing up: no macs
    Case(
        "mv and dot",
        net(lambda net, x: net.v.dot(net.w.mv(x)), w=lambda: parameter(6, 8), v=lambda: parameter(6)),
        sized((8,)),
        6 * 8 + 6,
        0,
    ),
    # (2, 5, 8) by (2, 8, 5)
    Case(
        "baddbmm",
        net(lambda net, x: torch.baddbmm(net.b, net.fc(x), x.mT), fc=square, b=lambda: parameter(5, 5)),
        rows,
        SQUARE + 2 * 5 * 8 * 5,
        2 * 5 * 8 * 5 + SQUARE,
    ),
    Case(
        "addmm",
        net(lambda net, x: torch.addmm(net.b, x, net.w, alpha=2), b=lambda: parameter(6), w=lambda: parameter(8, 6)),
        sized((10, 8)),
        LINEAR,
        LINEAR,
    ),
    # five rows of width 8 by 8, twice, added up: 2 * 5 * 8 * 5; backward: that of the activations
    Case(
        "addbmm",
        net(lambda net, x: torch.addbmm(net.b, net.fc(x), x.mT), fc=square, b=lambda: parameter(5, 5)),
        rows,
        SQUARE + 2 * 5 * 8 * 5,
        2 * 5 * 8 * 5 + SQUARE,
    ),
    Case(
        "tensordot",
        net(lambda net, x: torch.tensordot(x, net.w, dims=([2], [1])), w=lambda: parameter(6, 8)),
        rows,
        LINEAR,
        LINEAR,
    ),
    # (10, 8) (8, 2) (2, 6): first down to 2, then up: 10 * 8 * 2 + 10 * 2 * 6; torch joins the two small ones first
    # only where that is less: 8 * 2 * 6 + 10 * 8 * 6 is more. Backward: each product's two gradients, but for x's
    Case(
        "multi_dot",
        net(
            lambda net, x: torch.linalg.multi_dot([x, net.down, net.up]),
            down=lambda: parameter(8, 2),
            up=lambda: parameter(2, 6),
        ),
        sized((10, 8)),
        160 + 120,
        160 + 2 * 120,
    ),
    # 2 samples, 6 outputs, each the sum of 8 by 4 products; the weight's gradient has as many
    Case("bilinear", lambda: nn.Bilinear(8, 4, 6), sized((2, 8), (2, 4)), 2 * 6 * 8 * 4, 2 * 6 * 8 * 4),
    # distances of 5 to 7 points of width 8, and their gradient for the first
    Case(
        "cdist",
        net(lambda net, x, y: torch.cdist(net.fc(x), y), fc=square),
        sized((2, 5, 8), (2, 7, 8)),
        SQUARE + 2 * 5 * 7 * 8,
        2 * 5 * 7 * 8 + SQUARE,
    ),
    # FFT has no macs; 8 numbers have 5 frequencies
    Case("fft", net(lambda net, x: net.fc(torch.fft.rfft(x).abs()), fc=lambda: nn.Linear(5, 6)), rows, 300, 300),
    Case(
        "spectral filter",
        net(nets.spectral, first=square, second=fc, filter=lambda: parameter(5)),
        rows,
        SQUARE + LINEAR,
        SQUARE + 2 * LINEAR,
    ),
    # 16 windows of 27 by 4
    Case("unfolded", net(nets.unfolded, weight=lambda: parameter(4, 27)), sized((2, 3, 6, 6)), 2 * 16 * 108, 3456),
    # a filter of 108 numbers made of 8 by a layer (1 row), then 16 places; backward: the filter's and the layer's
    Case(
        "weights made in forward",
        net(nets.hypernetwork, fc=lambda: nn.Linear(8, 108)),
        sized((1, 8), (2, 3, 6, 6)),
        8 * 108 + 2 * 16 * 108,
        8 * 108 + 2 * 16 * 108,
    ),
    Case(
        "one_hot by a matrix",
        net(lambda net, ids: F.one_hot(ids, 10).float() @ net.w, w=lambda: parameter(10, 8)),
        ids,
        10 * 10 * 8,
        10 * 10 * 8,
    ),
]

CONVOLUTIONS = [
    # 12 places, 8 filters over 4 / 2 channels by 3
    Case(
        "grouped dilated conv1d",
        lambda: nn.Conv1d(4, 8, 3, padding=2, dilation=2, groups=2),
        sized((2, 4, 12)),
        2 * 12 * 8 * 6,
        2 * 12 * 8 * 6,
    ),
    # (9 - 3) / 2 + 1 = 4 places a side
    Case("strided conv2d", lambda: nn.Conv2d(3, 4, 3, 2), sized((2, 3, 9, 9)), 2 * 16 * 4 * 27, 2 * 16 * 4 * 27),
    # 36 places: 4 filters of 9, then 4 by 6; backward: both gradients of the second, the first's weight
    Case(
        "depthwise and pointwise",
        sequence(lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), lambda: nn.Conv2d(4, 6, 1)),
        sized((2, 4, 6, 6)),
        2 * 36 * (4 * 9 + 4 * 6),
        2 * 36 * (4 * 9 + 2 * 4 * 6),
    ),
    # 4 * 5 * 6 places, 4 filters of 3 * 1 * 3 * 3
    Case(
        "conv3d",
        lambda: nn.Conv3d(3, 4, (1, 3, 3), padding=(0, 1, 1)),
        sized((2, 3, 4, 5, 6)),
        2 * 120 * 4 * 27,
        2 * 120 * 4 * 27,
    ),
    # transposed: each input number meets the filters of its group once: 5 places, 4 channels, 6 * 3
    Case("conv_transpose1d", lambda: nn.ConvTranspose1d(4, 6, 3, 2), sized((2, 4, 5)), 2 * 5 * 4 * 18, 2 * 5 * 4 * 18),
    # 6 / 2 * 9 weights for each input number
    Case(
        "grouped conv_transpose2d",
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        sized((2, 4, 5, 5)),
        2 * 25 * 4 * 27,
        2 * 25 * 4 * 27,
    ),
    Case(
        "conv_transpose3d after a layer",
        sequence(lambda: nn.Conv3d(3, 3, 1), lambda: nn.ConvTranspose3d(3, 2, 2, 2)),
        sized((2, 3, 3, 3, 3)),
        2 * 27 * 3 * (3 + 2 * 8),
        2 * 27 * 3 * (3 + 2 * 2 * 8),
    ),
    Case(
        "circular padding",
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        sized((2, 3, 6, 6)),
        2 * 36 * 4 * 27,
        2 * 36 * 4 * 27,
    ),
    # padding of 1 before and 2 after
    Case("same padding", lambda: nn.Conv1d(3, 4, 4, padding="same"), sized((2, 3, 10)), 2 * 10 * 4 * 12, 960),
    Case("one image without a batch", lambda: nn.Conv2d(3, 4, 3), sized((3, 6, 6)), 16 * 4 * 27, 16 * 4 * 27),
    # 64 places of 4 filters of 27, 16 after the pool, by 3 * 3 * 4 of 6; all else contracts nothing
    Case(
        "norms, pools and resampling",
        sequence(
            lambda: nn.Conv2d(3, 4, 3, padding=1, bias=False),
            lambda: nn.BatchNorm2d(4),
            nn.Hardswish,
            lambda: nn.MaxPool2d(2),
            nn.Dropout2d,
            lambda: nn.Conv2d(4, 6, 3, padding=1),
            lambda: nn.GroupNorm(2, 6),
            lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
            lambda: nn.AdaptiveAvgPool2d(3),
        ),
        sized((2, 3, 8, 8)),
        2 * 64 * 4 * 27 + 2 * 16 * 6 * 36,
        2 * 64 * 4 * 27 + 2 * 2 * 16 * 6 * 36,
    ),
]

QKV = 10 * 8 * 24
SCORES = 2 * 2 * 5 * 5 * 4  # one product: samples, heads, rows, rows, width of a head
FEED_FORWARD = 10 * 8 * 16  # one of its two layers
CROSS = 2 * 2 * 5 * 7 * 4  # 5 rows by 7 of the memory
LAYER = QKV + 2 * SCORES + SQUARE + 2 * FEED_FORWARD
# Of a layer whose input asks for nothing: in_proj's weight, four products, both gradients of all others.
LAYER_BACK = QKV + 4 * SCORES + 2 * SQUARE + 4 * FEED_FORWARD


def encoder_layer(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options)


def attention_case(
    name: str, function: Callable[..., Any], assumes: str | None = None, **parts: Callable[[], Any]
) -> Case:
    """Attention of 5 rows over themselves, however it is written: two products forward, four backward."""
    return Case(name, net(function, qkv=qkv, **parts), rows, QKV + 2 * SCORES, QKV + 4 * SCORES, assumes=assumes)


def self_attention(**options: Any) -> Callable[[], nn.Module]:
    return net(
        lambda net, x: net.attention(x, x, x, **options)[0],
        attention=lambda: nn.MultiheadAttention(8, 2, batch_first=True),
    )


ATTENTION = [
    attention_case("attention", nets.attend),
    attention_case("causal attention", lambda net, x: nets.attend(net, x, is_causal=True)),
    attention_case("masked attention", nets.attend_masked),
    attention_case("biased attention", nets.attend_biased, bias=lambda: torch.zeros(2, 5, 5)),
    attention_case("attention with dropout", nets.attend_dropping),
    attention_case("attention by hand", nets.attend_by_hand),
    attention_case("flex_attention", nets.attend_flexibly, assumes="score_mod"),
    # 4 heads of queries of width 4, 2 of keys and values
    Case(
        "grouped-query attention",
        net(nets.attend_grouped, q=lambda: nn.Linear(8, 16), k=square, v=square),
        rows,
        10 * 8 * 16 + 2 * SQUARE + 2 * 2 * SCORES,
        10 * 8 * 16 + 2 * SQUARE + 4 * 2 * SCORES,
    ),
    # 5 rows by 7: keys of width 4, values of width 6: 2 * 2 * 5 * 7 * (4 + 6), twice that backward
    Case(
        "cross-attention",
        net(nets.attend_across, q=square, k=square, v=lambda: nn.Linear(8, 12)),
        sized((2, 5, 8), (2, 7, 8)),
        SQUARE + 14 * 8 * (8 + 12) + 1400,
        SQUARE + 14 * 8 * (8 + 12) + 2 * 1400,
    ),
    Case("MultiheadAttention", self_attention(), rows, QKV + 2 * SCORES + SQUARE, QKV + 4 * SCORES + 2 * SQUARE),
    Case(
        "MultiheadAttention without weights",
        self_attention(need_weights=False),
        rows,
        QKV + 2 * SCORES + SQUARE,
        QKV + 4 * SCORES + 2 * SQUARE,
    ),
    # 7 rows of width 6 make keys, of width 4 values
    Case(
        "MultiheadAttention of other widths",
        net(
            lambda net, q, k, v: net.attention(q, k, v)[0],
            attention=lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True),
        ),
        sized((2, 5, 8), (2, 7, 6), (2, 7, 4)),
        SQUARE + 14 * 8 * (6 + 4) + 2 * CROSS + SQUARE,
        SQUARE + 14 * 8 * (6 + 4) + 4 * CROSS + 2 * SQUARE,
    ),
    # 5 keys, one that is learned, one of zeros: 7
    Case(
        "MultiheadAttention with added keys",
        net(
            lambda net, x: net.attention(x, x, x)[0],
            attention=lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True),
        ),
        rows,
        QKV + 2 * CROSS + SQUARE,
        QKV + 4 * CROSS + 2 * SQUARE,
    ),
    Case("TransformerEncoderLayer", encoder_layer, rows, LAYER, LAYER_BACK),
    # the input of the first attention is a norm's result, which asks for its gradient
    Case("TransformerEncoderLayer, norms first", lambda: encoder_layer(norm_first=True), rows, LAYER, LAYER_BACK + QKV),
    # padding is masked, not left out; the second layer's input asks for its gradient
    Case(
        "TransformerEncoder with padding",
        net(nets.attend_padded, encoder=lambda: nn.TransformerEncoder(encoder_layer(), 2)),
        lambda: (torch.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])),
        2 * LAYER,
        2 * LAYER_BACK + QKV,
    ),
    # over itself, then over 7 rows of a memory (keys and values 14 rows of 8 by 16), which asks for nothing
    Case(
        "TransformerDecoderLayer",
        lambda: nn.TransformerDecoderLayer(8, 2, 16, batch_first=True),
        sized((2, 5, 8), (2, 7, 8)),
        LAYER + 2 * SQUARE + 14 * 8 * 16 + 2 * CROSS,
        LAYER_BACK + 4 * SQUARE + 14 * 8 * 16 + 4 * CROSS,
    ),
]


def recurrent_case(
    name: str,
    build: Callable[[], nn.Module],
    matrices: int,
    first_input: int,
    inputs: Inputs = rows,
    count: int = 10,
    function: Callable[..., Any] = first,
) -> Case:
    """Each of `count` rows meets all elements of `matrices` once; backward twice, but for the input's gradient."""
    return Case(name, net(function, rnn=build), inputs, count * matrices, count * (2 * matrices - first_input))


def without_gradient(module: nn.Module, start: str) -> nn.Module:
    """Return a module whose parameters of names that start so do not train."""
    for name, value in module.named_parameters():
        value.requires_grad_(not name.startswith(start))
    return module


def padded() -> tuple[Any, ...]:
    return torch.randn(2, 5, 8), torch.tensor([3, 5])


RECURRENT = [
    # an LSTM has 4 gates of 6 units, each over 8 inputs and 6 states
    recurrent_case("LSTM", lambda: nn.LSTM(8, 6, batch_first=True), 4 * 6 * 14, 4 * 6 * 8),
    # a second layer over both directions' states
    recurrent_case(
        "LSTM, two layers, both ways",
        lambda: nn.LSTM(8, 6, 2, dropout=0.2, bidirectional=True, batch_first=True),
        2 * 4 * 6 * (8 + 6) + 2 * 4 * 6 * (12 + 6),
        2 * 4 * 6 * 8,
    ),
    # states of 3, by a matrix of 3 x 6
    recurrent_case(
        "LSTM with projection", lambda: nn.LSTM(8, 6, proj_size=3, batch_first=True), 24 * (8 + 3) + 3 * 6, 24 * 8
    ),
    recurrent_case("LSTM without a batch", lambda: nn.LSTM(8, 6), 24 * 14, 24 * 8, sized((5, 8)), 5),
    # 3 and 5 rows: 8
    recurrent_case(
        "packed LSTM", lambda: nn.LSTM(8, 6, batch_first=True), 24 * 14, 24 * 8, padded, 8, function=nets.packed
    ),
    recurrent_case("GRU", lambda: nn.GRU(8, 6), 3 * 6 * 14, 3 * 6 * 8),
    recurrent_case(
        "packed GRU", lambda: nn.GRU(8, 6, batch_first=True), 18 * 14, 18 * 8, padded, 8, function=nets.packed
    ),
    recurrent_case("RNN", lambda: nn.RNN(8, 6, nonlinearity="relu"), 6 * 14, 6 * 8),
    Case(
        "LSTM after a layer",
        sequence(square, lambda: nn.LSTM(8, 6)),
        rows,
        SQUARE + 10 * 24 * 14,
        SQUARE + 10 * 2 * 24 * 14,
    ),
    # through w_hh (144 elements) all the same, and w_ih's and w_hh's gradients: 192 + 144
    Case(
        "LSTM with frozen biases",
        lambda: without_gradient(nn.LSTM(8, 6), "bias"),
        rows,
        10 * 336,
        10 * (144 + 192 + 144),
    ),
    Case(
        "LSTM with a frozen matrix",
        lambda: without_gradient(nn.LSTM(8, 6), "weight_hh"),
        rows,
        10 * 336,
        10 * (144 + 192),
    ),
    # 5 steps of 2 samples; backward: both weights 5 times, the states' gradient 4 times (the first states are zeros)
    Case(
        "LSTMCell",
        net(nets.unrolled_lstm, cell=lambda: nn.LSTMCell(8, 6)),
        rows,
        10 * 24 * 14,
        10 * 24 * 14 + 8 * 24 * 6,
    ),
    Case("GRUCell", lambda: nn.GRUCell(8, 6), sized((10, 8), (10, 6)), 10 * 18 * 14, 10 * 18 * 14),
    Case("RNNCell", lambda: nn.RNNCell(8, 6), sized((10, 8), (10, 6)), 10 * 6 * 14, 10 * 6 * 14),
]

TABLES = [
    # two bags; a bag that weighs nothing is a sum: no macs; then 2 rows by 8 by 6
    Case(
        "embedding_bag",
        net(lambda net, ids: net.fc(net.bag(ids)), bag=lambda: nn.EmbeddingBag(7, 8), fc=fc),
        ids,
        2 * 8 * 6,
        2 * 2 * 8 * 6,
    ),
    # 10 rows of 8, each by its weight; their gradients alike
    Case(
        "weighted embedding_bag",
        net(nets.mean_of_weighted_bags, bag=lambda: nn.EmbeddingBag(7, 8, mode="sum"), fc=fc),
        lambda: (*ids(), torch.rand(2, 5)),
        10 * 8 + 2 * 8 * 6,
        10 * 8 + 2 * 2 * 8 * 6,
    ),
    # 7 rows in the table: 10 by 8 by 7
    Case("tied weights", net(nets.tied, table=lambda: nn.Embedding(7, 8)), ids, 10 * 8 * 7, 2 * 10 * 8 * 7),
    Case(
        "ids in a buffer",
        net(
            lambda net, x: net.fc(x + net.table(net.ids[: x.shape[1]])),
            fc=fc,
            table=lambda: nn.Embedding(9, 8),
            ids=lambda: torch.arange(9),
        ),
        rows,
        LINEAR,
        2 * LINEAR,
    ),
]

VALUES = [
    # 6 of the 10 rows
    Case(
        "boolean mask",
        net(lambda net, x, mask: net.fc(x[mask]), fc=fc),
        lambda: (*rows(), torch.arange(10).view(2, 5) < 6),
        6 * 8 * 6,
        6 * 8 * 6,
    ),
    Case(
        "nonzero",
        net(lambda net, x, mask: net.fc(x[:, mask.nonzero()[:, 0]]), fc=fc),
        lambda: (*rows(), torch.tensor([True, False, True, True, False])),
        2 * 3 * 8 * 6,
        2 * 3 * 8 * 6,
    ),
    # up to the longest of 4 rows
    Case(
        "item",
        net(lambda net, x, lengths: net.fc(x[:, : lengths.max().item()]), fc=fc),
        lambda: (*rows(), torch.tensor([4, 3])),
        2 * 4 * 8 * 6,
        2 * 4 * 8 * 6,
    ),
    Case("a loop that asks for a value", net(nets.while_below, fc=square), rows, 3 * SQUARE, 5 * SQUARE),
    # the layer's input asks for the gradient of the places'
    Case(
        "tensors made on the CPU",
        net(nets.made_on_cpu, fc=fc, places=lambda: nn.Embedding(9, 8)),
        rows,
        LINEAR,
        2 * LINEAR,
    ),
    # 10 rows by 4 experts; 20 choices, each by 8 x 8; x asks for nothing
    Case(
        "mixture of experts",
        net(
            nets.mixture,
            gate=lambda: nn.Linear(8, 4),
            experts=lambda: nn.ModuleList(square() for _ in range(4)),
        ),
        rows,
        10 * 8 * 4 + 20 * 64,
        10 * 8 * 4 + 20 * 64,
        assumes="spread evenly",
    ),
    Case(
        "mixture by grouped products",
        net(nets.grouped_mixture, gate=lambda: nn.Linear(8, 4), experts=lambda: parameter(4, 8, 8)),
        rows,
        10 * 8 * 4 + 20 * 64,
        10 * 8 * 4 + 20 * 64,
    ),
    # all of them, as an upper bound
    Case(
        "mask of activations",
        net(lambda net, x: net.second((y := net.first(x))[y[..., 0] > 0]), first=square, second=fc),
        rows,
        SQUARE + LINEAR,
        SQUARE + 2 * LINEAR,
        assumes="an upper bound",
    ),
]

CALLS = [
    # 8 by 8 twice, then 8 by 6; backward: three weights and two inputs
    Case("scripted", script(nets.Scripted), rows, 2 * SQUARE + LINEAR, 3 * SQUARE + 2 * LINEAR),
    # as the LSTM after a layer, and as attention
    Case(
        "scripted LSTM",
        script(sequence(square, lambda: nn.LSTM(8, 6))),
        rows,
        SQUARE + 10 * 24 * 14,
        SQUARE + 10 * 2 * 24 * 14,
    ),
    Case("scripted attention", script(nets.Attention), rows, QKV + 2 * SCORES, QKV + 4 * SCORES),
    Case("traced", traced, rows, SQUARE + LINEAR, SQUARE + 2 * LINEAR, on_meta=False),
    Case(
        "compiled",
        lambda: torch.compile(nn.Sequential(square(), nn.ReLU(), fc())),
        rows,
        SQUARE + LINEAR,
        SQUARE + 2 * LINEAR,
    ),
    Case(
        "compiled part",
        lambda: nn.Sequential(torch.compile(square()), fc()),
        rows,
        SQUARE + LINEAR,
        SQUARE + 2 * LINEAR,
    ),
    Case(
        "graph module",
        lambda: torch.fx.symbolic_trace(nn.Sequential(square(), nn.ReLU(), fc())),
        rows,
        SQUARE + LINEAR,
        SQUARE + 2 * LINEAR,
    ),
    Case("lazy linear", lambda: nn.LazyLinear(6), rows, LINEAR, LINEAR),
    # 36 places of 4 filters of 27
    Case("lazy convolution", lambda: nn.LazyConv2d(4, 3), sized((2, 3, 8, 8)), 2 * 36 * 108, 2 * 36 * 108),
    Case("weight_norm", weight_norm_by_hook, rows, LINEAR, LINEAR),
    Case("weight_norm, parametrised", lambda: parametrizations.weight_norm(fc()), rows, LINEAR, LINEAR),
    # sigma = u' W v: a matrix by a vector 6 * 8 and a dot product 6, and in train mode one turn of the power
    # iteration, W v and W' u; gradients of u' W v are outer products
    Case(
        "spectral_norm",
        lambda: parametrizations.spectral_norm(fc()),
        rows,
        LINEAR + 48 + 6,
        LINEAR,
        train=LINEAR + 3 * 48 + 6,
    ),
    Case("a parametrisation", symmetric, rows, SQUARE, SQUARE),
    Case(
        "functional_call",
        net(
            nets.with_other_weights, fc=lambda: frozen(fc()), weight=lambda: parameter(6, 8), bias=lambda: parameter(6)
        ),
        rows,
        LINEAR,
        LINEAR,
    ),
    Case("vmap over weights", net(nets.ensemble, weights=lambda: parameter(3, 6, 8)), rows, 3 * LINEAR, 3 * LINEAR),
    Case(
        "vmap over samples",
        net(lambda net, x: torch.vmap(lambda row: F.linear(row, net.w))(x), w=lambda: parameter(6, 8)),
        rows,
        LINEAR,
        LINEAR,
    ),
    Case("tensor subclass", net(lambda net, x: net.fc(x.as_subclass(nets.Tagged)), fc=fc), rows, LINEAR, LINEAR),
    Case(
        "modules called by keyword",
        net(nets.by_keyword, fc=fc),
        tuple,
        LINEAR,
        LINEAR,
        keywords=lambda: {"x": torch.randn(2, 5, 8), "scale": torch.ones(6)},
    ),
    Case("forward called past the hooks", net(lambda net, x: net.fc.forward(x), fc=fc), rows, LINEAR, LINEAR),
    # 10 rows of 6 by 4 in a hook
    Case("a hook that computes", nets.hooked, rows, LINEAR + 240, LINEAR + 2 * 240),
    Case(
        "a module called three times",
        net(lambda net, x: net.fc(net.fc(net.fc(x))), fc=square),
        rows,
        3 * SQUARE,
        5 * SQUARE,
    ),
    Case("a module of two parents", shared, rows, 2 * SQUARE, 3 * SQUARE),
    Case("dict", net(nets.in_a_dict, first=fc, second=fc), rows, 2 * LINEAR, 2 * LINEAR),
    Case("tuple", net(nets.in_a_tuple, first=fc, second=fc), rows, 2 * LINEAR, 2 * LINEAR),
    Case("dataclass", net(nets.in_a_dataclass, first=fc, second=fc), rows, 2 * LINEAR, 2 * LINEAR),
    Case("a head in training", net(nets.auxiliary, first=fc, second=fc), rows, LINEAR, 2 * LINEAR, train=2 * LINEAR),
    Case("in place", net(nets.in_place, first=square, second=fc), rows, SQUARE + LINEAR, SQUARE + 2 * LINEAR),
    Case("views", net(nets.views, fc=fc), rows, LINEAR, LINEAR),
    Case("int8 linear", int8, rows, LINEAR, None, on_meta=False),
    Case(
        "bfloat16",
        lambda: fc().bfloat16(),
        lambda: (torch.randn(2, 5, 8, dtype=torch.bfloat16),),
        LINEAR,
        LINEAR,
    ),
]

GRADIENTS = [
    # of three layers A, B, C: C's weight and input 2 * LINEAR; B's weight, whose input nobody asks for
    Case("first layer frozen", three(False, True, True), rows, 2 * SQUARE + LINEAR, SQUARE + 2 * LINEAR),
    # C's both, B's input, A's weight
    Case("middle layer frozen", three(True, False, True), rows, 2 * SQUARE + LINEAR, 2 * SQUARE + 2 * LINEAR),
    # C's input, B's both, A's weight
    Case("last layer frozen", three(True, True, False), rows, 2 * SQUARE + LINEAR, 3 * SQUARE + LINEAR),
    # two layers of 8 x 8 and 2 * 8 * 2 aside: the second's base input and both gradients of up and down; the
    # first's up both, down's weight alone
    Case(
        "low-rank adapters",
        sequence(nets.Adapted, nets.Adapted),
        rows,
        2 * (SQUARE + 2 * 160),
        (SQUARE + 4 * 160) + 3 * 160,
    ),
    # what the second bias' gradient goes through to the first's: the second layer's input
    Case("biases alone", lambda: nets.biases_alone(square(), fc()), rows, SQUARE + LINEAR, LINEAR),
    Case(
        "an input that asks for its gradient",
        fc,
        lambda: (torch.randn(2, 5, 8, requires_grad=True),),
        LINEAR,
        2 * LINEAR,
    ),
    Case("detach", net(lambda net, x: net.second(net.first(x).detach()), first=square, second=fc), rows, 1120, LINEAR),
    Case("no_grad", net(nets.partly_without_gradient, first=square, second=fc), rows, SQUARE + LINEAR, LINEAR),
    Case("micro-batches", net(nets.micro_batches, fc=fc), rows, LINEAR, LINEAR),
    # own product 8 by 6: both its gradients; the layer before: its weight
    Case(
        "custom autograd function",
        net(lambda net, x: nets.OwnLinear.apply(net.fc(x), net.w), fc=square, w=lambda: parameter(8, 6)),
        rows,
        SQUARE + LINEAR,
        SQUARE + 2 * LINEAR,
    ),
    # the block runs again up to what its last layer keeps: its first layer
    Case(
        "checkpoint",
        net(lambda net, x: nets.checkpointed(net, x, False), fc=square, block=sequence(square, nn.ReLU, fc)),
        rows,
        2 * SQUARE + LINEAR,
        SQUARE + (3 * SQUARE + 2 * LINEAR),
    ),
    # all of the block runs again
    Case(
        "reentrant checkpoint",
        net(lambda net, x: nets.checkpointed(net, x, True), fc=square, block=sequence(square, nn.ReLU, fc)),
        rows,
        2 * SQUARE + LINEAR,
        (SQUARE + LINEAR) + (3 * SQUARE + 2 * LINEAR),
    ),
    # energy(x) = sum tanh(x W'), force = (1 - t^2) W: two products. Through the force: its two gradients; through
    # tanh: the weight's, and that of the places, which ask for it here
    Case("gradient inside of forward", net(nets.force_by_autograd, fc=square), rows, 2 * SQUARE, 4 * SQUARE),
    Case("torch.func.grad", net(nets.force_by_functorch, fc=square), rows, 2 * SQUARE, 3 * SQUARE),
]

CASES = [*FUNCTIONAL, *CONVOLUTIONS, *ATTENTION, *RECURRENT, *TABLES, *VALUES, *CALLS, *GRADIENTS]
