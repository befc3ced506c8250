"""torchvision's networks: nothing unknown, macs as torch's own counter has them, the same wherever the model lives."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torchledger import analyze, views
from torchledger.capture import capture
from torchledger.capture.twins import Copies
from torchledger.pricing import FULL

FAMILIES = ("alexnet", "vgg", "googlenet", "inception_v3", "resnet", "mobilenet", "squeezenet", "densenet")
SMALL = ("alexnet", "googlenet", "resnet18", "mobilenet_v3_small", "squeezenet1_1", "densenet121", "swin_t", "vit_b_16")


def build(name: str, device: str = "meta") -> nn.Module:
    with torch.device(device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the initialisation of googlenet
        import torchvision.models

        return torchvision.models.get_model(name)


def names() -> list[str]:
    import torchvision.models

    return [name for name in torchvision.models.list_models(torchvision.models) if name.startswith(FAMILIES)]


def size(name: str) -> tuple[int, int, int]:
    return (3, 299, 299) if name == "inception_v3" else (3, 224, 224)


@pytest.mark.parametrize("name", names())
def test_no_operation_is_unknown_and_macs_are_torchs(name: str) -> None:
    model = build(name)
    ledger = analyze(model, size(name))
    assert ledger.unknown == {}
    assert ledger.assumptions == []
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.empty(1, *size(name), device="meta"))
    assert ledger.totals()["macs"] * 2 == counter.get_total_flops()
    assert ledger.totals()["params"] == sum(p.numel() for p in model.parameters())
    assert analyze(model, size(name), mode="train", batch=2).unknown == {}


def test_resnet50_as_published() -> None:
    total = analyze(build("resnet50"), (3, 224, 224)).totals()
    assert (total["params"], round(total["macs"] / 1e9, 3)) == (25_557_032, 4.089)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_ledger_on_meta_equals_a_real_runs(name: str, mode: Any) -> None:
    model = build(name, "cpu")
    x = torch.zeros(2, *size(name))
    on_meta, real = (capture(model, (x,), {}, mode, real=real).record for real in (None, Copies()))
    left, right = (views.by_layer(record, FULL) for record in (on_meta, real))
    assert left.total == right.total
    assert len(left.rows) == len(right.rows)
    for one, other in zip(left.rows, right.rows, strict=True):
        # A number written into a slice is an argument on meta and a tensor without dimensions on a CPU.
        assert {**one, "input_shape": ""} == {**other, "input_shape": ""}
    assert [a.bytes for a in on_meta.allocations if a.kind == "parameter"] == [
        a.bytes for a in real.allocations if a.kind == "parameter"
    ]


# A layer, 197 tokens of 768: q, k, v and output 4 * 768^2, MLP 2 * 768 * 3072, a token; attention 2 * 197^2 * 768.
VIT_LAYER = 197 * (4 * 768**2 + 2 * 768 * 3072) + 2 * 197**2 * 768
VIT = 12 * VIT_LAYER + 196 * 768 * 3 * 16**2 + 768 * 1000


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("grad", [True, False])
def test_vit_counts_the_same_wherever_and_however(device: str, mode: Any, grad: bool) -> None:
    model = build("vit_b_16", device)
    with torch.set_grad_enabled(grad):
        total = analyze(model, (3, 224, 224), mode=mode).totals()
    assert total["macs"] == VIT
    assert round(total["macs"] / 1e9, 2) == 17.56
    if device == "cpu" and mode == "eval":
        with torch.set_grad_enabled(grad), torch.inference_mode(not grad):
            assert analyze(model, torch.zeros(1, 3, 224, 224)).totals() == total


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtype_changes_bytes_alone(dtype: str) -> None:
    model = build("resnet18")
    plain, cast = analyze(model, (3, 64, 64)).totals(), analyze(model, (3, 64, 64), model_dtype=dtype).totals()
    factor = {"float64": 2}.get(dtype, 0.5)
    assert {name: plain[name] for name in ("macs", "flops", "params")} == {
        name: cast[name] for name in ("macs", "flops", "params")
    }
    assert cast["activation_bytes"] == factor * plain["activation_bytes"]
