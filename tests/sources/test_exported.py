"""A file of torch.export.save: its graph is booked as the model itself is, and nothing in the file can run."""

from __future__ import annotations

import json
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim, export, save
from torch.nn import functional

from torchledger import analyze
from torchledger.errors import UserError
from torchledger.sources import build, resolve


class Attention(nn.Module):
    """Attention over 6 tokens in 2 heads, and a feed-forward net that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.qkv = nn.Linear(8, 24)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.register_buffer("scale", torch.ones(8))
        self.shift = torch.arange(8.0)

    def forward(self, ids: torch.Tensor, gain: torch.Tensor) -> dict[str, Any]:
        x = self.embed(ids) * self.scale + self.shift
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, 8)
        with torch.no_grad():
            factor = gain * 2
        return {"out": self.mlp(self.mlp(x)) * factor, "none": None}


def inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(batch, 6, dtype=torch.int64), torch.zeros(batch, 6, 8)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "net.pt2"
    batch = Dim("batch", min=1, max=64)
    save(export(Attention().eval(), inputs(3), dynamic_shapes=({0: batch}, {0: batch})), path)
    return path


def edited(path: Path, target: Path, change: Callable[[dict[str, Any]], None], **files: bytes) -> Path:
    """Write the program anew with a change to its JSON, and files in place of those whose names end so."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("models/model.json"):
                graph = json.loads(content)
                change(graph)
                content = json.dumps(graph).encode()
            new.writestr(name, content)
    return target


@pytest.mark.parametrize("batch", [1, 4])
def test_ledger_is_that_of_the_model(program: Path, batch: int) -> None:
    built = build(resolve(str(program)), device="meta")
    assert built.on_meta and built.example is not None and type(built.model).__name__ == "Attention"
    example = built.example(batch, torch.float32)
    assert [(tuple(t.shape), t.dtype, t.device.type) for t in example.args] == [
        ((batch, 6), torch.int64, "meta"),  # what ids they were, the file does not say
        ((batch, 6, 8), torch.float32, "meta"),
    ]
    ours = analyze(built.model, *example.args, batch=batch)
    theirs = analyze(Attention(), *inputs(batch), batch=batch)
    # a token: qkv 8 x 24, attention 2 heads x 4 x 6 twice, the net 8 x 16 + 16 x 8 twice
    assert ours.totals()["macs"] == batch * 6 * (192 + 96 + 512) == theirs.totals()["macs"]
    for name in ("params", "flops", "bytes_read", "bytes_written", "unknown"):
        assert ours.totals()[name] == theirs.totals()[name]
    # 11 x 8 + (8 + 1) x 24 + (8 + 1) x 16 + (16 + 1) x 8
    assert ours.totals()["params"] == 88 + 216 + 144 + 136


def test_operations_are_booked_in_their_modules(program: Path) -> None:
    built = build(resolve(str(program)), device="meta")
    assert built.example is not None
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = built.model.get_submodule("mlp").register_forward_hook(count)
    built.model(*(torch.zeros(t.shape, dtype=t.dtype, device="meta") for t in built.example(1, torch.float32).args))
    handle.remove()
    assert calls == 2
    rows = {row["module"]: row for row in analyze(built.model, *built.example(1, torch.float32).args).by_layer().rows}
    assert {"embed", "qkv", "mlp.0", "mlp.1", "mlp.2"} <= set(rows)
    assert (rows["mlp.0"]["kind"], rows["mlp.0"]["calls"], rows["mlp.0"]["macs"]) == ("Linear", 2, 2 * 6 * 8 * 16)


def test_results_are_let_go_once_nothing_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "chain.pt2"
    save(export(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)), (torch.zeros(1, 4),)), path)
    built = build(resolve(str(path)), device="meta")
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[list[bool]] = []

    def watch(_: nn.Module, args: object, results: dict[str, torch.Tensor]) -> None:
        made.extend(weakref.ref(tensor) for tensor in results.values())
        alive.append([ref() is not None for ref in made])

    for name in ("0", "1", "2"):
        built.model.get_submodule(name).register_forward_hook(watch)
    with torch.no_grad():
        built.model(torch.zeros(1, 4, device="meta"))
    # While a layer runs, its input and its output are there, and nothing older.
    assert alive == [[True], [True, True], [False, True, True]]


def test_autocast_inside_of_a_program(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                y = self.first(x)
            return self.second(y.float())

    path = tmp_path / "mixed.pt2"
    save(export(Mixed(), (torch.zeros(3, 4),)), path)
    built = build(resolve(str(path)), device="meta")
    assert built.example is not None
    assert analyze(built.model, *built.example(1, torch.float32).args).totals()["macs"] == 3 * 4 * 4 * 2


def test_values_of_the_default_inputs_are_not_known(tmp_path: Path) -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 10)

        def forward(self, x: torch.Tensor, mask: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.fc(x[mask]), self.fc(x[ids > 0])])

    path = tmp_path / "kept.pt2"
    given = (torch.zeros(2, 6, 4), torch.ones(2, 6, dtype=torch.bool), torch.ones(2, 6, dtype=torch.int64))
    save(export(Kept(), given), path)
    built = build(resolve(str(path)), device="meta")
    assert built.example is not None
    args = built.example(1, torch.float32).args
    ledger = analyze(built.model, *args)
    # all 12 rows, twice
    assert ledger.totals()["macs"] == 2 * 12 * 4 * 10
    assert any("is all kept: an upper bound" in text for text in ledger.assumptions)
    none = torch.zeros(2, 6, dtype=torch.bool)
    assert analyze(built.model, args[0], none, none.long()).totals()["macs"] == 0, "what is given is known"


def test_fixed_batch(tmp_path: Path) -> None:
    path = tmp_path / "fixed.pt2"
    save(export(nn.Linear(4, 2), (torch.zeros(3, 4),)), path)
    example = build(resolve(str(path)), device="meta").example
    assert example is not None
    assert [tuple(t.shape) for t in example(1, torch.float32).args] == [(3, 4)]
    with pytest.raises(UserError, match=r"was exported for inputs of \[3\] samples: --batch 2 needs an export with"):
        example(2, torch.float32)


# ---- a file is data


class Evil:
    """Write a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(program: Path, tmp_path: Path) -> None:
    import pickle

    ran = tmp_path / "ran"
    evil = tmp_path / "evil.pt2"
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(evil, "w") as new:
        for name in old.namelist():
            payload = name.endswith(".pt") or "/data/weights/weight_" in name
            new.writestr(name, pickle.dumps(Evil(ran)) if payload else old.read(name))
    build(resolve(str(evil)), device="meta")
    assert not ran.exists()
    pickle.loads(pickle.dumps(Evil(ran)))  # and it would have
    assert ran.exists()


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "builtins.eval", "torch.ops.aten.from_file.default", "torch.ops.load_library", "torch.load",
        "torch.ops.aten.__class__.default", "torch.ops.mylib.op.default", "torch.ops.aten.save.default",
        "torch.ops.aten._print.default", "torch.ops.aten.warn.default", "torch.ops.aten.eq.int_list",
    ],
)  # fmt: skip
def test_only_operations_of_torch_are_called(program: Path, tmp_path: Path, target: str) -> None:
    def change(content: dict[str, Any]) -> None:
        content["graph_module"]["graph"]["nodes"][0]["target"] = target

    path = edited(program, tmp_path / "x.pt2", change)
    with pytest.raises(UserError, match=f"runs {target!r}, which is not known here"):
        build(resolve(str(path)), device="meta")


def test_branches_of_a_program_are_refused_by_name(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))

    path = tmp_path / "cond.pt2"
    save(export(Branching(), (torch.zeros(3),)), path)
    with pytest.raises(UserError, match=r"runs 'torch.ops.higher_order.cond', which goes by values: a .pt2 with"):
        build(resolve(str(path)), device="meta")


def test_names_that_are_no_identifiers_do_not_become_code(program: Path, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for node in content["graph_module"]["graph"]["nodes"]:
            node["metadata"]["nn_module_stack"] = "k,,a.Net;k,x=__import__('os'),a.B;k,y;z"

    built = build(resolve(str(edited(program, tmp_path / "x.pt2", change))), device="meta")
    assert built.example is not None
    assert analyze(built.model, *built.example(1, torch.float32).args).totals()["macs"] == 6 * 800


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"no zip", "is no file of torch.export.save: BadZipFile"),
        ({"other": b""}, "holds 0 programs in the format of torch.export.save, expected one: save it"),
        ({"net/models/model.json": b"{"}, "is no file of torch.export.save: JSONDecodeError"),
        ({"net/models/model.json": b"[]"}, "has version None of torch.export's format, and 8 is what is read here"),
        (
            {"net/models/model.json": b'{"schema_version": {"major": 8}}'},
            "is no exported program that is understood here: KeyError: 'graph_module'",
        ),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: Any, match: str) -> None:
    path = tmp_path / "x.pt2"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
    with pytest.raises(UserError, match=match) as caught:
        build(resolve(str(path)), device="meta")
    assert "\n" not in str(caught.value)


def test_what_a_program_does_not_take(program: Path) -> None:
    with pytest.raises(UserError, match="is a program that is built already: it takes no --arg or --classes"):
        build(resolve(str(program)), {"num_classes": 2}, device="meta")
    with pytest.raises(UserError, match="is read without its weights, and cannot be run for real: leave --measure out"):
        build(resolve(str(program)))
    with pytest.raises(UserError, match=r"no exported program '.*nt\.pt2'. Did you mean 'net\.pt2'"):
        resolve(str(program.with_name("nt.pt2")))
