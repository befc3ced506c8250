"""Sizes, dtypes and the errors for what is neither."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torchledger import UserError, analyze
from torchledger.inputs import example_inputs

FLOAT = torch.float32


def made(*inputs: Any, kwargs: Any = None, batch: int = 1, dtype: Any = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return example_inputs(inputs, kwargs, batch, dtype, FLOAT)


@pytest.mark.parametrize("size", [(3, 8), [3, 8]])
def test_a_size_gets_the_batch_in_front(size: Any) -> None:
    (x,), _ = made(size, batch=4)
    assert (tuple(x.shape), x.dtype, x.device.type) == ((4, 3, 8), FLOAT, "meta")


def test_several_sizes_and_nesting() -> None:
    (x, (y, z), named), keywords = made(
        (3,), [(4,), [(5,)]], {"a": (6,)}, kwargs={"b": (7,), "flag": True, "k": 2, "t": "t", "n": None}, batch=2
    )
    shapes = [tuple(t.shape) for t in (x, y, z[0], named["a"], keywords["b"])]
    assert shapes == [(2, 3), (2, 4), (2, 5), (2, 6), (2, 7)]
    assert {k: v for k, v in keywords.items() if k != "b"} == {"flag": True, "k": 2, "t": "t", "n": None}


def test_tensors_pass_as_they_are() -> None:
    tensor = torch.zeros(2, 3)
    (x, nested), _ = made(tensor, {"a": (tensor,)})
    assert x is tensor and nested["a"][0] is tensor


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (None, (FLOAT, FLOAT, FLOAT)),
        ("int64", (torch.int64,) * 3),
        (torch.bfloat16, (torch.bfloat16,) * 3),
        (["int64", "torch.float64"], (torch.int64, torch.float64, FLOAT)),
        ({1: "int8", "b": "bool"}, (FLOAT, torch.int8, torch.bool)),
    ],
)
def test_dtypes(dtype: Any, expected: tuple[torch.dtype, ...]) -> None:
    (x, y), keywords = made((2,), (3,), kwargs={"b": (4,)}, dtype=dtype)
    assert (x.dtype, y.dtype, keywords["b"].dtype) == expected


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: made(), "no input was given"),
        (lambda: made((3, -1)), "-1 in it is not a whole number from 1"),
        (lambda: made((3, 0)), "0 in it is not"),
        (lambda: made((3, 2.5)), "2.5 in it is not"),
        (lambda: made((True, 3)), "True in it is not"),
        (lambda: made((3,), 1), "input 2 is the number 1; write batch=1"),
        (lambda: made("3x224x224"), "is the text '3x224x224'"),
        (lambda: made(torch.Size([8, 3, 4])), "per-sample size (3, 4) and batch=8"),
        (lambda: made(torch.zeros(2, 3).to_sparse()), "input 1 is a sparse_coo tensor"),
        (lambda: made({"a": torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8)}), "is a quantised tensor"),
        (lambda: made((2**62, 2**10)), "too many elements"),
        (lambda: made((2**70,)), "too many elements"),
        (lambda: made((3,), batch=2**62), "too many elements"),
        (lambda: made((3,), kwargs=[1]), "kwargs is [1], expected the keyword inputs by name"),
        (lambda: made((3,), dtype=5), "input_dtype is 5"),
        (lambda: analyze(nn.Linear(3, 3), (3,)).by_layer().to_text("a"), "width is 'a'"),
        (lambda: analyze(nn.Linear(3, 3), (3,)).totals(["full"]), "unknown convention ['full']"),
        (lambda: analyze(nn.Linear(3, 3), (3,)).save("a" * 300), "File name too long"),
        (lambda: analyze(nn.Linear(3, 3), (3,)).save(None), "is no path of a file"),
        (lambda: made((3,), batch=0), "batch is 0"),
        (lambda: made((3,), batch=True), "batch is True"),
        (lambda: made((3,), batch="2"), "batch is '2'"),
        (lambda: made((3,), dtype="flaot32"), "Did you mean 'float32'"),
        (lambda: made((3,), dtype=["float32", "int8"]), "2 dtypes for 1 inputs"),
        (lambda: made((3,), dtype={"x": "int8"}), "input_dtype names 'x'; the inputs are 0"),
        (lambda: analyze(nn.Linear, (3,)), "the class Linear, expected an nn.Module; make one: Linear(...)"),
        (lambda: analyze(3, (3,)), "model is of type int"),
        (lambda: analyze(nn.Linear(3, 3), (3,), mode="test"), "mode is 'test'; the modes are 'eval'"),
        (lambda: analyze(nn.Linear(3, 3), (3,), model_dtype="int8"), "expected a floating-point dtype"),
    ],
)
def test_errors_are_one_line_with_value_and_fix(call: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
