"""Rules that users add: for all ledgers or for one, refused where they are wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchledger import Ledger, Rule, UserError, analyze, register_rule
from torchledger.pricing import custom
from torchledger.record import Operation

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test a registry of its own."""
    monkeypatch.setattr(custom, "_registered", {})
    yield


@torch.library.custom_op("customtest::pairs", mutates_args=())
def pairs(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return x * scale, x.clone()


@pairs.register_fake
def _(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


class Pairs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.customtest.pairs(x, 2.0)[0].relu()


NAME = "customtest::pairs"
QUANTITIES = ("macs", "flops", "bytes_read", "bytes_written", "activation_bytes")


def amounts(ledger: Ledger) -> list[Any]:
    (row,) = [row for row in ledger.by_operation().rows if row["operation"] == NAME]
    return [row[name] for name in QUANTITIES]


def test_formula_of_one_ledger() -> None:
    assert analyze(Pairs(), (3, 4)).unknown == {NAME: 1}
    ledger = analyze(Pairs(), (3, 4), rules={NAME: lambda operation: {"flops": operation.inputs[0].elements}})
    # 12 products; reads 12 numbers, writes and keeps twice as many
    assert (ledger.unknown, amounts(ledger)) == ({}, [0, 12, 48, 96, 96])
    assert ledger.totals()["flops"] == 12 + 12, "and those of relu"
    assert analyze(Pairs(), (3, 4)).unknown == {NAME: 1}, "for that ledger alone"


def test_macs_alone_are_two_flops_each() -> None:
    ledger = analyze(Pairs(), (3, 4), rules={NAME: lambda operation: {"macs": 5}})
    assert amounts(ledger)[:2] == [5, 10]
    ledger = analyze(Pairs(), (3, 4), rules={NAME: Rule("5", macs=lambda operation: 5)})
    assert amounts(ledger)[:2] == [5, 10]


def test_rule_with_by_products() -> None:
    rule = Rule("1 an element", flops=lambda operation: 12, bytes_written=lambda operation: 48, primary=1)
    assert amounts(analyze(Pairs(), (3, 4), rules={NAME: rule})) == [0, 12, 48, 48, 48]


def test_arguments_are_there_by_name() -> None:
    seen: list[Operation] = []

    def formula(operation: Operation) -> dict[str, int]:
        seen.append(operation)
        return {"flops": int(str(operation.arguments["scale"])[0]) * operation.tensor("x").elements}  # type: ignore

    assert analyze(Pairs(), (3, 4), rules={NAME: formula}).totals()["flops"] == 2 * 12 + 12
    assert seen[0].name == NAME


def test_registered_rule_holds_for_every_ledger(tmp_path: Path) -> None:
    analyze(Pairs(), (3, 4)).save(tmp_path / "net.json")
    assert Ledger.load(tmp_path / "net.json").unknown == {NAME: 1}
    register_rule(NAME, lambda operation: {"flops": 7})
    for ledger in (analyze(Pairs(), (3, 4)), Ledger.load(tmp_path / "net.json")):
        assert (ledger.unknown, amounts(ledger)[1]) == ({}, 7)
        for table in (ledger.by_layer(), ledger.by_module(), ledger.by_operation()):
            assert table.total["flops"] == 7 + 12


def test_rule_that_comes_or_goes_later_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = analyze(Pairs(), (3, 4))
    ruled = Ledger(plain.record, rules={NAME: lambda operation: {"flops": 5}})
    assert plain.unknown == {NAME: 1}, "kept as unknown"
    assert (ruled.unknown, amounts(ruled)[1], plain.unknown) == ({}, 5, {NAME: 1})
    with monkeypatch.context() as patch:
        patch.setitem(custom._registered, NAME, lambda operation: {"flops": 7})
        assert (plain.unknown, amounts(plain)[1], amounts(ruled)[1]) == ({}, 7, 5)
        patch.setitem(custom._registered, NAME, lambda operation: {"flops": 8})
        assert amounts(plain)[1] == 8, "a user's rule may change: nothing of it is kept"
    assert (plain.unknown, Ledger(plain.record).unknown) == ({NAME: 1}, {NAME: 1})


def test_rules_of_one_ledger_are_not_saved(tmp_path: Path) -> None:
    analyze(Pairs(), (3, 4), rules={NAME: lambda operation: {"flops": 7}}).save(tmp_path / "net.json")
    assert Ledger.load(tmp_path / "net.json").unknown == {NAME: 1}


def test_narrower_convention_does_not_count_what_it_has_never_heard_of() -> None:
    total = analyze(Pairs(), (3, 4), rules={NAME: lambda operation: {"flops": 7}}).totals("torchstat")
    assert (total["unknown"], total["excluded"]) == (0, 1)
    assert analyze(Pairs(), (3, 4)).totals("torchstat")["unknown"] == 1


def test_duplicates_are_refused() -> None:
    register_rule(NAME, lambda operation: {})
    formula = lambda operation: {}  # noqa: E731
    for name in (NAME, "aten::mm", "aten::_softmax", "aten::view", "torchvision::nms"):
        with pytest.raises(UserError, match=f"^register_rule: {name} has a rule already; an operation has one rule$"):
            register_rule(name, formula)
        with pytest.raises(UserError, match=f"^rules: {name} has a rule already"):
            analyze(Pairs(), (3, 4), rules={name: formula})


@pytest.mark.parametrize("name", ["pairs", "customtest::pairs.default", "customtest.pairs", "", 5, torch.ops.aten.mm])
def test_names_that_are_none(name: Any) -> None:
    with pytest.raises(UserError, match=r"names no operation, expected namespace::op such as 'mylib::op', no overload"):
        register_rule(name, lambda operation: {})


def test_rules_that_are_none() -> None:
    with pytest.raises(
        UserError, match=r"^register_rule: the rule of customtest::pairs is of type int, expected a Rule or"
    ):
        register_rule(NAME, 5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^rules is of type list, expected a dict of rules by name"):
        analyze(Pairs(), (3, 4), rules=[NAME])  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^register_rule: aten::detach is never booked, so that no rule can price it$"):
        register_rule("aten::detach", lambda operation: {})


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda operation: 1 / 0, "failed: ZeroDivisionError: division by zero"),
        (lambda operation: operation.inputs[7], "failed: IndexError: "),
        (
            lambda operation: 5,
            "returned 5, expected a dict with macs, flops, bytes_read, bytes_written, ",
        ),
        (lambda operation: {"mac": 5}, "returned {'mac': 5}, expected a dict with macs"),
        (lambda operation: {"macs": 1.5}, "gives macs=1.5, expected a whole number from 0"),
        (lambda operation: {"flops": -1}, "gives flops=-1, expected a whole number from 0"),
        (Rule("wrong", flops=lambda operation: 0.5), "gives flops=0.5, expected a whole number from 0"),  # type: ignore
    ],
)
def test_rules_that_fail_name_themselves(rule: Any, message: str) -> None:
    """An operation whose rule is broken is neither zero nor unknown: the table says what is wrong."""
    ledger = analyze(Pairs(), (3, 4), rules={NAME: rule})
    with pytest.raises(UserError, match=f"^the rule of customtest::pairs {re.escape(message)}"):
        ledger.totals()


def test_examples_of_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "custom_operations.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    exec(compile(code, "custom_operations.md", "exec"), {})
    # what each print shows stands beside it; 8 64 32 products, two each, 8 32 products with the gate, 32 sigmoids
    assert capsys.readouterr().out.splitlines() == re.findall(r"print\(.*\)  # (.*)", code)
    assert 2 * 8 * 64 * 32 + 8 * 32 + 32 == 33056
