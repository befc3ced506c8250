"""Nothing uncounted: every ATen operation that reaches dispatch has a rule or is free, or stands below with a
reason."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dispatching import Booked
from torch import Tensor, nn

from torchledger.canonical import canonical
from torchledger.pricing.convention import State
from torchledger.pricing.full import FREE_OPERATIONS, price, rule_of

NEWEST = "2.13"  # the torch whose operations were gone through

# Operations that have no rule, on purpose: (why, names or beginnings of names that end with *).
WITHOUT: tuple[tuple[str, str], ...] = (
    (
        "sparse tensors: the work depends on how many elements are there, which no shape tells; captures refuse them",
        """_sparse_* sparse_* _to_sparse* _to_dense hspmm sspaddmm _spdiags _spsolve _coalesce _coalesced _coalesced_
        is_coalesced dense_dim _dimI _dimV _nnz _indices _values _indices_copy _values_copy col_indices row_indices
        ccol_indices ccol_indices_copy col_indices_copy crow_indices_copy row_indices_copy indices_copy values_copy
        copy_sparse_to_sparse* resize_as_sparse* _convert_indices_* _validate_compressed_* native_norm _cslt_*
        """,
    ),
    (
        "nested tensors: lengths are values; captures refuse them",
        "_nested_* to_padded_tensor _jagged_to_padded_dense_forward _padded_dense_to_jagged_forward",
    ),
    (
        "fused fast paths of inference, which captures switch off so that every device shows the same",
        """
        _native_multi_head_attention _transform_bias_rescale_qkv _transformer_encoder_layer_fwd
        _triton_multi_head_attention _triton_scaled_dot_attention
        """,
    ),
    (
        "forward-mode gradients and vmap",
        "glu_jvp glu_backward_jvp _fw_primal* _make_dual* _new_zeros_with_same_feature_meta",
    ),
    (
        "layouts and packs of weights for one kernel: made before a model runs, of no shape that others could read",
        """_mkldnn_* mkldnn_reorder_* mkldnn_linear_backward_* to_mkldnn _convert_weight_to_int4pack*
        _dyn_quant_pack_4bit_weight _cudnn_rnn_flatten_weight quantized_lstm quantized_gru
        _make_per_*_quantized_tensor q_per_channel_scales q_per_channel_zero_points
        """,
    ),
    (
        "what kernels call inside of other operations, below dispatch",
        """
        _compute_linear_combination _cummax_helper _cummin_helper _flash_attention_forward_no_dropout_inplace
        _fill_mem_eff_dropout_mask_ _cudnn_init_dropout_state _copy_from _copy_from_and_resize _resize_output*
        cudnn_affine_grid_generator_backward lstm_mps_backward mps_convolution_transpose_backward
        _mps_convolution_transpose
        """,
    ),
    ("made by torch.compile and export for the sake of order", "_functional_* _make_dep_token _print _backward"),
    ("random keys of another generator, private to torch", "_philox_*"),
    ("reads a file", "from_file"),
    ("tests of torch itself", "_test_* _foobar"),
)  # fmt: skip


def packets() -> dict[str, list[str]]:
    """Return every ATen operation with its overloads."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = name.partition("::")
        if namespace == "aten":
            found[rest.partition(".")[0]].append(name)
    return found


def is_composite(overloads: list[str]) -> bool:
    """Whether every overload comes apart into others before it reaches dispatch."""
    key = "CompositeImplicitAutograd"
    return all(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for name in overloads)


def is_excused(name: str) -> bool:
    for _, names in WITHOUT:
        for one in names.split():
            if name == one or (one.endswith("*") and name.startswith(one[:-1])):
                return True
            head, star, tail = one.partition("*")
            if star and tail and name.startswith(head) and name.endswith(tail):
                return True
    return False


def is_known(name: str) -> bool:
    booked = canonical("aten", name)
    return booked is None or booked in FREE_OPERATIONS or rule_of(booked) is not None


def test_every_operation_has_a_rule_or_a_reason() -> None:
    if not torch.__version__.startswith(NEWEST):
        pytest.skip("the operations of another torch")
    missing = [
        name
        for name, overloads in packets().items()
        if not is_known(name) and not is_excused(name) and not is_composite(overloads)
    ]
    assert not missing, f"{len(missing)} of torch {torch.__version__}: {' '.join(sorted(missing))}"
    assert len(packets()) > 1500


def test_every_reason_is_needed() -> None:
    """An operation that has got a rule is no longer excused, and none is excused that does not exist."""
    if not torch.__version__.startswith(NEWEST):
        pytest.skip("the operations of another torch")
    excused = {name for name, overloads in packets().items() if is_excused(name) and not is_composite(overloads)}
    assert not {name for name in excused if is_known(name)}
    for reason, names in WITHOUT:
        for one in names.split():
            head, _, tail = one.partition("*")
            assert any(n.startswith(head) and n.endswith(tail) for n in packets()), (reason, one)


# --- what training runs ------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Embedding(20, 8), kind(8, 6, 2, dropout=0.1), nn.Linear(6, 20)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(ids))[0]).transpose(1, 2)


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.PReLU(4), nn.MaxPool3d(2),
            nn.ConvTranspose3d(4, 4, 2, 2), nn.GroupNorm(2, 4), nn.SiLU(),
            nn.AvgPool3d(2), nn.InstanceNorm3d(4), nn.ELU(), nn.AdaptiveAvgPool3d(1),
        )  # fmt: skip
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


class Picture(nn.Module):
    """Up and down, by all kinds of activations."""

    def __init__(self) -> None:
        super().__init__()
        kinds = (
            nn.ReLU,
            nn.GELU,
            nn.SiLU,
            nn.Hardswish,
            nn.Mish,
            nn.Sigmoid,
            nn.Tanh,
            nn.Softplus,
            nn.LeakyReLU,
            nn.CELU,
        )
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), *(kind() for kind in kinds), nn.Dropout2d(0.1),
            nn.Conv2d(8, 8, 3, groups=4, padding=1, padding_mode="reflect"), nn.LocalResponseNorm(3), nn.MaxPool2d(2),
            nn.Upsample(scale_factor=2, mode="bilinear"), nn.PixelShuffle(2), nn.ReplicationPad2d(1), nn.LPPool2d(2, 2),
            nn.AdaptiveMaxPool2d(3), nn.Dropout(0.1),
        )  # fmt: skip
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(2 * 9, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


class Words(nn.Module):
    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 4, 32, 0.1, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(ids)).mean(1))


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.other, self.head = nn.EmbeddingBag(20, 6), nn.Bilinear(6, 6, 6), nn.Linear(6, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.bag(ids)
        y = torch.cdist(x, x).sum(1, keepdim=True) * F.normalize(self.other(x, x.flip(0)))
        y = torch.where(y > 0, y, y.cumsum(1)) + x[:, :1] * x.sort(1).values + torch.einsum("ij,kj->ik", x, x).sum()
        return self.head(F.glu(torch.cat([y, y.roll(1, 1)], 1), 1) * x.std(1, keepdim=True))


def tall(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.rand(shape)


def words(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, 20, shape)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], tuple[int, ...]]] = {
    "picture": (Picture, tall(2, 3, 16, 16), (2,)),
    "volume": (Volume, tall(2, 2, 8, 8, 8), (2,)),
    "lstm": (lambda: Recurrent(nn.LSTM), words(4, 2), (4, 2)),
    "gru": (lambda: Recurrent(nn.GRU), words(4, 2), (4, 2)),
    "rnn": (lambda: Recurrent(nn.RNN), words(4, 2), (4, 2)),
    "words": (Words, words(2, 6), (2,)),
    "words, norm first": (lambda: Words(norm_first=True), words(2, 6), (2,)),
    "bag": (Bag, words(3, 4), (3,)),
}
STEPS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1, "momentum": 0.9, "foreach": False}),
    ("AdamW", {"foreach": True}),
    ("Adam", {"fused": True}),
]


def step_of(model: nn.Module, x: Tensor, target: Tensor, optimizer: Any, device: str) -> set[str]:
    """Run a training step; return the names of operations that have no price, and check those that have one."""
    with Booked() as booked:
        F.cross_entropy(model(x), target).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    unknown = set()
    for one in booked.operations:
        priced = price(one)
        if priced.state is State.UNKNOWN:
            unknown.add(one.name)
        assert all(type(amount) is int and amount >= 0 for amount in priced.amounts.values()), one
    assert len(booked.operations) > 20
    return unknown


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("kind", "options"), STEPS)
@pytest.mark.parametrize("name", MODELS)
def test_training_steps_hold_no_unknown_operation(name: str, kind: str, options: dict[str, Any], device: str) -> None:
    if device == "meta" and options.get("fused"):
        pytest.skip("torch has no fused steps on meta")
    build, make, size = MODELS[name]
    model, x = build().to(device).train(), make().to(device)
    target = torch.zeros(size, dtype=torch.int64, device=device)
    optimizer = getattr(torch.optim, kind)(model.parameters(), **options)
    assert step_of(model, x, target, optimizer, device) == set()


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_b_16", "mobilenet_v3_small", "convnext_tiny", "inception_v3", "swin_t"]
)
def test_training_step_of_a_known_network(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"aux_logits": False, "init_weights": False} if name == "inception_v3" else {}
        model = torchvision.models.get_model(name, weights=None, **options).train()
        x, target = torch.rand(2, 3, 224, 224), torch.zeros(2, dtype=torch.int64)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    assert step_of(model, x, target, optimizer, "meta") == set()


LOSSES: list[tuple[nn.Module, tuple[Tensor, ...]]] = [
    *(
        (getattr(nn, f"{name}Loss")(), (torch.rand(3, 4),))
        for name in "L1 MSE SmoothL1 Huber PoissonNLL SoftMargin".split()
    ),
    (nn.BCEWithLogitsLoss(pos_weight=torch.rand(4)), (torch.rand(3, 4),)),
    (nn.BCELoss(weight=torch.rand(4)), (torch.rand(3, 4),)),
    (nn.KLDivLoss(reduction="batchmean"), (torch.rand(3, 4),)),
    (nn.CrossEntropyLoss(weight=torch.rand(4), label_smoothing=0.1), (torch.tensor([0, 3, 1]),)),
    (nn.CrossEntropyLoss(), (torch.rand(3, 4),)),
    (nn.MultiMarginLoss(), (torch.tensor([0, 3, 1]),)),
    (nn.MultiLabelMarginLoss(), (torch.tensor([[0, 3, -1, 1], [1, -1, 0, 0], [2, 1, 0, -1]]),)),
    (nn.MultiLabelSoftMarginLoss(), (torch.rand(3, 4),)),
    (nn.GaussianNLLLoss(), (torch.rand(3, 4), torch.rand(3, 4))),
    (nn.HingeEmbeddingLoss(), (torch.ones(3, 4),)),
    (nn.MarginRankingLoss(), (torch.rand(3, 4), torch.ones(3, 4))),
    (nn.CosineEmbeddingLoss(), (torch.rand(3, 4), torch.ones(3))),
    (nn.TripletMarginLoss(), (torch.rand(3, 4), torch.rand(3, 4))),
]


@pytest.mark.parametrize(("loss", "given"), LOSSES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_losses_hold_no_unknown_operation(loss: nn.Module, given: tuple[Tensor, ...], device: str) -> None:
    if device == "meta" and isinstance(loss, (nn.GaussianNLLLoss, nn.MultiMarginLoss, nn.MultiLabelMarginLoss)):
        pytest.skip("does not run on meta: reads whether a variance is negative, or has no kernel for its backward")
    x = (torch.rand(3, 4) / 2 + 0.25).to(device).requires_grad_()
    with Booked() as booked:
        loss.to(device)(x, *(t.to(device) for t in given)).backward()
    found = {one.name: price(one).state for one in booked.operations}
    assert found and State.UNKNOWN not in found.values(), found


def places(x: Tensor) -> Tensor:
    return torch.tensor([0, 1], device=x.device)


def points(x: Tensor) -> Tensor:
    """Return where to sample: x too, so that the grid's gradient is wanted."""
    return x[:, 0, :3, :2][:, :, None].expand(-1, -1, 3, -1)


FUNCTIONS: list[Callable[[Tensor], Tensor]] = [
    lambda x: F.grid_sample(x, points(x), align_corners=False),
    lambda x: F.grid_sample(x, points(x), "bicubic", align_corners=False),
    lambda x: F.unfold(x, 2),
    lambda x: F.fold(F.unfold(x, 2), (4, 4), 2),
    lambda x: x.unfold(2, 2, 1),
    lambda x: F.interpolate(x, scale_factor=2, mode="bicubic", antialias=True),
    lambda x: F.fractional_max_pool2d(x, 2, 2),
    lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    lambda x: F.adaptive_max_pool2d(x, 2),
    lambda x: F.avg_pool1d(x[0], 2) + F.max_pool1d(x[0], 2),
    lambda x: x.cumprod(1) + x.cummax(1).values + x.logcumsumexp(2) + x.flip(1),
    lambda x: x.gather(1, torch.zeros_like(x, dtype=torch.int64)) + x.median(1, keepdim=True).values,
    lambda x: x.index_add(1, places(x)[:1], x[:, :1]).scatter_add(1, torch.zeros_like(x).long(), x),
    lambda x: x.masked_fill(x > 0, 1.0) + x.tril() + x.roll(1) + x.kthvalue(2, 1, True).values,
    lambda x: x.topk(2, 1).values[:, :1] + x.repeat_interleave(2, 1).index_select(1, places(x)),
    lambda x: F.pad(x, (1, 1, 1, 1), "circular") + F.pad(x, (1, 1, 1, 1), "replicate"),
    lambda x: torch.fft.irfft2(torch.fft.rfft2(x)) + torch.fft.ifft(torch.fft.fft(x)).abs(),
    lambda x: torch.linalg.norm(x, dim=1) * x.norm(3, dim=1) * x.renorm(2, 0, 1.0).amax(1),
    lambda x: x.prod(1) * x.var(1) * x.aminmax(dim=1).max,
    lambda x: F.pdist(x.flatten(1)).sum() + torch.cdist(x, x, p=1).sum() + torch.dist(x, x + 1),
    lambda x: F.alpha_dropout(x, 0.5, True) + F.feature_alpha_dropout(x, 0.5, True),
    lambda x: F.dropout1d(x[0], 0.5, True) + F.dropout3d(x[None], 0.5, True)[0],
    lambda x: F.gumbel_softmax(x, hard=True) + F.softmin(x, 1) + F.logsigmoid(x),
    lambda x: F.threshold(x, 0.1, 2.0) + F.rrelu(x, training=True) + F.hardshrink(x) + F.softsign(x),
    lambda x: torch.special.i0e(x) + torch.special.ndtri(x) + torch.special.log_ndtr(x) + x.mvlgamma(1),
    lambda x: torch.special.bessel_j0(x.detach()) + x + torch.special.zeta(2.0, x.detach()),
    lambda x: torch.quantile(x, 0.5, dim=1) + x.nansum(1) + x.logsumexp(1) + torch.logaddexp(x, x).mean(1),
    lambda x: F.embedding_bag(places(x)[None], x[0, 0], mode="max") + F.embedding(places(x), x[0, 0]),
    lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    lambda x: F.scaled_dot_product_attention(x, x, x, torch.ones_like(x[0, 0])),
    lambda x: F.bilinear(x, x, x[0]) + torch.tensordot(x, x, ([0, 1], [0, 1])).sum(),
    lambda x: F.local_response_norm(x, 2) + F.instance_norm(x) + F.rms_norm(x, [4]) + F.group_norm(x, 2),
    lambda x: torch.stft(x[0, 0].flatten(), 8, window=x.new_ones(8), return_complex=True).abs(),
    lambda x: torch.trapezoid(x) + torch.cross(x[..., :3], x[..., :3], -1).sum() + x.diff().sum(),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("place", range(len(FUNCTIONS)))
def test_functions_hold_no_unknown_operation_either_way(place: int, device: str) -> None:
    x = (torch.rand(2, 2, 4, 4) / 2 + 0.25).to(device).requires_grad_()
    with Booked() as booked:
        made = FUNCTIONS[place](x)
        made.sum().backward()
    found = {one.name: price(one).state for one in booked.operations}
    assert found and State.UNKNOWN not in found.values(), found
