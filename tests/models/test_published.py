"""The networks equal the published ones: outputs, parameters, multiply-accumulates, the rows of the papers' tables."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchledger import Ledger, analyze
from torchledger.models import build
from torchledger.models.registry import REGISTRY

TORCHVISION = [name for name, entry in REGISTRY.items() if entry.weights.startswith("torchvision")]
LARGE = {"inception_v3": 299, "inception_v4": 139, "alexnet": 80}  # pixels; the others take less


def on_meta(name: str, **arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return build(name, **arguments)


def ledger_of(name: str, **arguments: Any) -> Ledger:
    return analyze(on_meta(name, **arguments), REGISTRY[name].input_size)


def published(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the initialisation of googlenet
        if name == "inception_v4":
            import timm

            return timm.create_model(name)
        import torchvision.models

        return torchvision.models.get_model(name)


def params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        made = model(x)
    return [made] if isinstance(made, Tensor) else list(made)


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Give every parameter and statistic a value of its own, such that what an image says reaches the outputs."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):  # as published, googlenet's signal dies on its way, in eval mode
            nn.init.kaiming_normal_(module.weight)
    for key, value in model.state_dict().items():
        if key.endswith(("running_mean", "bias")):
            value.normal_(std=0.1)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)


def difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, over the largest value."""
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("name", [*TORCHVISION, "inception_v4"])
def test_outputs_equal_the_published_network(name: str) -> None:
    """One random state dict on both sides, in eval and, dropout aside, in train mode; heads too."""
    torch.manual_seed(0)
    theirs = published(name)
    randomise(theirs)
    ours = on_meta(name)
    ours.load_state_dict(theirs.state_dict(), assign=True, strict=True)
    theirs = published(name)
    theirs.load_state_dict(ours.state_dict())
    for module in (*ours.modules(), *theirs.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = torch.randn(2, 3, LARGE.get(name, 64), LARGE.get(name, 64))
    for train in (False, True):
        made, expected = outputs(ours.train(train), x), outputs(theirs.train(train), x)
        assert len(made) == len(expected) == (1 if not train else {"googlenet": 3, "inception_v3": 2}.get(name, 1))
        for one, other in zip(made, expected, strict=True):
            assert difference(other[0], other[1]) > 1e-2  # or equality would say nothing
            assert difference(one, other) < 1e-5
    state = theirs.state_dict()
    assert all(torch.allclose(value, state[key]) for key, value in ours.state_dict().items())  # running statistics


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_heads_of_train_mode_are_named(name: str) -> None:
    x = torch.empty(2, *REGISTRY[name].input_size, device="meta")
    made: Any = on_meta(name).train()(x)
    assert made._fields == (
        ("logits", "aux_logits2", "aux_logits1") if name == "googlenet" else ("logits", "aux_logits")
    )


PUBLISHED = {
    "alexnet": (61_100_840, 0.714),
    "alexnet_2012": (60_965_224, 0.724),
    "vgg11": (132_863_336, 7.609),
    "vgg13": (133_047_848, 11.308),
    "vgg16": (138_357_544, 15.470),
    "vgg19": (143_667_240, 19.632),
    "googlenet_v1": (13_378_280, 1.583),
    "googlenet": (13_004_888, 1.498),
    "inception_v2": (11_295_240, 2.033),
    "inception_v3": (27_161_264, 5.713),
    "resnet18": (11_689_512, 1.814),
    "resnet34": (21_797_672, 3.664),
    "resnet50": (25_557_032, 4.089),
    "resnet101": (44_549_160, 7.801),
    "resnet152": (60_192_808, 11.514),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_params_and_macs_as_published(name: str) -> None:
    totals = ledger_of(name).totals()
    assert (totals["params"], round(totals["macs"] / 1e9, 3)) == PUBLISHED[name]


def test_params_of_inception_v4() -> None:
    assert params(on_meta("inception_v4")) == 42_679_816


def test_params_without_heads() -> None:
    assert params(on_meta("googlenet_v1", aux_logits=False)) == 6_998_552
    assert params(on_meta("googlenet", aux_logits=False)) == 6_624_904
    # the head: 768 128 + 2 128 of its 1x1, 128 768 25 + 2 768 of its 5x5, 768 1000 + 1000
    assert params(on_meta("inception_v3", aux_logits=False)) == 27_161_264 - 98_560 - 2_459_136 - 769_000


@pytest.mark.parametrize(("layers", "macs"), [(50, 3.858), (101, 7.570), (152, 11.282)])
def test_macs_with_the_papers_stride(layers: int, macs: float) -> None:
    """He et al., table 1, has 3.8, 7.6 and 11.3 GFLOPs."""
    counted = ledger_of(f"resnet{layers}", stride_in_1x1=True).totals()["macs"] / 1e9
    assert round(counted, 3) == macs
    assert abs(counted - {50: 3.8, 101: 7.6, 152: 11.3}[layers]) < 0.1


@pytest.mark.parametrize(
    ("layers", "published_m"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7), (1202, 19.4)]
)
def test_cifar_params_as_in_table_6(layers: int, published_m: float) -> None:
    residual, plain = params(on_meta(f"resnet{layers}")), params(on_meta(f"plain{layers}"))
    assert residual == plain  # option A has no parameters
    assert round(residual / 1e6, 2 if layers < 110 else 1) == published_m
    n = (layers - 2) // 6
    convolutions = 3 * 16 * 9 + 2 * n * 16 * 16 * 9
    convolutions += 16 * 32 * 9 + (2 * n - 1) * 32 * 32 * 9 + 32 * 64 * 9 + (2 * n - 1) * 64 * 64 * 9
    assert residual == convolutions + 2 * (16 + 2 * n * (16 + 32 + 64)) + 64 * 10 + 10


def module_rows(name: str, *wanted: str) -> tuple[dict[str, str], dict[str, int]]:
    """Return output size (channels x height x width) and macs of modules at the network's own input size."""
    model, sizes = on_meta(name).eval(), dict[str, str]()
    for path in wanted:
        model.get_submodule(path).register_forward_hook(
            lambda _, __, made, path=path: sizes.update({path: "x".join(map(str, made.shape[1:]))})
        )
    with torch.no_grad():
        model(torch.empty(1, *REGISTRY[name].input_size, device="meta"))
    rows = ledger_of(name).by_module(1).rows
    return sizes, {str(row["module"]): row["macs"] for row in rows}


# Szegedy et al. 2015, table 1: output size, operations in millions (rounded or cut off there). Not here, since the
# table contradicts itself: the operations of conv1 and 5a (and, of 4c, the parameters).
GOOGLENET_TABLE = {
    "conv1": ("64x112x112", None),
    "maxpool1": ("64x56x56", None),
    "conv2+conv3": ("192x56x56", 360),
    "maxpool2": ("192x28x28", None),
    "inception3a": ("256x28x28", 128),
    "inception3b": ("480x28x28", 304),
    "maxpool3": ("480x14x14", None),
    "inception4a": ("512x14x14", 73),
    "inception4b": ("512x14x14", 88),
    "inception4c": ("512x14x14", 100),
    "inception4d": ("528x14x14", 119),
    "inception4e": ("832x14x14", 170),
    "maxpool4": ("832x7x7", None),
    "inception5a": ("832x7x7", None),
    "inception5b": ("1024x7x7", 71),
    "avgpool": ("1024x1x1", None),
    "fc": ("1000", 1),
}


@pytest.mark.parametrize("row", GOOGLENET_TABLE)
def test_table_1_of_googlenet(row: str) -> None:
    size, millions = GOOGLENET_TABLE[row]
    parts = row.split("+")
    sizes, macs_of = module_rows("googlenet_v1", *parts)
    assert sizes[parts[-1]] == size
    if millions is not None:
        macs = sum(macs_of[part] for part in parts) / 1e6
        assert millions in (int(macs), round(macs)), macs


def test_inception_v2_keys_are_flat() -> None:
    keys = list(on_meta("inception_v2").state_dict())
    assert keys[:2] == ["conv1_7x7_s2.weight", "conv1_7x7_s2.bias"]
    assert {"inception_3a_double_3x3_1_bn.running_var", "inception_5b_pool_proj.bias", "last_linear.bias"} <= {*keys}
    # 2 of the convolution, 5 of its BatchNorm, for 3 in the stem, 7 in 8 blocks, 5 in 3c and 4e; 2 of the last layer
    assert len(keys) == 7 * (3 + 7 * 8 + 5 * 2) + 2


# Output sizes after a module, at the network's own input size; the papers' tables and figures as named.
SIZES = {
    # Krizhevsky et al. 2012, section 3.5 and figure 2
    "alexnet_2012": {
        "features.0": "96x55x55", "features.4": "256x27x27", "features.8": "384x13x13", "features.10": "384x13x13",
        "features.12": "256x13x13", "classifier.0": "4096", "classifier.3": "4096", "classifier.6": "1000",
    },
    # He et al. 2016, table 1
    "resnet18": {
        "conv1": "64x112x112", "layer1": "64x56x56", "layer2": "128x28x28", "layer3": "256x14x14",
        "layer4": "512x7x7", "avgpool": "512x1x1",
    },
    "resnet152": {
        "conv1": "64x112x112", "layer1": "256x56x56", "layer2": "512x28x28", "layer3": "1024x14x14",
        "layer4": "2048x7x7", "avgpool": "2048x1x1",
    },
    # He et al. 2016, section 4.2
    "resnet110": {"layer1": "16x32x32", "layer2": "32x16x16", "layer3": "64x8x8"},
    # Szegedy et al. 2016, table 1, which gives what goes into a row: all but 71x71x80 and the 288 channels of the first
    # 35 x 35 block, where the released network is another
    "inception_v3": {
        "Conv2d_1a_3x3": "32x149x149", "Conv2d_2a_3x3": "32x147x147", "Conv2d_2b_3x3": "64x147x147",
        "maxpool1": "64x73x73", "maxpool2": "192x35x35", "Mixed_5d": "288x35x35", "Mixed_6e": "768x17x17",
        "Mixed_7a": "1280x8x8", "Mixed_7c": "2048x8x8", "avgpool": "2048x1x1",
    },
    # Szegedy et al. 2017, figures 3 and 9
    "inception_v4": {
        "features.0": "32x149x149", "features.1": "32x147x147", "features.2": "64x147x147", "features.3": "160x73x73",
        "features.4": "192x71x71", "features.5": "384x35x35", "features.9": "384x35x35", "features.10": "1024x17x17",
        "features.17": "1024x17x17", "features.18": "1536x8x8", "features.21": "1536x8x8", "global_pool": "1536x1x1",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_output_sizes_of_the_papers(name: str) -> None:
    assert module_rows(name, *SIZES[name])[0] == SIZES[name]


# Ioffe and Szegedy 2015, figure 5: channels and size that go into a block. Not here, since the figure contradicts
# itself or the public weights: what 4d, 4e and 5a take.
INTO_V2 = {
    "3a": "192x28x28", "3b": "256x28x28", "3c": "320x28x28", "4a": "576x14x14", "4b": "576x14x14", "4c": "576x14x14",
    "5b": "1024x7x7",
}  # fmt: skip


@pytest.mark.parametrize("block", INTO_V2)
def test_figure_5_of_inception_v2(block: str) -> None:
    model, sizes = on_meta("inception_v2").eval(), list[str]()
    first = model.get_submodule(f"inception_{block}_3x3_reduce")
    first.register_forward_hook(lambda _, given, __: sizes.append("x".join(map(str, given[0].shape[1:]))))
    model(torch.empty(1, 3, 224, 224, device="meta"))
    assert sizes == [INTO_V2[block]]


def test_resnet_flops_as_in_table_1() -> None:
    """He et al., table 1: 1.8 and 3.6 billion for 18 and 34 layers, rounded or cut off."""
    for layers, published_g in ((18, 1.8), (34, 3.6)):
        macs = ledger_of(f"resnet{layers}").totals()["macs"] / 1e9
        assert published_g in (int(macs * 10) / 10, round(macs, 1))


def test_vgg_params_as_in_table_2() -> None:
    """Simonyan and Zisserman, table 2: 133, 133, 138 and 144 million for A, B, D and E."""
    millions = [round(params(on_meta(f"vgg{layers}")) / 1e6) for layers in (11, 13, 16, 19)]
    assert millions == [133, 133, 138, 144]
