"""Rules of optimizer steps: kernels over lists of tensors (`_foreach_*`), fused steps, and gradient scaling.

A `_foreach_*` operation is the operation of that name for one tensor, carried out for each tensor of its lists.
Those in place return nothing: what they write is the list `self`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torchledger.pricing import rules as r
from torchledger.record import Operation, OutputInfo, TensorInfo, TensorRef

LISTED = """
    abs acos add addcdiv addcmul asin atan ceil clamp_max clamp_min clone copy cos cosh div erf erfc exp expm1 floor
    frac lerp lgamma log log10 log1p log2 max maximum minimum mm mul neg pow reciprocal round rsqrt sigmoid sign sin
    sinh sqrt sub tan tanh trunc zero
    """.split()
NAMED_OTHERWISE = {"norm": "linalg_vector_norm", "powsum": "linalg__powsum"}
# What an argument is called in the operation for one tensor.
SINGLE_NAMES = {"tensors1": "end", "weights": "weight", "scalars": "value"}


def singles(operation: Operation) -> list[tuple[Operation, int]]:
    """Return the operation apart: one for each tensor of its lists, as the operation for one tensor takes it.

    Equal ones stand together, with their number: the layers of a large model are few kinds of them.
    """
    name = operation.name.removeprefix("_foreach_")
    name = NAMED_OTHERWISE.get(name, name)
    lists = {key: value for key, value in operation.arguments.items() if isinstance(value, tuple)}
    tensors = [value for value in lists.values() if any(isinstance(one, TensorRef) for one in value)]
    if not tensors:
        raise LookupError(f"{operation.name} has no list of tensors")
    again, shared = frozenset(operation.repeated), [key for key in operation.arguments if key not in lists]
    first: dict[object, int] = {}
    times: Counter[int] = Counter()
    for place in range(len(tensors[0])):
        kind: list[object] = [bool(place) and bool(shared), operation.outputs[place] if operation.outputs else None]
        for value in lists.values():
            one = value[place]
            is_tensor = isinstance(one, TensorRef)
            kind += (operation.inputs[one.index], one.index in again) if is_tensor else (type(one), one)
        times[first.setdefault(tuple(kind), place)] += 1
    return [(_single(operation, name, lists, place), count) for place, count in times.items()]


def _single(operation: Operation, name: str, lists: Mapping[str, tuple[object, ...]], place: int) -> Operation:
    """Return the operation of one place in the lists."""
    inputs: list[TensorInfo] = []
    repeated: list[int] = []
    arguments: dict[str, object] = {}
    for key, value in operation.arguments.items():
        one = lists[key][place] if key in lists else value
        if isinstance(one, TensorRef):
            if one.index in operation.repeated or (key not in lists and place):  # one scalar tensor for all
                repeated.append(len(inputs))
            inputs.append(operation.inputs[one.index])
            one = TensorRef(len(inputs) - 1)
        arguments[SINGLE_NAMES.get(key, key)] = one
    made = operation.outputs[place] if operation.outputs else OutputInfo(inputs[0], alias=0)
    return Operation(name, arguments, tuple(inputs), (made,), tuple(repeated))


@dataclass(frozen=True, slots=True)
class ListRule(r.Rule):
    """The rule of `_foreach_x`: that of x, `single`, for each tensor of the lists."""

    single: r.Rule = field(kw_only=True)

    def price(self, operation: Operation) -> dict[str, int]:
        """As `Rule.price`, with the lists taken apart once: they may be thousands long."""
        amounts: Counter[str] = Counter()
        for one, times in singles(operation):
            for name, amount in self.single.price(one).items():
                amounts[name] += amount * times
        return {**amounts, "activation_bytes": 0}


def listed(single: r.Rule) -> r.Rule:
    """Return the rule of `_foreach_x` for that of x."""

    def total(amount: r.Formula) -> r.Formula:
        def one_by_one(operation: Operation) -> int:
            """As one by one."""
            return sum(amount(one) * times for one, times in singles(operation))

        return one_by_one

    return ListRule(
        "one by one: as the operation of that name for each tensor of the list",
        total(single.macs),
        total(lambda one: single.arithmetic(one)[1]),
        total(single.bytes_read),
        total(single.bytes_written),
        primary=0,
        single=single,
    )


def of_list(rules: Mapping[str, r.Rule]) -> dict[str, r.Rule]:
    """Return the rules of all `_foreach_*` for those of single tensors."""
    table = {}
    for name in LISTED:
        single = rules[name]
        table[f"_foreach_{name}"] = listed(single)
        if name not in ("clone", "max", "mm"):
            table[f"_foreach_{name}_"] = listed(rules.get(f"{name}_", single))
    return table | {f"_foreach_{name}": listed(rules[single]) for name, single in NAMED_OTHERWISE.items()}


# --- fused steps ---------------------------------------------------------------------------------------------------


def elements_of(operation: Operation) -> int:
    return sum(tensor.elements for tensor in operation.tensors("self"))


def _extras(operation: Operation) -> int:
    """Return flops an element of what may come before: the gradient over its scale 1, negated 1."""
    return (operation.tensor("grad_scale") is not None) + bool(operation.arguments.get("maximize"))


def adam(decay: int) -> r.Formula:
    """Return 13 an element (Kingma and Ba 2015, algorithm 1), `decay` with weight decay, 1 with amsgrad, 7 a tensor."""

    def flops(operation: Operation) -> int:
        amount = 13 + _extras(operation) + bool(operation.arguments.get("amsgrad"))
        amount += decay * bool(operation.arguments.get("weight_decay"))
        return amount * elements_of(operation) + 7 * len(operation.tensors("self"))

    return flops


def sgd(operation: Operation) -> int:
    """p - lr g 2; weight decay 2; momentum 2, with dampening 3, 0 in the first step, which copies the gradient;
    Nesterov 2."""
    given = operation.arguments
    amount = 2 + _extras(operation) + 2 * bool(given.get("weight_decay"))
    if given.get("momentum"):
        followed = 2 + bool(given.get("dampening"))
        amount += followed * (not given.get("is_first_step")) + 2 * bool(given.get("nesterov"))
    return amount * elements_of(operation)


def adagrad(operation: Operation) -> int:
    """Sum of squares 2; root, eps, division, product, difference 5; weight decay 2; 4 a tensor for the decayed rate."""
    amount = 7 + _extras(operation) + 2 * bool(operation.arguments.get("weight_decay"))
    return amount * elements_of(operation) + 4 * len(operation.tensors("self"))


STATES = ("self", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "momentum_buffer_list", "state_sums", "state_steps")


def step_bytes(operation: Operation) -> int:
    """Parameters, gradients, states; what a first step of momentum writes is not read."""
    if operation.arguments.get("is_first_step"):
        return r.bytes_of("self", "grads", "grad_scale", "found_inf", "lr")(operation)
    return r.inputs_bytes(operation)


def state_bytes(operation: Operation) -> int:
    """Parameters and states; the outputs, where the operation is not in place."""
    return r.outputs_bytes(operation) or r.bytes_of(*STATES)(operation)


def unscale(operation: Operation) -> int:
    """Whether an element is finite 1, times the inverse scale 1."""
    return 2 * elements_of(operation)


def _table() -> dict[str, r.Rule]:
    def step(text: str, flops: r.Formula) -> r.Rule:
        return r.Rule(text, r.nothing, flops, step_bytes, state_bytes, primary=0)

    first = "first moment 3, second 4, root, over its bias, eps 3, over it, times the rate, off the parameter 3"
    adam_step = step(f"13 an element: {first}; weight decay 2, amsgrad 1, scaled 1, maximised 1; 7 a tensor", adam(2))
    adamw_step = step(f"13 an element: {first}; weight decay 1, amsgrad 1, scaled 1, maximised 1; 7 a tensor", adam(1))
    table = {"_fused_adam": adam_step, "_fused_adamw": adamw_step}
    table["_fused_sgd"] = step(
        "2 an element; weight decay 2, momentum 2, dampened 3, Nesterov 2, scaled 1, maximised 1", sgd
    )
    table["_fused_adagrad"] = step(
        "7 an element: square and add 2, root, eps, division, rate, difference 5; weight decay 2; 4 a tensor", adagrad
    )
    table |= {f"{name}_": rule for name, rule in table.items()}
    unscaled = r.Rule("2 an element: is it finite, times the inverse scale", r.nothing, unscale, primary=0)
    unscaled_in_place = r.Rule(
        unscaled.text,
        r.nothing,
        unscale,
        r.inputs_bytes,
        r.bytes_of("self", "found_inf", said="gradients, and whether one is infinite"),
        0,
    )
    name = "_amp_foreach_non_finite_check_and_unscale"
    table |= {name: unscaled, f"{name}_": unscaled_in_place}
    updated = r.Rule("1: the scale times its growth or backoff", r.nothing, lambda o: r.first(o).elements, primary=0)
    written = r.bytes_of("self", "growth_tracker", said="scale and the steps since it grew")
    updated_in_place = r.Rule(updated.text, r.nothing, updated.flops, r.inputs_bytes, written, 0)
    return table | {"_amp_update_scale": updated, "_amp_update_scale_": updated_in_place}


RULES: Mapping[str, r.Rule] = _table()
