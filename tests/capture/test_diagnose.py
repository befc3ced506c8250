"""What is said when a model's forward fails: where, what reached it, and the number that would fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchledger import ForwardError, Ledger, analyze
from torchledger.models.article import AlexNet


class Net(nn.Module):
    """Features, a function between, a classifier."""

    def __init__(self, between: Any, *layers: nn.Module) -> None:
        super().__init__()
        self.between = between
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(2))
        self.classifier = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.between(self.features(x)))


def failure(model: nn.Module, *inputs: Any, **options: Any) -> tuple[str, Ledger]:
    with pytest.raises(ForwardError) as caught:
        analyze(model, *inputs, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value), caught.value.ledger


def test_the_articles_alexnet_at_192() -> None:
    said, ledger = failure(AlexNet(10), (3, 192, 192))
    # (192 + 2 2 - 11) // 4 + 1 = 47, pooled 23, 11, 5: 256 x 5 x 5 = 6400
    assert said.startswith("(root): view(1, 9216) asks for 9216 elements, got 6400; 6400 would fit in place of 9216")
    assert "1x256x5x5" in said
    # all five convolutions ran before: 47^2 64 363 + 23^2 192 1600 + 11^2 9 (384 192 + 256 384 + 256 256)
    assert ledger.totals()["macs"] == 47**2 * 64 * 363 + 23**2 * 192 * 1600 + 11**2 * 9 * (384 * 192 + 256 * 640)
    assert ledger.totals()["priced"] == 13
    assert any(note.startswith("incomplete: (root): view") for note in ledger.by_layer().notes)


def test_alexnet_with_flatten_at_192() -> None:
    model = AlexNet(10)
    model = nn.Sequential()
    model.add_module("features", AlexNet(10).features)
    model.add_module("flatten", nn.Flatten(1))
    model.add_module("classifier", AlexNet(10).classifier)
    said, _ = failure(model, (3, 192, 192))
    assert said.startswith("classifier.1: Linear expects 9216 features, got 6400")
    assert "1x6400" in said


@pytest.mark.parametrize("view", [lambda x: x.view(x.size(0), 16), lambda x: x.reshape((x.shape[0], 16))])
def test_view_that_does_not_multiply_out(view: Any) -> None:
    said, _ = failure(Net(view), (3, 8, 8), batch=4)
    assert "(4, 16) asks for 64 elements, got 128; 32 would fit in place of 16" in said  # 8 x 2 x 2 a sample


def test_view_with_a_free_dimension() -> None:
    said, _ = failure(Net(lambda x: x.view(-1, 20)), (3, 8, 8))
    assert "view(-1, 20)" in said and "32 would fit in place of 20" in said


def test_view_whose_strides_are_in_the_way_says_what_torch_says() -> None:
    said, _ = failure(Net(lambda x: x.transpose(1, 3).view(1, 32)), (3, 8, 8))
    assert "would fit" not in said and "stride" in said


@pytest.mark.parametrize(
    ("layer", "size", "expected"),
    [
        (nn.Linear(9, 3), (8,), "1: Linear expects 9 features, got 8"),
        (nn.Linear(9, 3), (5, 8), "1: Linear expects 9 features, got 8"),
        (nn.Conv2d(3, 8, 3), (4, 8, 8), "1: Conv2d expects 3 channels, got 4"),
        (nn.Conv2d(3, 8, 3), (8,), "1: Conv2d expects 3 or 4 dimensions, got 2"),
        (nn.Conv1d(3, 8, 3), (4, 8), "1: Conv1d expects 3 channels, got 4"),
        (nn.Conv3d(3, 8, 3), (4, 8, 8, 8), "1: Conv3d expects 3 channels, got 4"),
        (nn.ConvTranspose2d(3, 8, 3), (4, 8, 8), "1: ConvTranspose2d expects 3 channels, got 4"),
        (nn.Conv2d(4, 8, 3, groups=2), (6, 8, 8), "1: Conv2d expects 4 channels, got 6"),
        (nn.BatchNorm2d(5), (6, 8, 8), "1: BatchNorm2d expects 5 features, got 6"),
        (nn.BatchNorm2d(5), (5,), "1: BatchNorm2d expects 4 dimensions, got 2"),
        (nn.BatchNorm1d(5), (6,), "1: BatchNorm1d expects 5 features, got 6"),
        (nn.LayerNorm(5), (6,), "1: LayerNorm expects last sizes 5, got 6"),
        (nn.LayerNorm((2, 5)), (5, 2), "1: LayerNorm expects last sizes 2x5, got 5x2"),
        (nn.GroupNorm(2, 4), (6, 3), "1: GroupNorm expects 4 channels, got 6"),
        (nn.LSTM(5, 6), (7, 4), "1: LSTM expects 5 features, got 4"),
    ],
)
def test_module_and_number(layer: nn.Module, size: tuple[int, ...], expected: str) -> None:
    said, _ = failure(nn.Sequential(nn.Identity(), layer), size)
    assert said.startswith(expected)
    assert "x".join(map(str, (1, *size))) in said


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: F.linear(x.flatten(1), torch.zeros(4, 30)), "expects 30 features, got 32"),
        (lambda x: x.flatten(1) @ torch.zeros(30, 4), "rows of 32 with columns of 30"),
        (lambda x: F.conv2d(x, torch.zeros(4, 3, 1, 1)), "expects 3 channels, got 8"),
        (lambda x: torch.cat([x, x[..., :1]]), "cat"),
        (lambda x: x + torch.zeros(3), "add"),
        (lambda x: F.max_pool2d(x, 9), "max_pool2d"),
        (lambda x: F.scaled_dot_product_attention(x, x, x[..., :1, :]), "scaled_dot_product_attention"),
        (lambda x: F.softmax(x, dim=7), "softmax"),
        (lambda x: x.unflatten(1, (3, 3)), "unflatten"),
        (lambda x: F.batch_norm(x, torch.zeros(3), torch.ones(3)), "batch_norm"),
    ],
)
def test_operation_outside_of_a_leaf(call: Any, expected: str) -> None:
    said, _ = failure(Net(call), (3, 8, 8))
    assert said.startswith("(root): ") and expected in said
    assert "1x8x2x2" in said or "1x32" in said


def test_error_of_the_models_own_code_has_its_place() -> None:
    def between(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("not\ntoday")

    said, _ = failure(Net(between), (3, 8, 8))
    assert said.startswith("(root): ValueError: not today")
    assert "test_diagnose.py, line" in said


def test_missing_argument_of_forward() -> None:
    said, ledger = failure(nn.Bilinear(3, 4, 5), (3,))
    assert "missing 1 required positional argument" in said
    assert ledger.totals()["operations"] == 0


def test_error_inside_of_an_inner_module_names_it() -> None:
    class Inner(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(7, 7)

    said, _ = failure(nn.Sequential(nn.Identity(), nn.Sequential(Inner())), (8,))
    assert said.startswith("1.0: view(7, 7) asks for 49 elements, got 8")


def test_error_that_was_wrapped_keeps_its_operation() -> None:
    def between(x: torch.Tensor) -> torch.Tensor:
        try:
            return x.view(7)
        except RuntimeError as error:
            raise ValueError("wrapped") from error

    said, _ = failure(Net(between), (3, 8, 8))
    assert "view(7) asks for 7 elements, got 32" in said


def test_the_cause_is_the_models_own_exception() -> None:
    with pytest.raises(ForwardError) as caught:
        analyze(AlexNet(10), (3, 192, 192))
    assert isinstance(caught.value.__cause__, RuntimeError)
