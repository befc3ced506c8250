"""How many parameters one token uses: all of them, but where the model routes its tokens, a share of what lies there.

Derivation. A routed block is the module call in which a choice of the model's own holds (see `Routing`); the choice is
made for T tokens. An operation there that takes R rows through a weight of s elements computes m = R s multiply-
accumulates; one that adds or scales by it puts out m = R s elements. Of the tokens R / T go through the weight, so it
counts for s R / T = m / T elements. This also holds where the weights of E experts are stacked in one parameter of E s
elements, whether one product takes all of them, some are picked by an index, or each is a slice: k of E experts a token
are R = k T rows in all, and k s elements. Summed over the operations, never more than the parameter has.

- Where the block runs several times, rows and tokens add up over its calls.
- What lies in a routed block and did not run at all had no token: it counts for nothing.
- Whole counts what is used outside of such a block as well, before the choice, or after all that goes by it; a table
  that tokens look their rows up in (`embedding`); and what an operation without a rule takes.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

from torchledger.parameters import ParameterInfo
from torchledger.pricing import convention
from torchledger.pricing.convention import Convention, State
from torchledger.record import TABLES, Choice, Operation, Record, Routing, TensorRef

# Products that add an input of this name, a bias, to what they multiply.
_ADDED = {"addmm": "self", "addmv": "self", "addbmm": "self", "baddbmm": "self"}


@dataclass
class _Share:
    """What a parameter is used for in routed blocks: the sum of m over all operations, and the blocks' modules."""

    amount: Fraction = Fraction(0)
    blocks: set[int] = field(default_factory=set)


def active_parameters(record: Record) -> int:
    """Return how many parameters one token uses in the forward, on average, to the nearest whole one."""
    owned = {index: p for index, p in enumerate(record.parameters) if p.shared_with is None}
    total = sum(parameter.elements for parameter in owned.values())
    if record.routing is None:
        return total
    shares, tokens = _shares(record, record.routing)
    used = {use.parameter for use in record.routing.uses}.union(record.routing.earlier)
    saved = Fraction(0)
    for index, share in shares.items():
        size = record.parameters[index].elements
        active = share.amount / sum(tokens[block] for block in share.blocks)
        saved += max(size - active, Fraction(0))
    paths = {record.modules.paths[block] for block in tokens}
    idle = (p for index, p in owned.items() if index not in used and _is_below(p, paths))
    return round(total - saved - sum(parameter.elements for parameter in idle))


def _is_below(parameter: ParameterInfo, paths: set[str]) -> bool:
    parts = parameter.module.split(".") if parameter.module else []
    return any(".".join(parts[:depth]) in paths for depth in range(len(parts) + 1))


def _shares(record: Record, routing: Routing) -> tuple[dict[int, _Share], dict[int, int]]:
    """Return the share of each parameter that is used in routed blocks alone, and the tokens that each block routed."""
    full = convention("full")
    standing = _Standing(record, routing)
    together: dict[tuple[int, int], list[int]] = defaultdict(list)  # what one input is made of
    for use in routing.uses:
        together[use.entry, use.input].append(use.parameter)
    whole = set(routing.earlier)
    shares: dict[int, _Share] = defaultdict(_Share)
    chosen: dict[int, Choice] = {}  # those that hold where a parameter is used, by entry
    for (entry, place), parameters in together.items():
        choice = standing.over(entry)
        operation = record.operations[record.entries.operations[entry]]
        amount = _amount(operation, place, full)
        if choice is None or amount is None:
            whole.update(parameters)
            continue
        chosen[choice.entry] = choice
        sizes = {index: record.parameters[index].elements for index in parameters}
        given = min(operation.inputs[place].elements, sum(sizes.values()))
        for index, size in sizes.items():
            # Of a sum (a weight and its adapter) or a stack, each part is used for as many rows.
            part = Fraction(size, given) if len(sizes) > 1 and given else Fraction(1)
            shares[index].amount += amount * part
            shares[index].blocks.add(record.calls.modules[choice.call])
    tokens: Counter[int] = Counter()
    for choice in chosen.values():
        tokens[record.calls.modules[choice.call]] += choice.tokens
    return {index: share for index, share in shares.items() if index not in whole}, tokens


def _amount(operation: Operation, place: int, full: Convention) -> int | None:
    """Return m for an operation's input: macs of what it multiplies by, else elements put out; None: not known."""
    price = full.price(operation)
    if price.state is State.UNKNOWN or operation.name in TABLES or not operation.outputs:
        return None
    given = operation.arguments.get(_ADDED.get(operation.name, "bias"))
    is_added = isinstance(given, TensorRef) and given.index == place
    macs = price.amounts.get("macs", 0)
    return macs if macs and not is_added else operation.outputs[0].tensor.elements


class _Standing:
    """Which choice an entry stands under."""

    def __init__(self, record: Record, routing: Routing) -> None:
        self._record = record
        self._by_call: dict[int, list[Choice]] = defaultdict(list)
        for choice in sorted(routing.choices, key=lambda choice: choice.entry):
            self._by_call[choice.call].append(choice)

    def over(self, entry: int) -> Choice | None:
        """Return the choice that an entry runs under: of each block around it the last that holds, of these the widest.

        An expert may choose again among the rows that reach it: its share is one of all tokens.
        """
        return max(self._around(entry), key=lambda choice: choice.tokens, default=None)

    def _around(self, entry: int) -> Iterator[Choice]:
        call: int | None = self._record.entries.calls[entry]
        while call is not None:
            choices = self._by_call.get(call, ())
            before = bisect.bisect_left(choices, entry, key=lambda choice: choice.entry)
            holding = (c for c in reversed(choices[:before]) if c.last is None or entry <= c.last)
            yield from itertools.islice(holding, 1)
            call = self._record.calls.parents[call]
