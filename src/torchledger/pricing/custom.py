"""Rules that users add: for operations of their own libraries, for good or for one ledger."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from torchledger.canonical import canonical
from torchledger.errors import UserError
from torchledger.pricing.convention import EXCLUDED, Convention, Price, State
from torchledger.pricing.full import FREE_OPERATIONS, rule_of
from torchledger.pricing.rules import Rule, inputs_bytes, outputs_bytes
from torchledger.record import Operation

AMOUNTS = ("macs", "flops", "bytes_read", "bytes_written", "activation_bytes")
AmountsFormula = Callable[[Operation], Mapping[str, int]]
UserRule = Rule | AmountsFormula
Rules = Mapping[str, UserRule]

NO_RULES: Rules = MappingProxyType({})
_registered: dict[str, UserRule] = {}


def register_rule(name: str, rule: UserRule) -> None:
    """Price the operation `name` of a library of your own in every ledger from now on.

    Args:
        name: namespace and operation as torch.library has them, without overload, such as "mylib::op".
        rule: a `Rule`, or a function of the operation (its `inputs`, `outputs`, `arguments`, `tensor(name)`) that
            returns amounts by name: "macs", "flops", "bytes_read", "bytes_written", "activation_bytes". What it leaves
            out is no macs, two flops a multiply-accumulate, all inputs read, all outputs written, and the outputs in
            storages of their own.

    Raises:
        UserError: for a name that is no "namespace::op", has a rule already, or for a rule that is neither.

    Examples:
        >>> register_rule("doctest::scale", lambda operation: {"flops": operation.inputs[0].elements})
    """
    _registered[_checked(name, rule, "register_rule")] = rule


def checked_rules(rules: object) -> Rules:
    """Return the rules that were given for one ledger. Raise UserError where one of them is none or a second one."""
    if rules is None:
        return NO_RULES
    if not isinstance(rules, Mapping):
        raise UserError(
            f"rules is of type {type(rules).__name__}, expected a dict of rules by name such as {{'mylib::op': rule}}"
        )
    return MappingProxyType({_checked(name, rule, "rules"): rule for name, rule in rules.items()})


def with_rules(convention: Convention, rules: Rules = NO_RULES) -> Convention:
    """Return the convention with users' rules, those given for one ledger and those registered.

    A narrower convention than `full` does not count what it has never heard of.
    """
    known = {**_registered, **rules}
    if not known:
        return convention

    def price(operation: Operation) -> Price:
        rule = known.get(operation.name)
        if rule is None:
            return convention.price(operation)
        amounts = custom_amounts(rule, operation)
        return Price(State.PRICED, amounts) if convention.name == "full" else EXCLUDED

    return dataclasses.replace(convention, price=price)


def custom_amounts(rule: UserRule, operation: Operation) -> dict[str, int]:
    """Return the amounts of an operation by a user's rule. Raise UserError where that fails or gives others."""
    try:
        given = rule.price(operation) if isinstance(rule, Rule) else rule(operation)
    except Exception as error:
        raise UserError(f"the rule of {operation.name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(given, Mapping) or any(name not in AMOUNTS for name in given):
        raise UserError(f"the rule of {operation.name} returned {given!r}, expected a dict with {', '.join(AMOUNTS)}")
    for name, amount in given.items():
        if not isinstance(amount, int) or isinstance(amount, bool) or amount < 0:
            raise UserError(f"the rule of {operation.name} gives {name}={amount!r}, expected a whole number from 0")
    fresh = sum(output.tensor.distinct_bytes for output in operation.outputs if output.alias is None)
    left_out = {
        "macs": 0,
        "flops": 2 * given.get("macs", 0),
        "bytes_read": inputs_bytes(operation),
        "bytes_written": outputs_bytes(operation),
        "activation_bytes": fresh,
    }
    return left_out | dict(given)


def _checked(name: object, rule: object, where: str) -> str:
    """Return the canonical name of an operation that may have this rule."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*::[A-Za-z_]\w*", name):
        raise UserError(
            f"{where}: {name!r} names no operation, expected namespace::op such as 'mylib::op', no overload"
        )
    if not isinstance(rule, Rule) and not callable(rule):
        raise UserError(
            f"{where}: the rule of {name} is of type {type(rule).__name__}, "
            "expected a Rule or a function of the operation"
        )
    booked = canonical(*name.split("::"))
    if booked is None:
        raise UserError(f"{where}: {name} is never booked, so that no rule can price it")
    if booked in FREE_OPERATIONS or rule_of(booked) is not None or booked in _registered:
        raise UserError(f"{where}: {name} has a rule already; an operation has one rule")
    return booked
