"""The names of the rules: each is an operation of torch's, each rule prices a call of it, kernels have one name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchledger.canonical import DROPPED, NAMES, canonical
from torchledger.capture import capture
from torchledger.capture.twins import Copies
from torchledger.pricing import algebra, attention, backward, gradients, optimizers, quantized, recurrent, vision
from torchledger.pricing.convention import State
from torchledger.pricing.full import FREE_OPERATIONS, RULES, price, rule_of
from torchledger.record import Operation

aten = torch.ops.aten


class Function(nn.Module):
    """A module whose forward is the function given."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def booked(function: Callable[..., Any], *args: Any, real: bool = False) -> list[Operation]:
    captured = capture(Function(function), args, {}, real=Copies() if real else None)
    if captured.error is not None:
        raise captured.error
    return [captured.record.operations[entry.operation] for entry in captured.record.entries]


def schemas(name: str) -> list[Any]:
    """Return the schemas of the tensor overloads of `aten::name`; TorchScript's own (`copy.t`) are none."""
    found = [schema for schema in torch._C._jit_get_schemas_for_operator(f"aten::{name}")]
    return [s for s in found if any("Tensor" in str(a.type) for a in (*s.arguments, *s.returns))]


NEWEST = "2.13"  # the newest torch that the rules know
BOOKED_WHOLE = {
    "lstm_backward", "gru_backward", "rnn_tanh_backward", "rnn_relu_backward", "feature_dropout_backward",
    "_pad_packed_sequence_backward",
}  # fmt: skip

# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*RULES, *FREE_OPERATIONS} - set(NAMES.values())))
def test_rules_are_for_operations_that_exist(name: str) -> None:
    if "::" in name or name in BOOKED_WHOLE:
        return  # another library's, or what a capture makes one entry of
    if not schemas(name) and not torch.__version__.startswith(NEWEST):
        pytest.skip("an operation of a newer torch")
    assert schemas(name) or name.startswith(("sym_", "_assert_scalar")), (
        f"torch {torch.__version__} has no aten::{name}"
    )
    assert canonical("aten", name) == name, "is booked under another name, or not at all"


def test_canonical_names_stand_for_operations_that_exist() -> None:
    for name in (*NAMES, *DROPPED):
        is_known = schemas(name) or name == "_local_scalar_dense"
        assert is_known or not torch.__version__.startswith(NEWEST), name
    for name in NAMES.values():
        assert rule_of(name) is not None or name in FREE_OPERATIONS, f"no rule for {name}"
        assert name not in NAMES, f"{name} is renamed again"


def test_no_operation_is_both_free_and_priced() -> None:
    assert not FREE_OPERATIONS & set(RULES)


def test_other_libraries_keep_their_namespace() -> None:
    assert canonical("torchvision", "nms") == "torchvision::nms"
    assert canonical("mylib", "add") == "mylib::add"
    assert rule_of("mylib::add") is None


def test_bookkeeping_is_dropped() -> None:
    for name in ("detach", "alias", "lift_fresh"):
        assert canonical("aten", name) is None
    assert booked(lambda x: x.detach(), torch.ones(2)) == []


# --- free operations ---------------------------------------------------------------------------------------------

ALLOCATIONS = {name for name in FREE_OPERATIONS if name.startswith(("empty", "_empty", "new_empty", "_efficientzero"))}


@pytest.mark.parametrize("name", sorted(FREE_OPERATIONS - ALLOCATIONS))
def test_free_operations_return_what_they_were_given_or_no_tensor(name: str) -> None:
    """A view shares its storage: torch's schema says so for every tensor that comes out."""
    for schema in schemas(name):
        if schema.overload_name.startswith("Dimname") or "out" in [a.name for a in schema.arguments]:
            continue
        for returned in schema.returns:
            assert "Tensor" not in str(returned.type) or returned.alias_info is not None, schema


VIEWS: list[Callable[[Tensor], Any]] = [
    lambda x: x.view(-1),
    lambda x: x.reshape(2, 6),
    lambda x: x.t(),
    lambda x: x.transpose(0, 1),
    lambda x: x.permute(1, 0),
    lambda x: x[:, None].expand(3, 2, 4),
    lambda x: x.unsqueeze(0).squeeze(0),
    lambda x: x[1],
    lambda x: x[1:, ::2],
    lambda x: x.split(1),
    lambda x: x.chunk(2, 1),
    lambda x: x.unbind(0),
    lambda x: x.diagonal(),
    lambda x: x.unfold(1, 2, 1),
    lambda x: x.as_strided((2, 2), (1, 1)),
    lambda x: x.flatten(),
    lambda x: x.narrow(0, 0, 2),
    lambda x: torch.view_as_real(torch.view_as_complex(x.view(3, 2, 2))),
]


@pytest.mark.parametrize("function", VIEWS)
def test_views_share_storage_and_are_free(function: Any) -> None:
    x = torch.arange(12.0).reshape(3, 4)
    results = function(x)
    for result in [results] if isinstance(results, Tensor) else results:
        assert result.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    found = booked(function, x)
    assert found
    assert all(price(one).state is State.FREE and not price(one).amounts for one in found)


def test_reshape_that_must_copy_is_priced() -> None:
    (copy, *views) = [one for one in booked(lambda x: x.t().reshape(-1), torch.ones(3, 4)) if one.name != "t"]
    assert (copy.name, price(copy).amounts["bytes_written"]) == ("clone", 4 * 12)
    assert all(price(one).state is State.FREE for one in views)


def test_allocations_are_free() -> None:
    found = booked(lambda x: (torch.empty(3), torch.empty_like(x), x.new_empty(2), torch.empty_strided((2,), (1,))), X)
    assert len(found) == 4
    assert all(one.name in ALLOCATIONS and price(one).state is State.FREE for one in found)


# --- a call of every rule ----------------------------------------------------------------------------------------

X, Y = torch.rand(3, 4) + 0.5, torch.rand(3, 4) + 0.5
V, W, S = torch.rand(4), torch.rand(3), torch.rand(4, 4)
N, B = torch.arange(12).reshape(3, 4), torch.ones(3, 4, dtype=torch.bool)
P = torch.zeros(3, 4, dtype=torch.int64)  # places
T2, T3, N3 = torch.rand(1, 2, 4, 4), torch.rand(1, 2, 4, 4, 4), torch.rand(2, 3, 4)
Q = torch.rand(1, 2, 3, 4)
C = torch.complex(X, Y)
INTEGER_ONLY = set("bitwise_left_shift bitwise_right_shift gcd lcm".split())
INTEGER_ONLY |= {name for name in RULES if name.startswith(("bitwise", "__"))}

CALLS: dict[str, tuple[Any, ...]] = {
    "convolution": (T2, torch.rand(3, 2, 2, 2), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
    "linear": (X, S, V),
    "mm": (X, Y.T),
    "bmm": (N3, N3.mT),
    "_int_mm": (torch.ones(32, 16, dtype=torch.int8), torch.ones(16, 8, dtype=torch.int8)),
    "addmm": (W, X, Y.T),
    "baddbmm": (torch.rand(2, 3, 3), N3, N3.mT),
    "addbmm": (torch.rand(3, 3), N3, N3.mT),
    "mv": (X, V),
    "dot": (V, V),
    "vdot": (V, V),
    "addmv": (W, X, V),
    "addr": (X, W, V),
    "_grouped_mm": (S.bfloat16().repeat(2, 4), torch.rand(2, 16, 8).bfloat16(), torch.tensor([4, 8]).int()),
    "_trilinear": (torch.rand(2, 3), torch.rand(5, 3, 4), torch.rand(2, 4), [1, 3], [0], [1, 2], [2, 3]),
    "_cdist_forward": (X, Y, 2.0, None),
    "_euclidean_dist": (X, Y),
    "_pdist_forward": (X, 2.0),
    "affine_grid_generator": (torch.rand(1, 2, 3), [1, 1, 2, 2], False),
    "embedding_bag": (X, P[0, :3], P[0, :1]),
    "_embedding_bag": (X, P[0, :3], P[0, :1]),
    "_embedding_bag_forward_only": (X, P[0, :3], P[0, :1]),
    "batch_norm": (T2, *4 * [torch.rand(2)], False, 0.1, 1e-5, False),
    "layer_norm": (X, [4], V, V),
    "group_norm": (T2, 2),
    "rms_norm": (X, [4]),
    "_weight_norm_interface": (X, torch.rand(3, 1)),
    "softmax": (X, 1),
    "log_softmax": (X, 1),
    "col2im": (torch.rand(1, 4, 6), [3, 4], [2, 2], [1, 1], [0, 0], [1, 1]),
    "im2col": (T2, [2, 2], [1, 1], [0, 0], [1, 1]),
    "unfold_backward": (torch.rand(3, 2), [4], 0, 2, 1),
    "diagonal_copy": (S,),
    "diagonal_scatter": (S, V),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"), (X, 1)),
    "norm": (X, 2),
    "linalg_vector_norm": (X,),
    "_fft_r2c": (X, [1], 0, True),
    "_fft_c2c": (C, [1], 0, True),
    "_fft_c2r": (C, [1], 0, 6),
    "nll_loss_forward": (X, P[0, :3], None, 1, -100),
    "nll_loss2d_forward": (T2, torch.zeros(1, 4, 4, dtype=torch.int64), None, 1, -100),
    **dict.fromkeys(("mse_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss"), (X, Y)),
    "binary_cross_entropy": (X / 2, Y),
    "binary_cross_entropy_with_logits": (X, Y),
    "grid_sampler_2d": (T2, torch.rand(1, 3, 3, 2), 0, 0, False),
    "grid_sampler_3d": (T3, torch.rand(1, 3, 3, 3, 3), 0, 0, False),
    "fractional_max_pool2d": (T2, [2, 2], [2, 2], torch.rand(1, 2, 2)),
    "fractional_max_pool3d": (T3, [2, 2, 2], [2, 2, 2], torch.rand(1, 2, 3)),
    **{f"max_pool{d}d": (x, d * [2]) for d, x in ((1, N3), (2, T2), (3, T3))},
    **{f"avg_pool{d}d": (x, d * [2]) for d, x in ((1, N3), (2, T2), (3, T3))},
    **{f"adaptive_avg_pool{d}d": (x, d * [2]) for d, x in ((1, N3), (2, T2), (3, T3))},
    **{f"adaptive_max_pool{d}d": (x, d * [2]) for d, x in ((1, N3), (2, T2), (3, T3))},
    "max_unpool2d": (T2, torch.zeros(1, 2, 4, 4, dtype=torch.int64), [8, 8]),
    "max_unpool3d": (T3, torch.zeros(1, 2, 4, 4, 4, dtype=torch.int64), [8, 8, 8], [2, 2, 2], [0, 0, 0]),
    **{f"{kind}1d": (N3, [8]) for kind in ("upsample_nearest", "_upsample_nearest_exact")},
    **{f"{kind}2d": (T2, [8, 8]) for kind in ("upsample_nearest", "_upsample_nearest_exact")},
    **{f"{kind}3d": (T3, [8, 8, 8]) for kind in ("upsample_nearest", "_upsample_nearest_exact")},
    "upsample_linear1d": (N3, [8], False),
    **{f"{k}2d{aa}": (T2, [8, 8], False) for k, aa in (("upsample_bilinear", ""), ("_upsample_bilinear", "_aa"))},
    **{f"{k}2d{aa}": (T2, [8, 8], False) for k, aa in (("upsample_bicubic", ""), ("_upsample_bicubic", "_aa"))},
    "upsample_trilinear3d": (T3, [8, 8, 8], False),
    "bernoulli": (X / 2,),
    "multinomial": (X, 2),
    "normal": (X, Y),
    "poisson": (X,),
    "binomial": (X, Y / 2),
    **dict.fromkeys(("copy", "copy_"), (X, Y)),
    "bernoulli_": (X, Y / 2),
    "rrelu_with_noise": (X, Y, 0.1, 0.3, True),
    "log_sigmoid_forward": (X,),
    "addcmul": (X, X, Y),
    "addcdiv": (X, X, Y),
    "lerp": (X, Y, 0.5),
    "glu": (X,),
    "polar": (X, Y),
    "linalg_cross": (torch.rand(2, 3), torch.rand(2, 3)),
    **dict.fromkeys("sum nansum prod argmax argmin mean nanmean var std logsumexp".split(), (X, 1)),
    **dict.fromkeys("amax amin max min any all var_mean std_mean count_nonzero".split(), (X, 1)),
    **dict.fromkeys(("cat", "stack", "block_diag"), ([X, Y],)),
    **dict.fromkeys(("clone", "contiguous", "to_copy", "_to_copy", "tril", "triu", "diag_embed"), (X,)),
    **dict.fromkeys(("tril_", "triu_", "sort", "median", "nanmedian", "mode", "rot90"), (X,)),
    "repeat": (X, [2, 1]),
    "repeat_interleave": (X, 2),
    "flip": (X, [0]),
    "roll": (X, [1]),
    "constant_pad_nd": (X, [1, 1]),
    **{f"reflection_pad{d}d": (x, 2 * d * [1]) for d, x in ((1, N3), (2, T2), (3, T3))},
    **{f"replication_pad{d}d": (x, 2 * d * [1]) for d, x in ((1, N3), (2, T2), (3, T3))},
    "pixel_shuffle": (torch.rand(1, 4, 2, 2), 2),
    "pixel_unshuffle": (torch.rand(1, 1, 4, 4), 2),
    "channel_shuffle": (T2, 2),
    "native_channel_shuffle": (T2, 2),
    **dict.fromkeys(("masked_fill", "masked_fill_"), (X, B, 1.0)),
    **dict.fromkeys(("masked_scatter", "masked_scatter_"), (X, B, Y)),
    "masked_select": (X, B),
    "one_hot": (P, 3),
    "topk": (X, 2),
    "kthvalue": (X, 2),
    "unique_consecutive": (P,),
    "unique_dim": (P, 0),
    "_unique2": (P,),
    "bucketize": (X, V.sort().values),
    "searchsorted": (V.sort().values, X),
    "isin": (X, Y),
    "nonzero": (X,),
    "complex": (X, Y),
    "equal": (X, Y),
    "embedding": (X, P[0, :2]),
    "index": (X, [P[0, :2]]),
    "index_select": (X, 0, P[0, :2]),
    "gather": (X, 1, P),
    "take": (X, P),
    "take_along_dim": (X, P, 1),
    **dict.fromkeys(("scatter", "scatter_", "scatter_add", "scatter_add_"), (X, 0, P, Y)),
    **dict.fromkeys(("scatter_reduce", "scatter_reduce_"), (X, 0, P, Y, "sum")),
    **dict.fromkeys(("index_put", "index_put_"), (X, [P[0, :2]], V)),
    **dict.fromkeys(("put", "put_"), (X, P, Y)),
    **dict.fromkeys(("index_copy", "index_copy_", "index_add", "index_add_"), (X, 0, P[0, :2], Y[:2])),
    **dict.fromkeys(("index_reduce", "index_reduce_"), (X, 0, P[0, :2], Y[:2], "prod")),
    **dict.fromkeys(("index_fill", "index_fill_"), (X, 0, P[0, :2], 1.0)),
    "slice_scatter": (X, Y[:2], 0, 0, 2),
    "select_scatter": (X, V, 0, 0),
    **dict.fromkeys("zeros ones rand randn".split(), ([2, 3],)),
    "full": ([2, 3], 1.0),
    **dict.fromkeys("zeros_like ones_like rand_like randn_like zero zero_ normal_ uniform_ random_".split(), (X,)),
    **dict.fromkeys("exponential_ cauchy_ log_normal_".split(), (X,)),
    **dict.fromkeys(("full_like", "fill", "fill_"), (X, 1.0)),
    "geometric_": (X, 0.5),
    "randint_like": (X, 5),
    **dict.fromkeys(("new_zeros", "new_ones"), (X, [2])),
    "new_full": (X, [2], 1.0),
    "scalar_tensor": (1.0,),
    **dict.fromkeys("arange eye randperm hann_window hamming_window blackman_window bartlett_window".split(), (5,)),
    **dict.fromkeys("kaiser_window fft_fftfreq fft_rfftfreq".split(), (5,)),
    **dict.fromkeys(("linspace", "logspace"), (0, 1, 5)),
    **dict.fromkeys(("tril_indices", "triu_indices"), (3, 4)),
    "randint": (5, [2]),
    "_batch_norm_with_update": (T2, *4 * [torch.rand(2)], 0.1, 1e-5),
    "conv_tbc": (torch.rand(5, 2, 3), torch.rand(2, 3, 4), V),
    "_addmm_activation": (W, X, Y.T),
    "_ctc_loss": (torch.rand(5, 2, 4).log_softmax(2), P[:2, :3] + 1, [5, 4], [3, 2]),
    "multi_margin_loss": (X, P[0, :3]),
    "multilabel_margin_loss_forward": (X, P, 1),
    "_upsample_lanczos2d_aa": (T2, [8, 8], False),
    "_masked_softmax": (S, S > 0.5, 1),
    "_pack_padded_sequence": (N3, torch.tensor([3, 2]), True),
    "_chunk_cat": ([X, Y], 0, 3),
    "_stack": ([X, Y],),
    "_reshape_copy": (X, [4, 3]),
    "_reshape_alias_copy": (X, [4, 3], [3, 1]),
    "_unsafe_masked_index": (V, B[0], [P[0]], 0.0),
    "_unsafe_masked_index_put_accumulate": (V, B[0], [P[0]], V),
    "_is_all_true": (B,),
    "_is_any_true": (B,),
    "_sample_dirichlet": (X,),
    "_histogramdd_bin_edges": (X, [3, 3, 3, 3]),
    "_histogramdd_from_bin_cts": (X, [3, 3, 3, 3]),
    "_histogramdd_from_bin_tensors": (X, 4 * [V.sort().values]),
    "histogram": (X, 5),
    "allclose": (X, Y),
    "bincount": (P[0], V),
    "as_strided_copy": (X, [2], [1]),
    "as_strided_scatter": (X, V[:2], [2], [1]),
    "expand_copy": (V, [3, 4]),
    "permute_copy": (X, [1, 0]),
    "split_with_sizes_copy": (X, [1, 2]),
    "view_copy": (X, [4, 3]),
    "view_as_complex_copy": (torch.rand(3, 2),),
    "view_as_real_copy": (C,),
    "geometric": (X, 0.5),
    "range": (0, 4),
    "resize": (X, [2, 2]),
    "unique_dim_consecutive": (P, 0),
    "int_repr": (torch.quantize_per_tensor(X, 0.1, 0, torch.quint8),),
    # pointwise, where not every argument is a tensor like the first
    **dict.fromkeys(("ger", "outer"), (V, V)),
    "polygamma": (1, X),
    "where": (B, X, Y),
    "threshold": (X, 0.1, 2.0),
    "clamp": (X, 0.0, 1.0),
    "clip": (X, 0.0, 1.0),
    "_conj_physical": (C,),
    "ldexp": (X, N),
    "prelu": (X, V),
}
# Not called by its ATen name, or with keywords.
FUNCTIONS: dict[str, Callable[[], Any]] = {
    "to_copy": lambda: X.double(),
    "scaled_dot_product_attention": lambda: F.scaled_dot_product_attention(Q, Q, Q),
    "dropout": lambda: F.dropout(X),
    "dropout_": lambda: F.dropout(X.clone(), inplace=True),
    "feature_dropout": lambda: F.dropout2d(T2),
    "feature_dropout_": lambda: F.dropout2d(T2.clone(), inplace=True),
    "aminmax": lambda: aten.aminmax(X, dim=1),
    "segment_reduce": lambda: torch.segment_reduce(V, "sum", lengths=torch.tensor([3, 1])),
    "_conj_copy": lambda: aten._conj_copy(C),
    "nonzero_static": lambda: torch.nonzero_static(X, size=3),
}

# Rules for what another device or mode may show whole; here a capture sees what torch makes of it first.
TAKEN_APART = """
    __and__ __or__ __xor__ adaptive_avg_pool1d adaptive_max_pool1d avg_pool1d clip conj_physical contiguous
    embedding_bag float_power ger isfinite linear max_pool1d nanmean native_channel_shuffle one_hot outer prelu
    relu6 repeat_interleave rms_norm selu special_i0 square take_along_dim true_divide
    """.split()
# No kernel for meta tensors; mostly, what comes out depends on values.
BY_VALUE = """
    _masked_softmax _sample_dirichlet _conj_copy segment_reduce bincount histogram _histogramdd_bin_edges
    _histogramdd_from_bin_cts _histogramdd_from_bin_tensors int_repr allclose unique_dim_consecutive
    _pack_padded_sequence masked_select unique_consecutive unique_dim _unique2 nonzero equal binomial nonzero_static
    """.split()


def arguments_of(name: str) -> tuple[Any, ...]:
    """Return arguments for a pointwise operation: tensors for all that are required."""
    schema = min(
        (s for s in schemas(name) if str(s.arguments[0].type) == "Tensor" and s.overload_name != "out"),
        key=lambda s: (s.overload_name not in ("", "Tensor", "self"), s.overload_name),
    )
    x, y = (N, N + 1) if name in INTEGER_ONLY else (X, Y)
    required = [a for a in schema.arguments if not a.has_default_value() and not a.kwarg_only]
    return tuple((x if not place else y) if str(a.type) == "Tensor" else 1 for place, a in enumerate(required))


# Whose calls stand in the tests of their own.
ONE_DEVICE = {"_pin_memory"} | {name for name in RULES if name.startswith("batch_norm_")}  # CUDA's
ELSEWHERE = ONE_DEVICE | {
    *attention.RULES, *backward.RULES, *gradients.RULES, *recurrent.RULES, *algebra.RULES, *quantized.RULES,
    *vision.RULES, *optimizers.RULES, *(name for name in RULES if name.startswith("_foreach_")),
} - {"scaled_dot_product_attention"}  # fmt: skip


@pytest.mark.parametrize("name", sorted(RULES.keys() - ELSEWHERE))
def test_each_rule_prices_a_call(name: str) -> None:
    if name in FUNCTIONS:
        function, args = FUNCTIONS[name], ()
    else:
        function, args = getattr(aten, name), CALLS.get(name) or arguments_of(name)
    found = booked(function, *args, real=name in BY_VALUE)
    assert (name in [one.name for one in found]) == (name not in TAKEN_APART), [one.name for one in found]
    for one in found:
        priced = price(one)
        assert priced.state in (State.PRICED, State.FREE), one
        assert all(type(amount) is int and amount >= 0 for amount in priced.amounts.values()), (one, priced)
        if one.name == name:
            assert priced.amounts["bytes_written"] == 0 or one.outputs


# --- layers that people use --------------------------------------------------------------------------------------

SIGNAL, IMAGE, VOLUME = torch.rand(2, 4, 8), torch.rand(2, 4, 8, 8), torch.rand(2, 4, 4, 4, 4)
SEQUENCE, WORDS = torch.rand(3, 2, 4), torch.randint(0, 10, (2, 3))
ACTIVATIONS = """
    ELU Hardshrink Hardsigmoid Hardtanh Hardswish LeakyReLU LogSigmoid PReLU ReLU ReLU6 RReLU SELU CELU GELU Sigmoid
    SiLU Mish Softplus Softshrink Softsign Tanh Tanhshrink GLU Softmax2d Dropout AlphaDropout
    FeatureAlphaDropout Identity Flatten
    """.split()
BY_DIMENSIONS: list[tuple[str, tuple[Any, ...]]] = [
    ("Conv", (4, 6, 3)),
    ("ConvTranspose", (4, 6, 3)),
    ("BatchNorm", (4,)),
    ("InstanceNorm", (4,)),
    ("MaxPool", (2,)),
    ("AvgPool", (2,)),
    ("LPPool", (2, 2)),
    ("AdaptiveAvgPool", (3,)),
    ("AdaptiveMaxPool", (3,)),
    ("Dropout", ()),
    ("ConstantPad", (1, 2.0)),
    ("ReflectionPad", (1,)),
    ("ReplicationPad", (1,)),
    ("CircularPad", (1,)),
]
LOSSES: list[tuple[nn.Module, tuple[Tensor, ...]]] = [
    *((getattr(nn, name)(), (X, Y)) for name in "L1Loss MSELoss SmoothL1Loss HuberLoss".split()),
    *((getattr(nn, name)(), (X, Y)) for name in "PoissonNLLLoss SoftMarginLoss BCEWithLogitsLoss".split()),
    (nn.KLDivLoss(reduction="batchmean"), (X, Y)),
    (nn.BCELoss(), (X / 2, Y / 2)),
    (nn.CrossEntropyLoss(), (X, P[0, :3])),
    (nn.CrossEntropyLoss(weight=V, label_smoothing=0.1), (X, P[0, :3])),
    (nn.CrossEntropyLoss(), (X, Y)),
    (nn.NLLLoss(), (X, P[0, :3])),
    (nn.CosineEmbeddingLoss(), (X, Y, W)),
    (nn.TripletMarginLoss(), (X, Y, X)),
    (nn.MultiLabelSoftMarginLoss(), (X, Y)),
]
LAYERS: list[tuple[nn.Module, tuple[Any, ...]]] = [
    *((getattr(nn, name)(), (IMAGE,)) for name in ACTIVATIONS),
    *(
        (getattr(nn, f"{name}{place + 1}d")(*args), (x,))
        for name, args in BY_DIMENSIONS
        for place, x in enumerate((SIGNAL, IMAGE, VOLUME))
    ),
    *((kind(1), (IMAGE,)) for kind in (nn.Softmax, nn.Softmin, nn.LogSoftmax)),
    *LOSSES,
    (nn.Linear(8, 3), (SIGNAL,)),
    (nn.Bilinear(4, 4, 5), (X, Y)),
    (nn.LayerNorm(8), (SIGNAL,)),
    (nn.RMSNorm(8), (SIGNAL,)),
    (nn.GroupNorm(2, 4), (IMAGE,)),
    (nn.LocalResponseNorm(2), (IMAGE,)),
    (nn.FractionalMaxPool2d(2, 3), (IMAGE,)),
    (nn.PixelShuffle(2), (IMAGE,)),
    (nn.PixelUnshuffle(2), (IMAGE,)),
    (nn.ChannelShuffle(2), (IMAGE,)),
    (nn.Unfold(2), (IMAGE,)),
    (nn.Fold((4, 5), 2), (torch.rand(1, 8, 12),)),
    (nn.Embedding(10, 4), (WORDS,)),
    *((nn.EmbeddingBag(10, 4, mode=mode), (WORDS,)) for mode in ("sum", "mean", "max")),
    (nn.RNN(4, 5, 2), (SEQUENCE,)),
    (nn.LSTM(4, 5, 2, bidirectional=True, proj_size=3), (SEQUENCE,)),
    (nn.GRU(4, 5, 2, batch_first=True), (SEQUENCE,)),
    *((kind(4, 5), (X,)) for kind in (nn.RNNCell, nn.LSTMCell, nn.GRUCell)),
    (nn.MultiheadAttention(4, 2), (SEQUENCE, SEQUENCE, SEQUENCE)),
    (nn.TransformerEncoderLayer(4, 2, 8), (SEQUENCE,)),
    (nn.TransformerDecoderLayer(4, 2, 8), (SEQUENCE, SEQUENCE)),
    (nn.PairwiseDistance(), (X, Y)),
    (nn.CosineSimilarity(), (X, Y)),
    (torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), (X,)),
    (torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), (X,)),
]


@pytest.mark.parametrize(("layer", "given"), LAYERS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_layers_hold_no_unknown_operation(layer: nn.Module, given: tuple[Any, ...], mode: Any) -> None:
    captured = capture(layer, given, {}, mode)
    assert captured.error is None, captured.error
    found = {one.name: price(one).state for one in captured.record.operations}
    assert State.UNKNOWN not in found.values(), found


TRANSFORMS: list[tuple[Callable[..., Any], Tensor]] = [
    (lambda x: torch.stft(x, 16, window=x.new_ones(16), return_complex=True), torch.rand(2, 64)),
    (lambda x: torch.fft.ifft2(torch.fft.fft2(x)).real, X),
    (lambda x: torch.einsum("ij,kj,kl->il", x, x, x), X),
    (lambda x: F.grid_sample(x, F.affine_grid(x.new_ones(2, 2, 3), [2, 4, 5, 5], False), align_corners=False), IMAGE),
    (lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), IMAGE),
    (lambda x: F.gumbel_softmax(x, hard=True), X),
    (lambda x: torch.logsumexp(x, 1).cumsum(0), X),
    (lambda x: x.softmax(1).multinomial(2), X),
    (lambda x: F.normalize(x) @ F.normalize(x).T, X),
    *((lambda x, m=mode: F.interpolate(x, scale_factor=2, mode=m), IMAGE) for mode in ("nearest", "bilinear", "area")),
    *((lambda x, m=mode: F.interpolate(x, (5, 5), mode=m, antialias=True), IMAGE) for mode in ("bilinear", "bicubic")),
]


@pytest.mark.parametrize(("function", "given"), TRANSFORMS)
def test_functions_hold_no_unknown_operation(function: Any, given: Tensor) -> None:
    found = booked(function, given)
    assert found
    assert State.UNKNOWN not in [price(one).state for one in found], [one.name for one in found]


# --- kernels of one operation ------------------------------------------------------------------------------------

IMAGES, STATISTICS = torch.rand(2, 3, 4, 4), [torch.rand(3) for _ in range(4)]
FILTERS = torch.rand(4, 3, 2, 2)


def normalise(x: Tensor, weight: Tensor, bias: Tensor, *running: Tensor, training: bool = False) -> Tensor:
    return F.batch_norm(x, *running, weight, bias, training)


# (the operation as a model writes it, what devices and modes run in its place)
KERNELS: dict[str, tuple[tuple[Any, ...], Callable[..., Any], list[Callable[..., Any]]]] = {
    "scaled_dot_product_attention": (
        (Q, Q + 1, Q + 2),
        F.scaled_dot_product_attention,
        [
            aten._scaled_dot_product_flash_attention,
            aten._scaled_dot_product_flash_attention_for_cpu,
            aten._scaled_dot_product_fused_attention_overrideable,
            lambda *qkv: aten._scaled_dot_product_efficient_attention(*qkv, None, compute_log_sumexp=False),
            lambda *qkv: aten._scaled_dot_product_cudnn_attention(*qkv, None, compute_log_sumexp=True),
        ],
    ),
    "batch_norm": (
        (IMAGES, *STATISTICS),
        normalise,
        [
            lambda *given: aten.native_batch_norm(*given, False, 0.1, 1e-5),
            lambda *given: aten.cudnn_batch_norm(*given, False, 0.1, 1e-5),
            lambda *given: aten.miopen_batch_norm(*given, False, 0.1, 1e-5),
            lambda *given: aten._native_batch_norm_legit(*given, False, 0.1, 1e-5),
            lambda *given: aten._native_batch_norm_legit_no_training(*given, 0.1, 1e-5),
            lambda *given: aten._batch_norm_no_update(*given, 0.1, 1e-5),
        ],
    ),
    "batch_norm in training": (
        (IMAGES, *STATISTICS),
        lambda *given: normalise(*given, training=True),
        [
            lambda *given: aten.native_batch_norm(*given, True, 0.1, 1e-5),
            lambda *given: aten.cudnn_batch_norm(*given, True, 0.1, 1e-5),
            lambda *given: aten._native_batch_norm_legit(*given, True, 0.1, 1e-5),
        ],
    ),
    "convolution": (
        (IMAGES, FILTERS),
        F.conv2d,
        [lambda x, w: aten.convolution(x, w, None, *PLAIN)],  # torch 2.11 does not run _convolution on meta
    ),
    "dropout": ((X,), F.dropout, [lambda x: aten.native_dropout(x, 0.5, True)]),
    "layer_norm": ((X,), lambda x: F.layer_norm(x, [4]), [lambda x: aten.native_layer_norm(x, [4], None, None, 1e-5)]),
    "softmax": (
        (X,),
        lambda x: x.softmax(1),
        [lambda x: aten._softmax(x, 1, False), lambda x: aten._safe_softmax(x, 1)],
    ),
    "max_pool2d": ((T2,), lambda x: F.max_pool2d(x, 2), [lambda x: aten.max_pool2d_with_indices(x, [2, 2])]),
    "index": ((X, P[0]), lambda x, i: x[i], [lambda x, i: aten._unsafe_index(x, [i])]),
    "index_put": (
        (X, P[0], V),
        lambda x, i, v: x.index_put([i], v),
        [lambda x, i, v: aten._unsafe_index_put(x, [i], v)],
    ),
    "view": (
        (X,),
        lambda x: x.view(4, 3),
        [lambda x: aten._unsafe_view(x, [4, 3]), lambda x: aten._reshape_alias(x, [4, 3], [3, 1])],
    ),
    "split": ((X,), lambda x: x.split(1), [lambda x: aten.unsafe_split(x, 1)]),
}
PLAIN = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)  # stride, padding, dilation, transposed, output_padding, groups


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_of_one_operation_have_its_name_and_its_price(name: str) -> None:
    args, plain, kernels = KERNELS[name]
    (written,) = booked(plain, *args)
    assert written.name == name.split()[0]
    for kernel in kernels:
        (run,) = booked(kernel, *args)
        assert (run.name, price(run)) == (written.name, price(written))


def test_name_without_gradients_is_priced_as_the_one_with() -> None:
    """Torch runs `_embedding_bag` where the table needs a gradient, `_embedding_bag_forward_only` where not."""
    indices, offsets = P[0, :3], torch.tensor([0, 2])
    (left,) = booked(aten._embedding_bag, X, indices, offsets)
    (right,) = booked(aten._embedding_bag_forward_only, X, indices, offsets)
    assert price(left) == price(right)
