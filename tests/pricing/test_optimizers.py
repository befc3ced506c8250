"""Optimizer steps: kernels over lists against single tensors, fused kernels against the algorithms carried out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from counting import Number, counting, flops, numbers, positive, random, root, values
from dispatching import dispatched
from torch import Tensor

from torchledger.pricing import full
from torchledger.pricing.convention import State
from torchledger.pricing.full import price
from torchledger.pricing.optimizers import LISTED, NAMED_OTHERWISE, singles
from torchledger.record import Operation

aten = torch.ops.aten
SHAPES = ((3, 4), (5,), (2, 1, 2))
ELEMENTS = 12 + 5 + 4


def tensors(seed: int = 0) -> list[Tensor]:
    return [positive(*shape) + seed for shape in SHAPES]


def one_of(function: Callable[[], Any], name: str) -> Operation:
    (operation,) = [one for one in dispatched(function) if one.name == name]
    return operation


# --- lists -------------------------------------------------------------------------------------------------------

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "addcdiv": (tensors(1), tensors(2)),
    "addcmul": (tensors(1), tensors(2)),
    "lerp": (tensors(1), 0.5),
    **dict.fromkeys(
        ("add", "sub", "mul", "div", "maximum", "minimum", "copy", "clamp_max", "clamp_min"), (tensors(1),)
    ),
    "pow": (2.0,),
}
IN_PLACE = [name for name in LISTED if name not in ("clone", "max", "mm")]


@pytest.mark.parametrize("ending", ["", "_"])
@pytest.mark.parametrize("name", sorted(IN_PLACE))
def test_lists_cost_what_their_tensors_do(name: str, ending: str) -> None:
    given = ARGUMENTS.get(name, ())
    packet = getattr(aten, f"_foreach_{name}{ending}")
    together = price(one_of(lambda: packet(tensors(), *given), f"_foreach_{name}{ending}"))
    assert together.state is State.PRICED
    single = getattr(aten, f"{name}{ending}", None) or getattr(aten, name)
    apart = []
    for place, tensor in enumerate(tensors()):
        rest = [value[place] if isinstance(value, list) else value for value in given]
        found = [price(one) for one in dispatched(lambda t=tensor, r=rest: single(t, *r))]
        apart += [one.amounts for one in found if one.state is State.PRICED]
    for quantity in ("macs", "flops", "bytes_read", "bytes_written"):
        assert together.amounts[quantity] == sum(amounts[quantity] for amounts in apart), quantity
    assert together.amounts["bytes_written"] == 4 * ELEMENTS
    assert together.amounts["activation_bytes"] == 0


def test_lists_without_a_form_in_place() -> None:
    clone = price(one_of(lambda: aten._foreach_clone(tensors()), "_foreach_clone")).amounts
    assert (clone["flops"], clone["bytes_read"], clone["bytes_written"]) == (0, 4 * ELEMENTS, 4 * ELEMENTS)
    # n - 1 comparisons a tensor
    assert price(one_of(lambda: aten._foreach_max(tensors()), "_foreach_max")).amounts["flops"] == ELEMENTS - 3
    # 3 by 4 times 4 by 2, 2 by 2 times 2 by 5
    left, right = [random(3, 4), random(2, 2)], [random(4, 2), random(2, 5)]
    amounts = price(one_of(lambda: aten._foreach_mm(left, right), "_foreach_mm")).amounts
    assert (amounts["macs"], amounts["flops"]) == (3 * 4 * 2 + 2 * 2 * 5, 2 * 44)


def test_norms_of_lists() -> None:
    """As gradient clipping takes them: square n, sum n - 1, root 1 a tensor."""
    amounts = price(one_of(lambda: torch._foreach_norm(tensors()), "_foreach_norm")).amounts
    assert (amounts["flops"], amounts["bytes_written"]) == (2 * ELEMENTS, 4 * 3)
    largest = price(one_of(lambda: torch._foreach_norm(tensors(), math.inf), "_foreach_norm")).amounts
    assert largest["flops"] == 2 * ELEMENTS - 3
    sums = price(one_of(lambda: aten._foreach_powsum(tensors()), "_foreach_powsum")).amounts
    assert sums["flops"] == 2 * ELEMENTS - 3, "no roots"


def test_a_list_without_tensors_is_unknown_and_not_nothing() -> None:
    operation = one_of(lambda: torch._foreach_mul_(tensors(), 2.0), "_foreach_mul_")
    assert price(operation._replace(arguments={"self": (), "scalar": 2.0})).state is State.UNKNOWN


def test_scalars_and_one_tensor_for_all() -> None:
    scalars = price(one_of(lambda: torch._foreach_mul_(tensors(), [1.0, 2.0, 3.0]), "_foreach_mul_")).amounts
    assert (scalars["flops"], scalars["bytes_read"]) == (ELEMENTS, 4 * ELEMENTS)
    one = torch.tensor(2.0)
    amounts = price(one_of(lambda: torch._foreach_mul_(tensors(), one), "_foreach_mul_")).amounts
    assert (amounts["flops"], amounts["bytes_read"]) == (ELEMENTS, 4 * ELEMENTS + 4), "read once"
    powers = price(one_of(lambda: torch._foreach_pow(2.0, tensors()), "_foreach_pow")).amounts
    assert (powers["flops"], powers["bytes_read"], powers["bytes_written"]) == (ELEMENTS, 4 * ELEMENTS, 4 * ELEMENTS)
    # Adam's second moment takes the gradient twice, and reads it once
    state, gradient = tensors(), tensors(1)
    squared = price(
        one_of(lambda: torch._foreach_addcmul_(state, gradient, gradient, 0.1), "_foreach_addcmul_")
    ).amounts
    assert (squared["flops"], squared["bytes_read"]) == (3 * ELEMENTS, 2 * 4 * ELEMENTS)


def test_a_number_to_the_power_of_a_list() -> None:
    amounts = price(one_of(lambda: torch._foreach_pow(2.0, tensors()), "_foreach_pow")).amounts
    assert (amounts["flops"], amounts["bytes_read"], amounts["bytes_written"]) == (ELEMENTS, 4 * ELEMENTS, 4 * ELEMENTS)


def test_a_list_without_tensors_is_not_known() -> None:
    found = one_of(lambda: torch._foreach_mul_(tensors(), 2.0), "_foreach_mul_")
    assert price(Operation(found.name, {"self": 2.0, "scalar": 2.0}, (), ())).state is State.UNKNOWN


def test_equal_tensors_are_priced_once() -> None:
    """Every tensor of a list costs what it does alone: those that are like another, and those that are not."""
    shapes = [(3, 4), (5,), (3, 4), (3, 4), (5,), (4, 3)]
    left, right = [positive(*shape) for shape in shapes], [positive(*shape) for shape in shapes]
    right[2] = left[2]  # read once
    operation = one_of(
        lambda: torch._foreach_addcmul(left, left, right, [1.0, 2.0, 3.0, 1.0, 2.0, 1.0]), "_foreach_addcmul"
    )
    assert sorted(times for _, times in singles(operation)) == [1, 1, 2, 2]
    amounts = price(operation).amounts
    # product and sum 2, and 1 for a factor that is not 1: of the second, third and fifth tensor
    assert amounts["flops"] == sum(12 if len(shape) > 1 else 5 for shape in shapes) * 2 + 5 + 12 + 5
    elements = [12, 5, 12, 12, 5, 12]
    # self is tensor1 too; of the third one all three are the same
    assert amounts["bytes_read"] == 4 * (2 * sum(elements) - 12)


def test_every_rule_of_lists_is_tested() -> None:
    listed = {name for name in full.RULES if name.startswith("_foreach_")}
    tested = {f"_foreach_{name}" for name in (*LISTED, *NAMED_OTHERWISE)}
    assert listed == tested | {f"_foreach_{name}_" for name in IN_PLACE}


# --- fused steps -------------------------------------------------------------------------------------------------


def counted_adam(decoupled: bool, amsgrad: bool, decay: bool) -> Callable[..., Any]:
    """Kingma and Ba 2015, algorithm 1, the biases' corrections and the rate once a tensor; AdamW as Loshchilov and
    Hutter."""

    def step(p: Any, g: Any, m: Any, v: Any, largest: Any) -> None:
        t = Number(1.0) + 1.0
        first = Number(1.0) - Number(0.9).to("power", pow, t)
        second = root(Number(1.0) - Number(0.999).to("power", pow, t))
        rate = Number(0.001) / first
        for k in range(len(p)):
            if decay and decoupled:
                p[k] = p[k] * (1 - 0.001 * 0.01)
            if decay and not decoupled:
                g[k] = g[k] + p[k] * 0.01
            m[k] = m[k] * 0.9 + g[k] * 0.1
            v[k] = v[k] * 0.999 + (g[k] * g[k]) * 0.001
            if amsgrad:
                largest[k] = largest[k].larger(v[k])
            p[k] = p[k] - (m[k] / (root(largest[k] if amsgrad else v[k]) / second + 1e-8)) * rate

    return step


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_fused_adam(decoupled: bool, amsgrad: bool, decay: float) -> None:
    name = "_fused_adamw_" if decoupled else "_fused_adam_"
    given = [tensors(seed) for seed in range(4)] + [tensors(9) if amsgrad else []]
    steps = [torch.tensor(2.0) for _ in SHAPES]
    before = [[t.clone() for t in group] for group in given]
    options = {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "weight_decay": decay, "eps": 1e-8, "amsgrad": amsgrad}
    operation = one_of(lambda: getattr(aten, name)(*given, steps, **options, maximize=False), name)
    with counting() as counts:
        for place in range(len(SHAPES)):
            p, g, m, v, *largest = ([*numbers(group[place]).flatten()] for group in before if group)
            counted_adam(decoupled, amsgrad, bool(decay))(p, g, m, v, largest[0] if largest else None)
            torch.testing.assert_close(values(p), given[0][place].flatten(), rtol=1e-4, atol=1e-5)
    amounts = price(operation).amounts
    assert (amounts["macs"], amounts["flops"]) == (0, flops(counts))
    states = 4 + amsgrad
    # parameter, gradient, moments; a step of each tensor; all but the gradient are written
    assert amounts["bytes_read"] == 4 * (states * ELEMENTS + 3)
    assert amounts["bytes_written"] == 4 * ((states - 1) * ELEMENTS + 3)
    assert amounts["activation_bytes"] == 0


@pytest.mark.parametrize(
    ("momentum", "nesterov", "decay", "is_first", "expected"),
    [
        (0.0, False, 0.0, False, 2),  # p - lr g
        (0.0, False, 0.1, False, 4),  # g + w p
        (0.9, False, 0.0, False, 4),  # m b + g
        (0.9, True, 0.0, False, 6),  # g + m b
        (0.9, False, 0.0, True, 2),  # b = g
    ],
)
def test_fused_sgd(momentum: float, nesterov: bool, decay: float, is_first: bool, expected: int) -> None:
    buffers = tensors(3) if momentum else []
    options = {"weight_decay": decay, "momentum": momentum, "lr": 0.1, "dampening": 0.0, "nesterov": nesterov}
    operation = one_of(
        lambda: aten._fused_sgd_(tensors(), tensors(1), buffers, **options, maximize=False, is_first_step=is_first),
        "_fused_sgd_",
    )
    amounts = price(operation).amounts
    assert amounts["flops"] == expected * ELEMENTS
    held = bool(momentum)
    assert amounts["bytes_read"] == 4 * ELEMENTS * (2 + (held and not is_first))
    assert amounts["bytes_written"] == 4 * ELEMENTS * (1 + held)


def test_dampening_multiplies_the_gradient() -> None:
    options = {"weight_decay": 0.0, "momentum": 0.9, "lr": 0.1, "dampening": 0.5, "nesterov": False}
    operation = one_of(
        lambda: aten._fused_sgd_(tensors(), tensors(1), tensors(3), **options, maximize=False, is_first_step=False),
        "_fused_sgd_",
    )
    assert price(operation).amounts["flops"] == 5 * ELEMENTS, "m b + (1 - d) g 3, p - lr b 2"


def test_fused_adagrad() -> None:
    steps = [torch.tensor(2.0) for _ in SHAPES]
    options = {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.0, "eps": 1e-10, "maximize": False}
    amounts = price(
        one_of(lambda: aten._fused_adagrad_(tensors(), tensors(1), tensors(2), steps, **options), "_fused_adagrad_")
    ).amounts
    # square, add; root, eps, division, rate, difference; lr / (1 + (t - 1) decay) 4 a tensor
    assert amounts["flops"] == 7 * ELEMENTS + 4 * 3
    assert (amounts["bytes_read"], amounts["bytes_written"]) == (4 * (3 * ELEMENTS + 3), 4 * (2 * ELEMENTS + 3))


def test_scaled_and_maximised_steps_take_one_more_each() -> None:
    options = {"weight_decay": 0.0, "momentum": 0.0, "lr": 0.1, "dampening": 0.0, "nesterov": False}
    extra = {"grad_scale": torch.tensor(2.0), "found_inf": torch.tensor(0.0)}
    operation = one_of(
        lambda: aten._fused_sgd_(tensors(), tensors(1), [], **options, maximize=True, is_first_step=False, **extra),
        "_fused_sgd_",
    )
    assert price(operation).amounts["flops"] == 4 * ELEMENTS


def test_forms_out_of_place_cost_the_same() -> None:
    names = {name for name in full.RULES if name.startswith("_fused_") and f"{name}_" in full.RULES}
    assert names == {"_fused_adam", "_fused_adamw", "_fused_sgd", "_fused_adagrad"}
    assert all(full.RULES[name] is full.RULES[f"{name}_"] for name in names)


def test_scaling_of_gradients() -> None:
    found, inverse = torch.tensor(0.0), torch.tensor(0.5)
    name = "_amp_foreach_non_finite_check_and_unscale_"
    amounts = price(one_of(lambda: getattr(aten, name)(tensors(), found, inverse), name)).amounts
    assert (amounts["flops"], amounts["bytes_read"]) == (2 * ELEMENTS, 4 * (ELEMENTS + 2))
    assert amounts["bytes_written"] == 4 * (ELEMENTS + 1)
    scale, grown = torch.tensor(1024.0), torch.tensor(0, dtype=torch.int32)
    amounts = price(
        one_of(lambda: aten._amp_update_scale_(scale, grown, found, 2.0, 0.5, 10), "_amp_update_scale_")
    ).amounts
    assert (amounts["flops"], amounts["bytes_read"], amounts["bytes_written"]) == (1, 12, 8)


# --- whole steps -------------------------------------------------------------------------------------------------

# flops an element; a fused kernel also has some a tensor
SAME_STEPS: list[tuple[str, dict[str, Any], int]] = [
    ("SGD", {}, 2),  # p - lr g
    ("SGD", {"weight_decay": 0.1}, 4),  # g + w p
    ("SGD", {"momentum": 0.9}, 4),  # m b + g
    ("SGD", {"momentum": 0.9, "dampening": 0.1}, 5),  # m b + (1 - d) g
    ("SGD", {"momentum": 0.9, "nesterov": True}, 6),  # g + m b
    ("SGD", {"maximize": True}, 3),
    ("Adam", {}, 13),  # m 3, v 4, root 1, bias 1, eps 1, quotient, rate and difference 3
    ("Adam", {"weight_decay": 0.1}, 15),
    ("Adam", {"amsgrad": True}, 14),
    ("AdamW", {"weight_decay": 0.1}, 14),
    ("Adagrad", {}, 7),  # s + g g 2, root 1, eps 1, quotient, rate and difference 3
    ("Adagrad", {"weight_decay": 0.1}, 9),
]


@pytest.mark.parametrize(("kind", "options", "expected"), SAME_STEPS)
def test_a_step_has_one_count_however_it_is_taken(kind: str, options: dict[str, Any], expected: int) -> None:
    for form in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        parameters = [torch.nn.Parameter(torch.rand(100, 100))]
        optimizer = getattr(torch.optim, kind)(parameters, lr=0.01, **options, **form)

        def step(parameters: Any = parameters, optimizer: Any = optimizer) -> None:
            parameters[0].grad = torch.ones(100, 100)
            optimizer.step()

        step()  # makes the states
        found = [price(one) for one in dispatched(step) if one.name not in ("ones", "ones_like")]
        assert State.UNKNOWN not in [one.state for one in found]
        flops = sum(one.amounts["flops"] for one in found if one.state is State.PRICED)
        assert flops // 10_000 == expected and flops % 10_000 <= 8, (form, flops)


FOREACH = "SGD Adam AdamW RMSprop Adagrad Adadelta NAdam RAdam".split()
OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {"foreach": foreach}) for kind in FOREACH for foreach in (False, True)),
    *((kind, {"fused": True}) for kind in ("SGD", "Adam", "AdamW", "Adagrad")),
    *((kind, {}) for kind in ("Adamax", "ASGD", "Rprop", "Adafactor")),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
]
READ_VALUES = ("ASGD", "Adafactor")  # .item(), which meta has not
CASES = [
    (device, *case)
    for device in ("cpu", "meta")
    for case in OPTIMIZERS
    if device == "cpu" or ("fused" not in case[1] and case[0] not in READ_VALUES)
]


@pytest.mark.parametrize(("device", "kind", "options"), CASES)
def test_steps_hold_no_unknown_operation(device: str, kind: str, options: dict[str, Any]) -> None:
    parameters = [torch.nn.Parameter(tensor.to(device)) for tensor in tensors()]
    optimizer = getattr(torch.optim, kind)(parameters, **options)

    def step() -> None:
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):  # the first step makes the states
        found = {one.name: price(one).state for one in dispatched(step)}
        assert found and State.UNKNOWN not in found.values(), found
