"""Autocast on meta: each operation, with its dtypes, as a real run under torch.autocast has it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dispatching
import observing
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torchledger import ForwardError, Ledger, UserError, analyze
from torchledger.capture import Captured, capture
from torchledger.capture.autocast import MODELLED, POLICIES, SCRIPTED, Region
from torchledger.capture.twins import Copies
from torchledger.record import Operation
from torchledger.training import training_step

HALF, LOWER = torch.bfloat16, "bfloat16"
ON_CPU, ON_CUDA = Region("cpu", HALF), Region("cuda", HALF)


class Net(nn.Module):
    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def dtypes(operation: Operation) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    return (operation.name, *(tuple(t.dtype for t in side) for side in (operation.inputs, outputs_of(operation))))


def outputs_of(operation: Operation) -> tuple[Any, ...]:
    return tuple(output.tensor for output in operation.outputs)


def ran(ledger: Ledger, phase: str | None = None) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Return name, dtypes in and dtypes out of each entry."""
    record = ledger.record
    return [dtypes(record.operations[e.operation]) for e in record.entries if phase in (None, e.phase)]


def casts(ledger: Ledger, phase: str = "forward") -> int:
    return sum(name == "to_copy" for name, _, _ in ran(ledger, phase))


def both(net: nn.Module, *args: Tensor, region: Region | None = ON_CPU, training: bool = True) -> list[Captured]:
    """Run a net on meta and for real."""
    found = []
    for real in (None, Copies()):
        step = training_step(None, "adamw") if training else None
        found.append(capture(net, args, {}, "train", real=real, training=step, autocast=region))
        assert found[-1].error is None, found[-1].record.error
    return found


def same(net: nn.Module, *args: Tensor, region: Region | None = ON_CPU, training: bool = True) -> list[Any]:
    meta, real = (observing.operations(found.record) for found in both(net, *args, region=region, training=training))
    assert meta == real
    return meta


# --- the lists ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", MODELLED)
def test_the_lists_are_those_that_torch_registers(device: str) -> None:
    key = f"Autocast{device.upper()}"
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")]
    listed = {
        name.removeprefix("aten::") for name in names if torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
    }
    assert listed - {"_cudnn_rnn"} == set(POLICIES[device]), "an LSTM's rule is that of cuDNN"


X, M, IMAGE, VOLUME = torch.randn(3, 4), torch.randn(4, 4), torch.randn(2, 3, 8, 8), torch.randn(1, 2, 6, 6, 6)
POSITIVE, SIGNS, CLASSES = torch.rand(3, 4) + 0.1, torch.ones(3), torch.tensor([0, 2, 1])
SYMMETRIC = M @ M.T + 5 * torch.eye(4)
GRID = torch.rand(2, 5, 5, 2)
FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "linear": (F.linear, (X, M, M[0])),
    "matmul": (lambda x, m: x @ m, (X, M)),
    "vector": (lambda m, v: m @ v, (M, M[0])),
    "bmm": (torch.bmm, (IMAGE[0], IMAGE[1])),
    "addmm": (torch.addmm, (X, X, M)),
    "addmv": (torch.addmv, (M[0], M, M[1])),
    "dot": (torch.dot, (M[0], M[1])),
    "baddbmm": (torch.baddbmm, (IMAGE[0], IMAGE[0], IMAGE[1])),
    "einsum": (lambda a, b: torch.einsum("bij,bjk->bik", a, b), (IMAGE[0], IMAGE[1])),
    "einsum of three": (lambda a, b, c: torch.einsum("ij,jk,kl->il", a, b, c), (X, M, M)),
    "bilinear": (F.bilinear, (X, X, torch.randn(5, 4, 4), torch.randn(5))),
    "multi_dot": (lambda a, b, c: torch.linalg.multi_dot([a, b, c]), (X, M, M)),
    "tensordot": (lambda a, b: torch.tensordot(a, b, 1), (X, M)),
    "conv1d same": (lambda x, w: F.conv1d(x, w, padding="same"), (IMAGE[0], torch.randn(2, 8, 3)[:, :3])),
    "conv2d": (F.conv2d, (IMAGE, torch.randn(4, 3, 3, 3), torch.randn(4))),
    "conv3d": (F.conv3d, (VOLUME, torch.randn(2, 2, 3, 3, 3))),
    "conv_transpose2d": (F.conv_transpose2d, (IMAGE, torch.randn(3, 4, 2, 2))),
    "prelu": (F.prelu, (X, torch.rand(1))),
    "attention": (F.scaled_dot_product_attention, (IMAGE, IMAGE, IMAGE)),
    "attention with a bias": (F.scaled_dot_product_attention, (IMAGE, IMAGE, IMAGE, torch.randn(8, 8))),
    "softmax": (lambda x: F.softmax(x, -1), (X,)),
    "log_softmax": (lambda x: F.log_softmax(x, -1, dtype=torch.float64), (X,)),
    "layer_norm": (lambda x, w: F.layer_norm(x, (4,), w, w), (X, M[0])),
    "group_norm": (lambda x, w: F.group_norm(x, 3, w, w), (IMAGE, torch.rand(3))),
    "batch_norm": (lambda x, w: F.batch_norm(x, None, None, w, w, True), (IMAGE, torch.rand(3))),
    "rms_norm": (lambda x, w: F.rms_norm(x, (4,), w), (X, M[0])),
    "sum": (lambda x: x.sum(-1), (X,)),
    "prod": (lambda x: x.prod(), (X,)),
    "prod of rows": (lambda x: x.prod(1), (X,)),
    "cumsum": (lambda x: x.cumsum(0), (X,)),
    "norm": (lambda x: x.norm(), (X,)),
    "norm of rows": (lambda x: x.norm(dim=1), (X,)),
    "vector_norm": (lambda x: torch.linalg.vector_norm(x, dim=-1), (X,)),
    "matrix_norm": (torch.linalg.matrix_norm, (X,)),
    "exp": (torch.exp, (X,)),
    "power": (lambda x: x**2.5, (POSITIVE,)),
    "power of tensors": (lambda x, y: x**y, (POSITIVE, X)),
    "rsqrt": (lambda x: x.rsqrt() + x.log() + x.reciprocal(), (POSITIVE,)),
    "softplus": (F.softplus, (X,)),
    "gelu": (F.gelu, (X,)),
    "cat": (lambda x, y: torch.cat([x, y.bfloat16()]), (X, X)),
    "stack": (lambda x, y: torch.stack([x.bfloat16(), y.bfloat16()]), (X, X)),
    "cat of float64": (lambda x, y: torch.cat([x, y.double()]), (X, X)),
    "addcmul": (lambda x, y: torch.addcmul(x, y.bfloat16(), y), (X, X)),
    "index_put": (lambda x, y: x.index_put((CLASSES,), y[0].to(x.dtype)), (X, X)),
    "index_copy": (lambda x, y: x.index_copy(0, CLASSES, y.bfloat16()), (X, X)),
    "scatter_add": (lambda x, y: x.scatter_add(0, CLASSES[:, None].expand(3, 4), y.to(x.dtype)), (X, X)),
    "cosine_similarity": (F.cosine_similarity, (X, X + 1)),
    "cdist": (torch.cdist, (X, M)),
    "logsumexp": (lambda x: x.logsumexp(-1), (X,)),
    "cross_entropy": (F.cross_entropy, (X, CLASSES)),
    "cross_entropy with smoothing": (lambda x, c: F.cross_entropy(x, c, label_smoothing=0.1), (X, CLASSES)),
    "cross_entropy of chances": (lambda x, y: F.cross_entropy(x, y.softmax(-1)), (X, X)),
    "nll_loss": (lambda x, c: F.nll_loss(F.log_softmax(x, 1), c), (X, CLASSES)),
    "mse_loss": (F.mse_loss, (X, POSITIVE)),
    "l1_loss": (F.l1_loss, (X, POSITIVE)),
    "huber_loss": (F.huber_loss, (X, POSITIVE)),
    "bce_with_logits": (F.binary_cross_entropy_with_logits, (X, POSITIVE.clamp(max=1))),
    "kl_div": (lambda x, y: F.kl_div(x, y, reduction="batchmean"), (X, POSITIVE)),
    "triplet": (F.triplet_margin_loss, (X, POSITIVE, X + 1)),
    "cosine_embedding": (F.cosine_embedding_loss, (X, POSITIVE, SIGNS)),
    "margin_ranking": (F.margin_ranking_loss, (X[0], X[1], torch.ones(4))),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2), (VOLUME,)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), (IMAGE,)),
    "max_pool3d": (lambda x: F.max_pool3d(x, 2), (VOLUME,)),
    "adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, 1), (VOLUME,)),
    "reflection": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), (IMAGE,)),
    "zeros around": (lambda x: F.pad(x, (1, 1, 1, 1)), (IMAGE,)),
    "grid_sample": (lambda x, g: F.grid_sample(x, g, align_corners=False), (IMAGE, GRID)),
    "upsample": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), (IMAGE,)),
    "upsample nearest": (lambda x: F.interpolate(x, scale_factor=2), (IMAGE,)),
    "fft": (torch.fft.fft, (X,)),
    "inverse": (torch.linalg.inv, (SYMMETRIC,)),
    "solve": (torch.linalg.solve, (SYMMETRIC, M)),
    "cholesky": (torch.linalg.cholesky, (SYMMETRIC,)),
    "trace": (torch.trace, (M,)),
    "float64 stays": (lambda x, m: x.double() @ m.double(), (X, M)),
    "in place": (lambda x, m: x.clone().addmm_(x, m), (X, M)),
}


class Call(nn.Module):
    """A function of an input and of parameters; integers and masks are as they are."""

    def __init__(self, function: Callable[..., Any], others: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.function = function
        self.others = [nn.Parameter(t.clone()) if t.is_floating_point() else t for t in others]
        for place, tensor in enumerate(self.others):
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(str(place), tensor)

    def forward(self, x: Tensor) -> Any:
        others = [self._parameters.get(str(place), tensor) for place, tensor in enumerate(self.others)]
        return self.function(x, *others)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_on_meta_is_the_function_for_real(name: str, dtype: torch.dtype) -> None:
    function, (x, *others) = FUNCTIONS[name]
    net = Call(function, tuple(others))
    x = x.to(dtype)
    try:
        with torch.autocast("cpu", HALF):
            net(x)
    except RuntimeError:
        with pytest.raises(ForwardError):
            analyze(net, x, autocast=HALF)
        return
    same(net, x, training=False)
    if not name.startswith("attention"):  # which a CPU runs in parts
        reference = [seen(dtypes(o)) for o in plain(net, x) if o.name != "empty"]  # BatchNorm's, of no elements
        assert [seen(line) for line in ran(Ledger(both(net, x, training=False)[0].record))] == reference


def plain(net: nn.Module, *args: Tensor) -> list[Operation]:
    """Return what runs for real under torch.autocast, without a capture."""

    def run() -> None:
        with torch.no_grad(), torch.autocast("cpu", HALF):
            net(*args)

    return dispatching.dispatched(run)


def seen(line: tuple[str, tuple[str, ...], tuple[str, ...]]) -> Any:
    name, given, made = line
    return name, given, made[:1]  # by-products differ by device


# --- nets -----------------------------------------------------------------------------------------------------------


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, w = ctx.saved_tensors
        return gradient @ w.t().to(gradient.dtype), x.flatten(0, 1).t().to(gradient.dtype) @ gradient.flatten(0, 1)


def custom(cast: torch.dtype | None) -> type[torch.autograd.Function]:
    """Return a product that torch.amp wraps."""

    class Product(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="cpu", cast_inputs=cast)
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return torch.mm(x, w)

        @staticmethod
        @torch.amp.custom_bwd(device_type="cpu")
        def backward(ctx: Any, gradient: Tensor) -> Any:
            x, w = ctx.saved_tensors
            return gradient.mm(w.t()), x.t().mm(gradient)

    return Product


def nested(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    with torch.autocast("cpu", enabled=False):
        y = net.b(y.float())
        with torch.autocast("cpu", dtype=torch.float16):
            y = y @ torch.ones(4, 4)
    with torch.autocast("cpu", dtype=HALF, cache_enabled=False):
        y = net.a(net.a(y))
    return net.b(y.float())


def own(net: Any, x: Tensor) -> Tensor:
    """Forward's own autocast, twice: what is cast in one region is forgotten in the next."""
    for _ in range(2):
        with torch.autocast("cpu", HALF):
            x = net.a(net.a(x))
    return x.float().softmax(-1)


def packed(net: Any, x: Tensor) -> Tensor:
    rows = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([7, 3]), batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(net.a(rows)[0], batch_first=True)[0]


def checkpointed(reentrant: bool) -> nn.Module:
    inner = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.ReLU(), nn.Linear(5, 4))
    return Net(lambda net, x: checkpoint(net.a, net.b(x), use_reentrant=reentrant), a=inner, b=nn.Linear(4, 4))


def classifier(net: Any, x: Tensor) -> Tensor:
    return F.cross_entropy(net.a(x).flatten(0, 1), torch.zeros(14, dtype=torch.int64))


def with_mask(net: Any, x: Tensor) -> Tensor:
    mask = torch.zeros(7, 7).masked_fill(torch.ones(7, 7, dtype=torch.bool).triu(1), -1e9)
    return net.a(x, x, x, attn_mask=mask, need_weights=False)[0]


def queries(net: Any) -> bool:
    assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == HALF
    return True


NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)),
    "frozen": lambda: nn.Sequential(nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 3)),
    "image": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout2d(),
        nn.ConvTranspose2d(8, 4, 2), nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
        nn.Softmax(-1),
    ),
    "norms": lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.RMSNorm(4), nn.Linear(4, 4), nn.LogSoftmax(-1)),
    "encoder": lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    "decoder": lambda: Net(lambda net, x: net.a(x, x), a=nn.TransformerDecoderLayer(4, 2, 8, 0.1, batch_first=True)),
    "attention": lambda: Net(with_mask, a=nn.MultiheadAttention(4, 2, batch_first=True, dropout=0.1)),
    "attention weights": lambda: Net(
        lambda net, x: net.a(x, x, x)[0], a=nn.MultiheadAttention(4, 2, batch_first=True, bias=False)
    ),
    "lstm": lambda: Net(lambda net, x: net.a(x)[0], a=nn.LSTM(4, 5, 2, bidirectional=True, dropout=0.2)),
    "lstm state": lambda: Net(lambda net, x: net.a(x)[1][1], a=nn.LSTM(4, 5, batch_first=True)),
    "projected lstm": lambda: Net(lambda net, x: net.a(x)[0], a=nn.LSTM(4, 5, proj_size=2)),
    "gru": lambda: Net(lambda net, x: net.a(x)[0], a=nn.GRU(4, 5, batch_first=True)),
    "rnn": lambda: Net(lambda net, x: net.a(net.b(x))[0], a=nn.RNN(4, 5), b=nn.Linear(4, 4)),
    "gru of lower": lambda: Net(lambda net, x: net.a(net.b(x))[0], a=nn.GRU(4, 5), b=nn.Linear(4, 4)),
    "packed": lambda: Net(packed, a=nn.LSTM(4, 5, batch_first=True)),
    "cells": lambda: Net(
        lambda net, x: net.b(net.a(x[:, 0])[0], net.c(x[:, 1])), a=nn.LSTMCell(4, 4), b=nn.GRUCell(4, 4),
        c=nn.RNNCell(4, 4),
    ),
    "loss": lambda: Net(classifier, a=nn.Linear(4, 5)),
    "embedding": lambda: Net(lambda net, x: net.b(net.a(x.argmax(-1))), a=nn.Embedding(9, 5), b=nn.Linear(5, 2)),
    "bilinear": lambda: Net(lambda net, x: net.a(x, x), a=nn.Bilinear(4, 4, 3)),
    "own function": lambda: Net(lambda net, x: Square.apply(net.a(x), net.a.weight), a=nn.Linear(4, 4)),
    "custom_fwd": lambda: Net(lambda net, x: custom(None).apply(x[0], net.a.weight), a=nn.Linear(4, 4)),
    "custom_fwd casts": lambda: Net(
        lambda net, x: custom(torch.float32).apply(net.a(x)[0], net.a.weight), a=nn.Linear(4, 4)
    ),
    "shared": lambda: Net(lambda net, x: net.a(net.a(x)) @ net.a.weight.t(), a=nn.Linear(4, 4)),
    "checkpoint": lambda: checkpointed(False),
    "reentrant checkpoint": lambda: checkpointed(True),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)),
    "nested": lambda: Net(nested, a=nn.Linear(4, 4), b=nn.Linear(4, 4)),
    "of the forward's own": lambda: Net(own, a=nn.Linear(4, 4)),
    "vmap": lambda: Net(lambda net, x: torch.vmap(net.a)(x), a=nn.Linear(4, 4)),
    "asks": lambda: Net(lambda net, x: net.a(x) if queries(net) else x, a=nn.Linear(4, 4)),
    "in place": lambda: Net(lambda net, x: net.a(x).mul_(2).add_(x.to(HALF)), a=nn.Linear(4, 4)),
}  # fmt: skip
# What a capture books whole, and a plain run of the kernels as many.
IN_PARTS = {
    "image", "encoder", "decoder", "attention", "lstm", "lstm state", "projected lstm", "gru", "rnn", "gru of lower",
    "packed", "checkpoint", "reentrant checkpoint",
}  # fmt: skip


def given_to(name: str) -> Tensor:
    return torch.randn(2, 3, 9, 9) if name == "image" else torch.randn(2, 7, 4)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", NETS)
def test_a_step_on_meta_is_the_step_for_real(name: str) -> None:
    net, x = NETS[name](), given_to(name)
    assert {phase for phase, _, _ in same(net, x)} == {"forward", "backward", "optimizer"}
    for found in both(net, x):
        assert not found.record.assumptions[1:], "the loss that was not given"
        ledger = Ledger(found.record)
        # A weight's gradient has the weight's dtype.
        assert {made for name, given, _ in ran(ledger, "optimizer") for made in given} == {"float32"}


@pytest.mark.parametrize("name", sorted(NETS.keys() - IN_PARTS))
def test_a_step_on_meta_is_what_torch_dispatches(name: str) -> None:
    """The reference has no capture: a step under torch.autocast, by a mode that writes down each operation."""
    net, x = NETS[name](), given_to(name)

    def run() -> None:
        with torch.autocast("cpu", HALF):
            output = net(x)
            loss = output.sum() if output.dim() else output
        loss.backward()

    reference = dispatching.dispatched(run)
    found = capture(net, (x,), {}, "train", training=training_step(None, None), autocast=ON_CPU)
    assert [seen(line) for line in ran(Ledger(found.record))] == [seen(dtypes(line)) for line in reference]


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch's, once a process
@pytest.mark.parametrize("name", NETS)
def test_inference_on_meta_is_inference_for_real(name: str) -> None:
    same(NETS[name](), given_to(name), training=False)


# They ask for the CPU's autocast by name.
OF_THE_CPU = {"asks", "custom_fwd", "custom_fwd casts", "in place", "nested", "of the forward's own"}


@pytest.mark.parametrize("region", [ON_CPU, ON_CUDA])
@pytest.mark.parametrize("name", sorted(NETS.keys() - OF_THE_CPU))
def test_macs_are_those_without_autocast(name: str, region: Region) -> None:
    found = []
    for around in (None, region):
        captured = capture(
            NETS[name](), (given_to(name),), {}, "train", training=training_step(None, None), autocast=around
        )
        assert captured.error is None, captured.record.error
        ledger = Ledger(captured.record)
        found.append([ledger.totals(phase=phase)["macs"] for phase in ("forward", "backward")])
    assert found[0] == found[1]


# --- what is kept, and where autocast ends ---------------------------------------------------------------------------


def test_a_weight_is_cast_once_and_again_after_the_outermost_region() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", HALF):
            with torch.autocast("cpu", HALF):
                x = net.a(x)
            x = net.a(x)  # the input is in bfloat16, the weight was cast
        with torch.autocast("cpu", HALF):
            return net.a(x)

    net = Net(forward, a=nn.Linear(4, 4, bias=False))
    assert casts(analyze(net, (4,), training=True)) == 2 + 0 + 1
    # Under one around it all, the regions inside end nothing.
    assert casts(analyze(net, (4,), training=True, autocast=HALF)) == 2
    net.requires_grad_(False)  # what does not train is not kept
    assert casts(analyze(net, (4,))) == 2 + 1 + 1
    no_cache = Net(
        lambda net, x: torch.autocast("cpu", HALF, cache_enabled=False)(lambda: net.a(net.a(x)))(),
        a=nn.Linear(4, 4, False),
    )
    assert casts(analyze(no_cache, (4,), training=True)) == 2 + 1


def test_a_cast_is_kept_while_no_gradient_is_wanted() -> None:
    """And serves where one is: the weight's gradient arrives."""

    def forward(net: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            net.a(x)
        return net.a(x)

    net = Net(forward, a=nn.Linear(4, 4, bias=False))
    same(net, torch.randn(3, 4))
    # x twice, the weight once; backward the gradient of the weight in float32
    ledger = analyze(net, (4,), training=True, autocast=HALF)
    assert (casts(ledger), casts(ledger, "backward")) == (3, 1)


def test_kept_casts_live_until_the_region_is_left() -> None:
    """As saved tensors after it, where backward needs them."""
    net = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    record = analyze(net, (10,), autocast=HALF).record
    weights = [a for a in record.allocations if a.bytes == 10 * 10 * 2]
    assert len(weights) == 2 and all(a.died == len(record.entries) for a in weights)


def test_torch_is_as_before() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        torch.autocast("cpu", torch.float16, cache_enabled=False).__enter__()  # and never left
        return net.a(x)

    def switches() -> Any:
        flags = [(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in MODELLED]
        torch.autocast_increment_nesting()
        nesting = torch.autocast_decrement_nesting()
        functions = torch.clear_autocast_cache, torch.cuda.is_bf16_supported
        key = "AutocastIPU"
        included = torch._C._dispatch_tls_is_dispatch_key_included(key)
        return (
            *flags,
            nesting,
            *functions,
            included,
            torch.is_autocast_cache_enabled(),
            torch.is_autocast_enabled("ipu"),
        )

    before = switches()
    net = Net(forward, a=nn.Linear(4, 4))
    analyze(net, (4,))
    assert switches() == before
    with contextlib.suppress(ForwardError):
        analyze(net, (5,), training=True, autocast=HALF)
    assert switches() == before
    with torch.autocast("cpu", HALF):
        real, weight = net.a(torch.zeros(2, 4)), net.a.weight
    assert real.dtype == HALF and weight.grad is None


def test_an_autocast_around_the_analysis_is_followed() -> None:
    net = nn.Linear(4, 4)
    with torch.autocast("cpu", HALF):
        ledger = analyze(net, (4,))
    assert ran(ledger) == ran(analyze(net, (4,), autocast=HALF))
    assert ledger.record.autocast is None


# --- devices --------------------------------------------------------------------------------------------------------


@pytest.fixture
def entering() -> Iterator[nn.Module]:
    """Give a net whose forward enters CUDA's autocast."""

    def forward(net: Any, x: Tensor) -> Tensor:
        with torch.autocast("cuda", HALF):
            return net.b(net.a(x).exp())

    yield Net(forward, a=nn.Linear(4, 4), b=nn.LayerNorm(4))


def test_a_model_on_the_cpu_is_not_cast_by_the_autocast_of_cuda(entering: nn.Module) -> None:
    with (
        pytest.warns(UserWarning, match="CUDA is not available")
        if not torch.cuda.is_available()
        else contextlib.nullcontext()
    ):
        ledger = analyze(entering, (4,))
    assert casts(ledger) == 0 and ledger.assumptions == []


@pytest.mark.filterwarnings("error")
def test_a_model_on_meta_goes_by_whichever_is_on(entering: nn.Module) -> None:
    ledger = analyze(entering.to("meta"), (4,))
    # exp and LayerNorm are on CUDA's list of float32
    assert [(name, made[0]) for name, _, made in ran(ledger)] == [
        ("to_copy", LOWER), ("to_copy", LOWER), ("to_copy", LOWER), ("t", LOWER), ("addmm", LOWER),
        ("to_copy", "float32"), ("exp", "float32"), ("layer_norm", "float32"),
    ]  # fmt: skip
    assert ledger.assumptions == []
    on_cpu = analyze(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).to("meta"), (4,), autocast=HALF)
    assert ran(on_cpu)[-1][2][0] == LOWER, "LayerNorm is on no list of the CPU's"


def test_the_casts_of_cuda_by_hand() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.a(x)
        assert x.is_cuda and y.dtype == HALF
        sums = y.sum(-1), y.softmax(-1), y.norm(), y.norm(dim=1), y.cumsum(0), y.pow(2), torch.addcmul(y, y, x)
        assert [value.dtype for value in sums] == [torch.float32] * len(sums)
        kept = y.relu(), y.mean(), torch.addcmul(y, y, y), torch.einsum("ij,kj->ik", x, x), y.max(), torch.cat([y, y])
        assert [value.dtype for value in kept] == [HALF] * len(kept)
        assert y.sum(-1, dtype=HALF).dtype == HALF
        assert x.double().exp().dtype == torch.float64
        with torch.autocast(x.device.type, enabled=False):
            assert (x @ net.a.weight).dtype == torch.float32
        return F.cross_entropy(y, torch.zeros(3, dtype=torch.int64))

    for place in ("cpu", "meta"):
        ledger = analyze(Net(forward, a=nn.Linear(4, 4)).to(place), (4,), batch=3, training=True, autocast="cuda:bf16")
        assert ledger.record.autocast == "cuda:bfloat16"
        assert [name for name, _, _ in ran(ledger)].count("_log_softmax_backward_data") == 1
    with pytest.raises(ForwardError, match="binary_cross_entropy is unsafe to autocast on CUDA"):
        analyze(Net(lambda net, x: F.binary_cross_entropy(x, x), a=nn.Linear(1, 1)), (4,), autocast="cuda:bf16")


def test_cudnn_takes_an_lstm_in_float16() -> None:
    ledger = analyze(nn.LSTM(4, 5), (7, 4), autocast="cuda:bfloat16")
    made = {name: made for name, _, made in ran(ledger)}
    assert made["lstm"] == ("float16",) * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_as_on_a_gpu(name: str) -> None:
    function, (x, *others) = FUNCTIONS[name]
    net, x = Call(function, tuple(others)).cuda(), x.cuda()
    meta = capture(net, (x,), {}, autocast=ON_CUDA)
    real = capture(net, (x,), {}, autocast=ON_CUDA, real=Copies())
    assert (meta.error is None) == (real.error is None)
    assert [seen(line) for line in ran(Ledger(meta.record))] == [seen(line) for line in ran(Ledger(real.record))]


def test_custom_fwd_of_cuda_on_meta() -> None:
    class Product(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="cuda", cast_inputs=HALF)
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            return torch.mm(x, w)

    net = Net(lambda net, x: Product.apply(x, net.a.weight), a=nn.Linear(4, 4)).to("meta")
    with torch.no_grad():
        assert [name for name, _, _ in ran(analyze(net, (4,), autocast="cuda:bf16"))] == ["to_copy", "to_copy", "mm"]


def test_an_autocast_that_is_not_modelled_is_said() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        with torch.autocast("xpu", HALF):
            return net.a(x)

    ledger = analyze(Net(forward, a=nn.Linear(4, 4)).to("meta"), (4,))
    assert casts(ledger) == 0
    assert ledger.assumptions == [
        "autocast was on for another device and is not modelled there: operations keep the dtypes of their inputs"
    ]


# --- the option -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["bfloat16", "bf16", torch.bfloat16, "torch.bfloat16", "cpu:bfloat16"])
def test_every_way_to_write_it(value: Any) -> None:
    ledger = analyze(nn.Linear(4, 3), (4,), autocast=value)
    assert ledger.record.autocast == "cpu:bfloat16"
    assert ran(ledger)[-1] == ("addmm", (LOWER,) * 3, (LOWER,))


def test_float16() -> None:
    assert ran(analyze(nn.Linear(4, 3), (4,), autocast="fp16"))[-1][2] == ("float16",)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("float32", "autocast is 'float32'; autocast goes down to bfloat16 or float16"),
        (torch.int8, "autocast is torch.int8; autocast goes down to bfloat16 or float16"),
        ("bfloat", "autocast is 'bfloat', which is no dtype; .* Did you mean 'float' or 'bfloat16'"),
        ("tpu:bf16", "for the device 'tpu'; it is modelled as on a CPU or on CUDA: write cpu:bf16 or cuda:bf16"),
        (True, "autocast is True, which is no dtype"),
    ],
)
def test_wrong_values(value: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        analyze(nn.Linear(4, 3), (4,), autocast=value)


def test_it_is_said_and_saved(tmp_path: Path) -> None:
    ledger = analyze(nn.Linear(4, 3), (4,), autocast="bf16")
    assert "eval mode, autocast cpu:bfloat16, batch 1" in ledger.by_layer().title
    path = tmp_path / "net.json"
    ledger.save(path)
    again = Ledger.load(path)
    assert again.record == ledger.record and again.record.autocast == "cpu:bfloat16"
    data = ledger.to_json()
    del data["autocast"]  # as an older version wrote it
    assert Ledger.from_json(data).record.autocast is None


def test_run_for_real() -> None:
    def by_values(net: Any, x: Tensor) -> Tensor:
        return net.a(x) if net.a(x).sum().item() > 9 else net.a(net.a(x))

    net = Net(by_values, a=nn.Linear(4, 4))
    ledger = analyze(net, (4,), autocast=HALF)
    assert ledger.assumptions[0].startswith("run for real") and ran(ledger)[-1][2] == (LOWER,)
    with pytest.raises(ForwardError, match="it would run on cpu, where autocast is another than the cuda:bfloat16"):
        analyze(net, (4,), autocast="cuda:bf16")
    with pytest.raises(UserError, match="it would run on cpu"):
        analyze(net, (4,), autocast="cuda:bf16", execute=True)


def test_inference_mode_inside() -> None:
    net = Net(lambda net, x: torch.inference_mode()(net.a)(x), a=nn.Linear(4, 4))
    same(net, torch.randn(3, 4), training=False)
    assert Counter(name for name, _, _ in ran(analyze(net, (4,), autocast=HALF)))["to_copy"] == 3
    net = Net(lambda net, x: torch.inference_mode()(torch.einsum)("ij,kj->ik", x, net.a.weight), a=nn.Linear(4, 4))
    assert casts(analyze(net, (4,), autocast=HALF)) == 2


def test_scripted_and_traced_modules() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    for scripted in (torch.jit.script(inner), torch.jit.trace(inner, torch.zeros(3, 4))):
        net = Net(lambda net, x: net.b(net.a(net.a(x))), a=scripted, b=nn.Linear(4, 2))
        ledger = analyze(net, (4,), autocast=HALF)
        assert [made for name, _, made in ran(ledger) if name == "addmm"] == [(LOWER,)] * 3
        assert casts(ledger) >= 1 + 2 + 2, "the input and four parameters"
        assert ledger.assumptions == [SCRIPTED]
        assert not analyze(net, (4,)).assumptions


def test_a_scripted_step() -> None:
    net = Net(lambda net, x: net.b(net.a(net.a(x))), a=torch.jit.script(nn.Linear(4, 4)), b=nn.Linear(4, 2))
    for _ in range(3):  # TorchScript makes another graph of it the second time
        ledger = analyze(net, (5, 4), batch=2, training=True, autocast=HALF)
        assert SCRIPTED in ledger.assumptions
        # 10 rows of 4 x 4 twice and 4 x 2
        assert ledger.totals(phase="forward")["macs"] == 10 * (16 + 16 + 8)


def test_a_weight_behind_a_batch_out_of_order_is_cast_once() -> None:
    """Its product has the bias added in place, as torch does; the weight is cast as a whole, and kept."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(3):
                x = self.layer(x.transpose(1, 2))
            return x

    for training in (False, True):
        ledger = analyze(Turned(), (6, 6), batch=2, training=training, autocast="bf16")
        names = [
            n
            for n, p in ((ledger.record.operations[e.operation].name, e.phase) for e in ledger.record.entries)
            if p == "forward"
        ]
        assert names.count("to_copy") == 3, "input, weight and bias"
