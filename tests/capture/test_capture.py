"""What is booked, where, and as what: modules, functions outside of them, aliases, storages, the memo, threads."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchledger import ForwardError, Ledger, analyze
from torchledger.capture import capture, shapes
from torchledger.capture.shapes import Memo
from torchledger.capture.twins import Copies


class Function(nn.Module):
    """A module whose forward is the function given."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def rows(ledger: Ledger) -> dict[tuple[str, str], dict[str, Any]]:
    return {(str(row["module"]), str(row["kind"])): row for row in ledger.by_layer().rows}


def names(ledger: Ledger) -> list[str]:
    record = ledger.record
    return [record.operations[entry.operation].name for entry in record.entries]


# --- modules -----------------------------------------------------------------------------------------------------


def test_module_called_three_times_is_one_row() -> None:
    model = Function(lambda m, x: m.fc(m.fc(m.fc(x))), fc=nn.Linear(5, 5, bias=False))
    row = rows(analyze(model, (5,), batch=2))["fc", "Linear"]
    # three times 2 rows of 5 by 5 weights; the weights once
    assert (row["calls"], row["macs"], row["params"]) == (3, 3 * 2 * 5 * 5, 25)
    assert (row["input_shape"], row["output_shape"]) == ("2x5", "2x5")


def test_module_shared_by_two_parents_has_a_row_under_each() -> None:
    fc = nn.Linear(4, 4, bias=False)
    model = nn.Sequential(nn.Sequential(fc), nn.Sequential(fc, fc))
    table = rows(analyze(model, (4,)))
    first, second = table["0.0", "Linear"], table["1.0", "Linear"]
    assert (first["macs"], first["params"], first["note"]) == (4 * 4, 16, "")
    # nn.Sequential(fc, fc) holds it as 0 and 1; its own first name for it is 0
    assert (second["calls"], second["macs"], second["params"]) == (2, 2 * 4 * 4, 0)
    assert second["note"] == "shared with 0.0"


def test_tied_weights_count_once() -> None:
    model = Function(lambda m, x: m.out(m.embed(x)), embed=nn.Embedding(10, 4), out=nn.Linear(4, 10, bias=False))
    model.out.weight = model.embed.weight
    ledger = analyze(model, (3,), input_dtype="int64")
    assert ledger.totals()["params"] == 10 * 4 == sum(p.numel() for p in model.parameters())
    assert ledger.totals()["macs"] == 3 * 4 * 10
    assert (rows(ledger)["out", "Linear"]["params"], rows(ledger)["out", "Linear"]["note"]) == (
        0,
        "shared with embed.weight",
    )
    storages = [a for a in ledger.record.allocations if a.kind == "parameter"]
    assert [a.bytes for a in storages] == [10 * 4 * 4]


def test_parameter_of_a_module_that_is_no_leaf_and_one_that_does_not_run() -> None:
    model = Function(lambda m, x: m.fc(x) + m.offset, fc=nn.Linear(2, 3), spare=nn.Linear(7, 7))
    model.offset = nn.Parameter(torch.zeros(3), requires_grad=False)
    ledger = analyze(model, (2,))
    table = rows(ledger)
    assert table["", "Function"]["params"] == 3
    assert (table["spare", "Linear"]["params"], table["spare", "Linear"]["note"]) == (7 * 7 + 7, "not run")
    assert sum(row["params"] for row in ledger.by_layer().rows) == sum(p.numel() for p in model.parameters())
    assert ledger.totals()["trainable_params"] == ledger.totals()["params"] - 3


def test_modules_in_lists_and_dicts_keep_their_registered_path() -> None:
    model = Function(
        lambda m, x: m.d["a"](m.l[1](x)),
        l=nn.ModuleList([nn.Linear(1, 1), nn.Linear(2, 3)]),
        d=nn.ModuleDict({"a": nn.Linear(3, 4)}),
    )
    assert {"l.1", "d.a"} <= {path for path, _ in rows(analyze(model, (2,)))}


def test_module_made_in_forward_is_booked_and_forgotten() -> None:
    model = Function(lambda m, x: nn.Linear(4, 2)(x))
    ledger = analyze(model, (4,))
    assert ledger.totals()["macs"] == 4 * 2
    assert ledger.totals()["params"] == 0
    assert "<Linear>" in {path for path, _ in rows(ledger)}


def test_recursion_and_deep_nesting() -> None:
    model: nn.Module = nn.Linear(2, 2)
    for _ in range(60):
        model = nn.Sequential(model)
    assert analyze(model, (2,)).totals()["macs"] == 4


def test_exception_that_forward_catches_leaves_no_scope_behind() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        with contextlib.suppress(RuntimeError):
            m.wrong(x)
        return m.right(x) + 1

    model = Function(forward, wrong=nn.Sequential(nn.Linear(9, 9)), right=nn.Linear(4, 4))
    table = rows(analyze(model, (4,)))
    assert table["right", "Linear"]["macs"] == 16
    assert table["", "add"]["flops"] == 4


# --- operations outside of leaves --------------------------------------------------------------------------------


def test_functions_outside_of_leaves_have_rows_of_their_own() -> None:
    def forward(m: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = F.conv2d(x, m.weight, padding=1)  # 2x4x8x8
        residual = out * 2
        out += residual
        product = out.flatten(2) @ y  # 2x4x64 @ 64x6
        return torch.cat([product, product], dim=1)

    model = Function(forward, spare=nn.Identity())  # with a child, or the model itself would be the leaf
    model.weight = nn.Parameter(torch.zeros(4, 3, 3, 3))
    table = rows(analyze(model, (3, 8, 8), torch.empty(64, 6), batch=2))
    image = 2 * 4 * 8 * 8
    assert table["", "convolution"]["macs"] == image * 3 * 3 * 3
    assert (table["", "add_"]["flops"], table["", "add_"]["activation_bytes"]) == (image, 0)
    assert table["", "add_"]["bytes_read"] == 2 * image * 4, "an operation in place reads itself"
    products = [row for (_, kind), row in table.items() if kind in ("mm", "bmm")]
    assert sum(row["macs"] for row in products) == 2 * 4 * 64 * 6
    assert (table["", "cat"]["flops"], table["", "cat"]["bytes_written"]) == (0, 2 * (2 * 4 * 6) * 4)


def test_same_operation_twice_in_a_call_is_two_rows_and_in_two_calls_one() -> None:
    block = Function(lambda m, x: (x + 1) + 2, relu=nn.ReLU())
    model = Function(lambda m, x: m.block(m.block(x)), block=block)
    added = [row for row in analyze(model, (3,)).by_layer().rows if row["kind"] == "add"]
    assert [(row["module"], row["calls"], row["flops"]) for row in added] == [("block", 2, 6), ("block", 2, 6)]


def test_dropout_in_train_mode_is_one_operation() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5, inplace=True), nn.Dropout2d(0.5))
    ledger = analyze(model, (4, 6, 6), mode="train")
    assert names(ledger) == ["dropout", "dropout_", "feature_dropout"]
    assert ledger.totals()["flops"] == 3 * 2 * 4 * 6 * 6, "mask and scale"
    assert names(analyze(model, (4, 6, 6))) == []
    assert names(analyze(nn.Dropout(0.0), (4,), mode="train")) == []


@pytest.mark.parametrize("call", ["F.dropout", "torch.dropout", "keyword"])
def test_every_way_to_call_dropout(call: str) -> None:
    ways = {
        "F.dropout": lambda m, x: F.dropout(x, 0.1),
        "torch.dropout": lambda m, x: torch.dropout(x, 0.1, True),
        "keyword": lambda m, x: F.dropout(input=x, p=0.1, training=True),
    }
    assert names(analyze(Function(ways[call]), (4,))) == ["dropout"]


def test_attention_is_one_operation() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        q, k, v = m.qkv(x).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 5, 8)

    ledger = analyze(Function(forward, qkv=nn.Linear(8, 24)), (5, 8), batch=2)
    row = rows(ledger)["", "scaled_dot_product_attention"]
    # 2 samples, 2 heads, 5 x 5 scores of width 4, twice: the full square, causal or not
    assert row["macs"] == 2 * 2 * 2 * 5 * 5 * 4
    # q, k, v read and the output written, 2 x 2 x 5 x 4 each
    assert (row["bytes_read"], row["bytes_written"]) == (3 * 80 * 4, 80 * 4)
    assert "clone" not in names(ledger), "as the fused kernels lay it out, joining the heads is a view"


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_multihead_attention_counts_the_same_fused_or_not(need_weights: bool, mode: Any) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = Function(lambda m, x: m.a(x, x, x, need_weights=need_weights)[0], a=attention)
    # projections 5 x 8 x 24 and 5 x 8 x 8; two products of 2 heads of 5 x 5 x 4
    assert analyze(model, (5, 8), mode=mode).totals()["macs"] == 5 * 8 * 24 + 5 * 8 * 8 + 2 * 2 * 5 * 5 * 4


def test_transformer_layer_counts_the_same_in_eval_and_train() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    totals = [analyze(layer, (5, 8), mode=mode).totals()["macs"] for mode in ("eval", "train")]
    assert totals[0] == totals[1] == 5 * 8 * 24 + 5 * 8 * 8 + 2 * 2 * 5 * 5 * 4 + 2 * 5 * 8 * 16


def test_composite_operations_in_inference_mode_are_taken_apart() -> None:
    class Inferred(nn.Linear):
        @torch.inference_mode()
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    ledger = analyze(nn.Sequential(Inferred(4, 3)), (4,))
    assert (ledger.unknown, ledger.totals()["macs"]) == ({}, 12)


def test_detach_is_not_booked() -> None:
    assert names(analyze(Function(lambda m, x: x.detach() + x.data), (4,))) == ["add"]


def test_same_tensor_twice_is_read_once() -> None:
    operations = (lambda m, x: x * x, lambda m, x: x * (x + 1), lambda m, x: x @ x.t())
    read = [analyze(Function(f), torch.empty(4, 4)).totals()["bytes_read"] for f in operations]
    # 16 elements of 4 bytes: once; x for x + 1, then two different ones; once, transposed or not
    assert read == [64, 64 + 128, 64]


def test_expanded_tensor_is_read_once_a_distinct_element() -> None:
    total = analyze(Function(lambda m, x: x.expand(100, 4) * 2), (4,)).totals()
    assert (total["bytes_read"], total["bytes_written"]) == (4 * 4, 100 * 4 * 4)


# --- outputs and inputs ------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Pair:
    left: torch.Tensor
    right: list[torch.Tensor]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: {"logits": y, "none": None},
        lambda y: (y, [y, y]),
        lambda y: Pair(y, [y]),
        lambda y: torch.return_types.max((y, y)),
        lambda y: None,
        lambda y: 3,
    ],
)
def test_any_output(wrap: Callable[[torch.Tensor], Any]) -> None:
    ledger = analyze(Function(lambda m, x: wrap(m.fc(x)), fc=nn.Linear(4, 2)), (4,))
    assert ledger.totals()["macs"] == 8


def test_nested_inputs_of_any_kind() -> None:
    def forward(m: Any, x: torch.Tensor, pair: Pair, *, options: dict[str, Any], scale: float) -> torch.Tensor:
        assert x.shape == (2, 4) and pair.left.shape == (2, 4)
        assert options["mask"].dtype == torch.bool and options["name"] == "n"
        return m.fc(x + pair.left + pair.right[0]) * scale * options["mask"]

    model = Function(forward, fc=nn.Linear(4, 2))
    pair = Pair(torch.zeros(2, 4), [torch.empty(2, 4, device="meta")])
    keywords = {"options": {"mask": torch.ones(2, 2, dtype=torch.bool), "name": "n"}, "scale": 2.0}
    ledger = analyze(model, (4,), pair, kwargs=keywords, batch=2)
    assert ledger.totals()["macs"] == 2 * 4 * 2
    assert ledger.record.inputs == ["2x4 float32", "2x4 float32", "2x4 float32", "options: 2x2 bool"]
    assert pair.left.device.type == "cpu" and torch.equal(pair.left, torch.zeros(2, 4))


def test_real_constants_made_in_forward() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        mean = torch.tensor([0.5, 0.5, 0.5], device=x.device)
        grid = torch.arange(3, device="cpu") + torch.zeros(3)
        return (x - mean) * grid + torch.full((3,), 2.0)

    ledger = analyze(Function(forward), (3,), batch=2)
    assert {"sub", "mul", "add", "arange", "zeros", "full"} == set(names(ledger))
    assert ledger.unknown == {}


def test_dtype_of_sizes_follows_the_model() -> None:
    assert analyze(nn.Linear(4, 2).bfloat16(), (4,)).record.inputs == ["1x4 bfloat16"]
    assert analyze(nn.Linear(4, 2), (4,), model_dtype="float16").record.inputs == ["1x4 float16"]
    assert analyze(nn.Embedding(4, 2), (4,), input_dtype=torch.int32).record.inputs == ["1x4 int32"]


# --- storages ----------------------------------------------------------------------------------------------------


def test_birth_and_death_of_storages() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        a = x + 1  # entry 0
        b = a * 2  # 1
        a = a.view(-1)  # 2: still the same storage
        del a
        return b.relu_()  # 3

    record = analyze(Function(forward), (8,)).record
    lives = [(a.kind, a.bytes, a.born, a.died) for a in record.allocations]
    # born: entries booked before; a dies with its last view, after the third entry; what is returned outlives the run
    assert lives == [("input", 32, 0, None), ("activation", 32, 0, 3), ("activation", 32, 1, None)]


def test_lives_are_the_same_from_the_memo_and_in_a_real_run() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten())
    x = torch.zeros(1, 3, 8, 8)
    shapes.MEMO.clear()
    cold, warm, real = (capture(model, (x,), {}, real=r).record.allocations for r in (None, None, Copies()))
    assert cold == warm
    assert [(a.bytes, a.died) for a in cold if a.kind == "activation" and a.bytes > 100] == [
        (a.bytes, a.died) for a in real if a.kind == "activation" and a.bytes > 100
    ]


# --- memo and threads --------------------------------------------------------------------------------------------


def test_memo_is_bounded() -> None:
    memo = Memo(limit=3)
    template = shapes.Template(None, (), None)  # type: ignore[arg-type]
    for key in range(10):
        memo.put(key, template)
    assert len(memo) == 3
    assert [key for key in range(10) if memo.get(key)] == [7, 8, 9]


def test_memo_stays_bounded_over_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes.MEMO, "limit", 5)
    shapes.MEMO.clear()
    model = Function(lambda m, x: x.sin().cos().tan())
    totals = [analyze(model, (size,)).totals()["flops"] for size in range(1, 20)]
    assert totals == [3 * size for size in range(1, 20)]
    assert len(shapes.MEMO) <= 5


def test_default_dtype_is_part_of_the_key() -> None:
    model = Function(lambda m, x: torch.sqrt(x))
    x = torch.ones(4, dtype=torch.int64)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        wide = analyze(model, x).totals()["bytes_written"]
    finally:
        torch.set_default_dtype(before)
    assert (wide, analyze(model, x).totals()["bytes_written"]) == (32, 16)


def test_arguments_that_compare_equal_are_told_apart() -> None:
    # 1, 1.0 and True are equal keys, and give other dtypes
    operands = (1, 1.0, True)
    x = torch.ones(4, dtype=torch.int32)
    written = [analyze(Function(lambda m, x, by=by: x * by), x).record.operations[0] for by in operands]
    assert [operation.outputs[0].tensor.dtype for operation in written] == ["int32", "float32", "int32"]


def test_captures_in_two_threads_do_not_mix() -> None:
    models = [nn.Sequential(*[nn.Linear(8, 8) for _ in range(count)]) for count in (20, 31)]
    expected = [analyze(model, (8,)).to_json() for model in models]
    failures: list[str] = []
    start = threading.Barrier(3)

    def work(index: int) -> None:
        start.wait()
        for _ in range(15):
            if analyze(models[index], (8,)).to_json() != expected[index]:
                failures.append(f"model {index}")

    def plain() -> None:
        # An ordinary forward of a third model in between: not booked, not on meta.
        start.wait()
        other = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        for _ in range(200):
            if other(torch.zeros(1, 8)).device.type != "cpu":
                failures.append("plain forward")

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)] + [threading.Thread(target=plain)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# --- cost --------------------------------------------------------------------------------------------------------

PEAK = """
import resource
from torchledger import analyze
from torchledger.models.article import VGG16
model = VGG16()
assert sum(p.numel() * 4 for p in model.parameters()) > 553e6
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
analyze(model, (3, 224, 224), batch=64)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_nothing_is_allocated() -> None:
    grown = int(subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True).stdout)
    assert grown < 40e6


LIGHT = """
import sys
from torchledger import analyze
from torchledger.models.article import VGG16
analyze(VGG16(), (3, 224, 224))
print([name for name in ("sympy", "torch._dynamo") if name in sys.modules])
"""


def test_no_import_of_the_compiler() -> None:
    """torch's default dispatch mode imports dynamo, its matrix product's meta kernel does, its convolution's sympy."""
    done = subprocess.run([sys.executable, "-c", LIGHT], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


# --- what torch answers by itself --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.to("cuda"),
        lambda x: x.to(device="cuda"),
        lambda x: x.to(torch.device("cuda"), non_blocking=True),
        lambda x: x.to("cuda", torch.float32),
        lambda x: x.to("cuda", None, False),
        lambda x: x.cuda(),
        lambda x: x.cuda(0, non_blocking=True),
    ],
)
def test_moves_between_devices_are_assumed_away(move: Any) -> None:
    ledger = analyze(Function(lambda m, x: move(x) + 1, spare=nn.Identity()), (4,))
    assert names(ledger) == ["add"]
    assert any("one device" in assumption for assumption in ledger.assumptions)


@pytest.mark.parametrize("stay", [lambda x: x.to("cpu"), lambda x: x.cpu(), lambda x: x.to(x.device)])
def test_a_tensor_that_is_where_the_model_is_does_not_move(stay: Any) -> None:
    for device in ("cpu", "meta"):
        model = Function(lambda m, x: stay(m.fc(x)), fc=nn.Linear(4, 4, device=device))
        ledger = analyze(model, (4,))
        assert names(ledger) == ["t", "addmm"] and not ledger.assumptions


def test_forward_sees_the_device_that_the_model_is_made_for() -> None:
    seen: list[object] = []

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        seen.append((str(x.device), x.is_meta, x.is_cpu, x.is_cuda, f"{x.sum():.1f}"))
        return x

    for model in (Function(forward), Function(forward, fc=nn.Linear(4, 4, device="meta"))):
        analyze(model, (4,))
    assert seen == [("cpu", False, True, False, "nan")] * 2


@pytest.mark.parametrize(
    ("convert", "booked"),
    [
        (lambda x: x.to("cpu", torch.float16), ["to_copy"]),
        (lambda x: x.to(torch.float16), ["to_copy"]),
        (lambda x: x.to("cuda:0", copy=True), ["to_copy"]),
        (lambda x: x.to(torch.zeros(1, dtype=torch.float64)), ["zeros", "to_copy"]),
        (lambda x: x.to(x.device), []),
        (lambda x: x.to(x), []),
    ],
)
def test_conversions_are_booked(convert: Any, booked: list[str]) -> None:
    assert names(analyze(Function(lambda m, x: convert(x), spare=nn.Identity()), (4,))) == booked


def test_modules_in_another_thread_are_an_assumption() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        thread = threading.Thread(target=lambda: m.fc(x))
        thread.start()
        thread.join()
        return x

    ledger = analyze(Function(forward, fc=nn.Linear(4, 4)), (4,))
    assert any("other threads" in assumption for assumption in ledger.assumptions)


def test_model_dtype_casts_parameters_and_buffers_alone() -> None:
    model = Function(lambda m, x: m.norm(x) + m.table.sum().to(x.dtype), norm=nn.BatchNorm1d(4))
    model.table = torch.zeros(3)
    ledger = analyze(model, (4,), model_dtype="bfloat16")
    assert [p.dtype for p in (*ledger.record.parameters, *ledger.record.buffers)] == ["bfloat16"] * 4 + ["int64"]
    summed = next(o for o in ledger.record.operations if o.name == "sum")
    assert summed.inputs[0].dtype == "float32"


@pytest.mark.parametrize(
    "values", [lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: x.numpy(), lambda x: bool(x)]
)
def test_need_for_values_is_said(values: Any) -> None:
    with pytest.raises(
        ForwardError, match=r"\(root\): \w+ needs the values of a tensor, and an analysis computes none"
    ):
        analyze(Function(lambda m, x: values(x), spare=nn.Identity()), (1,), execute=False)


def test_constants_of_a_tensors_kind_are_no_strangers() -> None:
    model = Function(lambda m, x: x + x.new_tensor([1.0, 2.0, 3.0, 4.0]), spare=nn.Identity())
    ledger = analyze(model, (4,))
    assert (names(ledger), ledger.assumptions) == (["add"], [])


def test_compiled_models_run_as_they_were_written() -> None:
    import torch._dynamo

    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    compiled = torch.compile(plain, backend="eager")
    frames = torch._dynamo.utils.counters["frames"].copy()
    for batch in range(1, 12):
        assert analyze(compiled, (4,), batch=batch).totals()["macs"] == batch * (16 + 8)
    assert torch._dynamo.utils.counters["frames"] == frames, "nothing was compiled, least of all the capture itself"


@pytest.mark.parametrize(
    "literal",
    [
        lambda x: x + torch.tensor([1.0] * 4, device=x.device),
        lambda x: x + torch.as_tensor([1.0] * 4, device=x.device),
        lambda x: x[:, [1, 2]],
    ],
)
def test_literals_are_no_strangers_where_other_threads_are_about(literal: Any) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert analyze(Function(lambda m, x: literal(x), spare=nn.Identity()), (4,)).assumptions == []
    finally:
        done.set()
        thread.join()


def lazy(frozen: bool = False) -> nn.Module:
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10))
    model[0].weight = nn.parameter.UninitializedParameter(requires_grad=not frozen)
    return model


def sized(frozen: bool = False) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10))
    model[0].weight.requires_grad_(not frozen)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"training": True, "optimizer": "adamw"},
        {"training": True, "optimizer": "adamw", "frozen": True},
        {"model_dtype": "float64"},
    ],
)
def test_lazy_modules_are_as_initialised(options: dict[str, Any]) -> None:
    """What sets them up once, in the first forward there is, belongs to no run."""
    frozen = options.pop("frozen", False)
    found, expected = (analyze(model, (3, 8, 8), batch=2, **options) for model in (lazy(frozen), sized(frozen)))
    # (27 + 1) x 8, 2 x 8, (36 x 8 + 1) x 10; 8 x 2 + 1
    assert found.totals()["params"] == 224 + 16 + 2890 and found.totals()["buffers"] == 17
    assert found.totals()["trainable_params"] == 3130 - 216 * frozen
    assert found.totals() == expected.totals()
    assert found.record.parameters == expected.record.parameters and found.record.buffers == expected.record.buffers
    states = [[(a.bytes, a.born, a.kind) for a in ledger.record.allocations] for ledger in (found, expected)]
    assert sorted(states[0]) == sorted(states[1])


def test_a_lazy_module_that_does_not_run_has_no_size() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.LazyLinear(2), nn.LazyLinear(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    assert analyze(Unused(), (4,)).totals()["params"] == 4 * 2 + 2
