"""A ledger on disk and in hand: saved whole or not at all, read without torch, one line for whatever is wrong."""

from __future__ import annotations

import builtins
import csv
import dataclasses
import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchledger
from torchledger import Ledger, Table, UserError, analyze, pricing, writing
from torchledger import ledger as ledger_module
from torchledger.pricing import CONVENTIONS
from torchledger.pricing.convention import Convention, Price
from torchledger.record import SCHEMA, Operation


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.norm(self.layer(x)).clamp(min=float("-inf"))], dim=1)


@pytest.fixture
def ledger() -> Ledger:
    return analyze(Block(), (4,), batch=2)


@pytest.fixture
def saved(ledger: Ledger, tmp_path: Path) -> Path:
    path = tmp_path / "net.json"
    ledger.save(path)
    return path


def fails(action: Callable[[], object], match: str) -> None:
    """Run `action`, which must fail with one line that matches."""
    with pytest.raises(UserError, match=match) as caught:
        action()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


# ---- save and load


def test_saved_ledger_is_as_good_as_the_first(ledger: Ledger, saved: Path) -> None:
    again = Ledger.load(saved)
    assert again.record == ledger.record and again.record is not ledger.record
    assert Ledger.load(str(saved)).record == ledger.record
    for convention in CONVENTIONS:
        assert again.totals(convention) == ledger.totals(convention)
        for view in ("by_layer", "by_operation", "by_module"):
            assert str(getattr(again, view)(convention=convention)) == str(getattr(ledger, view)(convention=convention))
    assert (again.unknown, again.assumptions) == (ledger.unknown, ledger.assumptions)
    assert repr(again) == f"<Ledger of Block: {len(ledger.record.entries)} operations, eval mode, batch 2>"


def test_saved_text_is_json_of_one_line(saved: Path) -> None:
    text = saved.read_text(encoding="ascii")
    assert text.count("\n") == 1 and text.endswith("}\n")
    assert (json.loads(text)["format"], json.loads(text)["schema"]) == ("torchledger ledger", SCHEMA)


def test_ledger_that_carries_a_table_loads(ledger: Ledger, saved: Path) -> None:
    """`--format json` writes the table beside the ledger."""
    saved.write_text(json.dumps(ledger.to_json() | {"table": ledger.by_layer().to_json()}))
    assert Ledger.load(saved).record == ledger.record


def test_save_replaces(ledger: Ledger, saved: Path) -> None:
    other = analyze(nn.Linear(2, 2), (2,))
    other.save(saved)
    assert Ledger.load(saved).record == other.record
    assert os.listdir(saved.parent) == ["net.json"], "no temporary file stays"


class Half:
    """A file that takes half of what is written, then says that the disk is full."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> Half:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, text: str) -> None:
        self._file.write(text[: len(text) // 2])
        self._file.flush()
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("step", "existing"),
    [(step, existing) for step in ("write", "replace", "interrupt") for existing in (True, False)] + [("chmod", True)],
)
def test_failed_write_leaves_what_was_there(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, existing: bool
) -> None:
    path = tmp_path / "net.json"
    if existing:
        path.write_text("old")

    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt if step == "interrupt" else PermissionError(13, "Permission denied")

    if step == "write":
        # The disk is full after half of the text, when it is flushed.
        real = open

        def full(descriptor: int, *args: Any, **options: Any) -> Any:
            return Half(real(descriptor, *args, **options))

        monkeypatch.setattr(builtins, "open", full)
    else:
        monkeypatch.setattr(os, "replace" if step == "interrupt" else step, broken)
    if step == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            ledger.save(path)
    else:
        reason = "No space left on device" if step == "write" else "Permission denied"
        fails(lambda: ledger.save(path), rf"^cannot write '.*net\.json': {reason}$")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == (["net.json"] if existing else [])
    assert not existing or path.read_text() == "old"


def test_reader_sees_the_old_or_the_new_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole at every moment: what is at the path just before it is replaced is all of the old ledger."""
    seen: list[Ledger] = []
    replace = os.replace

    def watched(source: str, target: str) -> None:
        seen.append(Ledger.load(target))
        seen.append(Ledger.load(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    new = analyze(nn.Linear(2, 2), (2,))
    new.save(saved)
    assert [ledger.record.model for ledger in seen] == ["Block", "Linear"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o444])
def test_permissions_are_kept(ledger: Ledger, saved: Path, mode: int) -> None:
    saved.chmod(mode)
    ledger.save(saved)
    assert saved.stat().st_mode & 0o7777 == mode


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_new_file_gets_the_permissions_that_any_new_file_gets(ledger: Ledger, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        ledger.save(tmp_path / "net.json")
        assert os.umask(mask) == mask, "the mask was put back"
    finally:
        os.umask(before)
    assert (tmp_path / "net.json").stat().st_mode & 0o7777 == 0o666 & ~mask


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("dangling", [True, False])
def test_link_stays_a_link(ledger: Ledger, tmp_path: Path, relative: bool, dangling: bool) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "real.json"
    if not dangling:
        target.write_text("old")
    link = tmp_path / "net.json"
    link.symlink_to("elsewhere/real.json" if relative else target)
    ledger.save(link)
    assert link.is_symlink() and not target.is_symlink()
    assert Ledger.load(link).record == Ledger.load(target).record == ledger.record
    assert os.listdir(target.parent) == ["real.json"]


def test_path_that_cannot_be_written(ledger: Ledger, tmp_path: Path) -> None:
    missing = tmp_path / "no" / "net.json"
    fails(lambda: ledger.save(missing), rf"^cannot write '{missing}': there is no folder '{missing.parent}'; make it")
    fails(lambda: ledger.save(tmp_path), rf"^cannot write '{tmp_path}': it is a folder; name a file in it$")
    (tmp_path / "file").write_text("")
    fails(lambda: ledger.save(tmp_path / "file" / "net.json"), "there is no folder")
    (tmp_path / "gone.json").symlink_to("no/real.json")
    fails(lambda: ledger.save(tmp_path / "gone.json"), "there is no folder '.*/no'")
    assert not missing.parent.exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write and read everywhere")
def test_folder_and_file_without_permission(ledger: Ledger, saved: Path, tmp_path: Path) -> None:
    saved.chmod(0o000)
    fails(lambda: Ledger.load(saved), r"^cannot read '.*net\.json': Permission denied$")
    tmp_path.chmod(0o500)
    try:
        fails(lambda: ledger.save(saved), r"^cannot write '.*net\.json': Permission denied$")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipe_is_written_to_and_not_replaced(saved: Path, tmp_path: Path) -> None:
    """What is no regular file, as /dev/stdout may be, cannot be replaced whole."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    Ledger.load(saved).save(pipe)
    assert os.read(reader, 10**6) == saved.read_bytes()
    # More than the pipe holds: the reader goes while the writer waits for it.
    threading.Timer(0.1, os.close, [reader]).start()
    fails(lambda: ledger_module.write_whole(pipe, "x" * 10**6), r"^cannot write '.*pipe': Broken pipe$")
    assert pipe.is_fifo()


@pytest.mark.parametrize("name", ["a b é漢.json", "-", "x" * 240 + ".json", "no suffix", ".hidden"])
def test_names_of_files(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    ledger.save(name)
    assert Ledger.load(name).record == ledger.record
    assert os.listdir(tmp_path) == [name]


def test_unreadable_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    fails(lambda: Ledger.load(saved), r"^cannot read '.*net\.json': Permission denied$")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"'.*net\.json' is not whole JSON \(line 1, column 1: Expecting value\); save the ledger again"),
        (b"\n", "is not whole JSON"),
        (b"not json", "is not whole JSON"),
        (b"{'format': 'torchledger ledger'}", "is not whole JSON"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\xff\xfe", "is no ledger: it is not text"),
        (b"\x80\x02}q\x00.", "is no ledger: it is not text"),  # a pickle is not even looked into
        ('{"format": "torchledger ledger"}'.encode("utf-16"), "is no ledger: it is not text"),
        (b"null", "is no torchledger ledger"),
        (b"[]", "is no torchledger ledger"),
        (b'"torchledger ledger"', "is no torchledger ledger"),
        (b'{"a": 1}', r'is no torchledger ledger \(no "format": "torchledger ledger"\); write one with --format json'),
        (b'{"format": "torchledger ledger"}', "is damaged: its schema is None"),
        (b'{"format": "torchledger ledger", "schema": 1}', "is damaged: no 'entries'"),
        (b'{"format": "torchledger ledger", "schema": 4}', "has schema 4, .* reads up to 3; upgrade torchledger"),
        (b"[" * 100_000, "is no ledger: maximum recursion depth"),
        (b"9" * 10_000, "is no ledger: .*digits"),
    ],
    ids=lambda value: repr(value[:40]),
)
def test_file_that_is_no_ledger(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "net.json"
    path.write_bytes(content)
    fails(lambda: Ledger.load(path), said)


def test_file_that_is_cut_off_or_missing(saved: Path) -> None:
    content = saved.read_bytes()
    for kept in (1, 10, len(content) // 2, len(content) - 2):
        saved.write_bytes(content[:kept])
        fails(lambda: Ledger.load(saved), r"'.*net\.json' is not whole JSON \(line 1, column \d+: ")
    saved.unlink()
    fails(lambda: Ledger.load(saved), r"^cannot read '.*net\.json': No such file or directory$")
    fails(lambda: Ledger.load(saved.parent), "^cannot read '.*': Is a directory$")


def test_packed_file_is_the_same_ledger(ledger: Ledger, saved: Path, tmp_path: Path) -> None:
    plain, path = saved.read_bytes(), tmp_path / "net.JSON.gz"
    ledger.save(path)
    packed = path.read_bytes()
    assert gzip.decompress(packed) == plain and len(packed) < len(plain) / 3
    # RFC 1952: magic, deflate; no flags, so no name; no time
    assert packed[:8] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00"
    again = tmp_path / "again.gz"
    ledger.save(again)
    assert again.read_bytes() == packed
    # whatever its name; packed or not; in two members, as some programs write
    for content in (packed, plain, gzip.compress(plain[:100]) + gzip.compress(plain[100:])):
        for name in ("net.json", "net.gz", "net"):
            (tmp_path / name).write_bytes(content)
            assert Ledger.load(tmp_path / name).record == ledger.record


def test_packed_file_that_is_damaged(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "net.json.gz"
    ledger.save(path)
    content = path.read_bytes()
    for kept in (2, 3, 10, 18, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        fails(lambda: Ledger.load(path), r"^'.*net\.json\.gz' is a gzip file that is cut off; save it again$")
    checksum = content[:-8] + bytes(byte ^ 1 for byte in content[-8:-4]) + content[-4:]
    for damaged in (content[:2] + b"\x07" + content[3:], content[:10] + b"\xff" * 40, checksum, content + b"junk"):
        path.write_bytes(damaged)
        fails(lambda: Ledger.load(path), r"^'.*net\.json\.gz' is a damaged gzip file \(.+\); save it again$")
    path.write_bytes(gzip.compress(b"[1, 2"))
    fails(lambda: Ledger.load(path), r"is not whole JSON \(line 1, column 6: ")


def test_packed_file_that_would_fill_the_memory(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.json.gz"
    path.write_bytes(gzip.compress(b" " * 2**26 + b" "))
    fails(lambda: Ledger.load(path), r"^'.*' unpacks to more than 100 times its size, as no ledger does: not read$")
    path.write_bytes(gzip.compress(b" " * 2**26))
    fails(lambda: Ledger.load(path), "is not whole JSON")  # small enough to be looked at
    monkeypatch.setattr(writing, "ALWAYS_UNPACKED", 0)
    ledger.save(path)
    assert Ledger.load(path).record == ledger.record


def operation_values(operations: list[dict[str, Any]]) -> Iterator[tuple[Any, Any]]:
    for operation in operations:
        yield from ((operation["arguments"], name) for name in operation["arguments"])
        yield from ((operation, name) for name in ("arguments", "inputs", "outputs", "repeated"))
        for listed in (operation["inputs"], operation["outputs"]):
            yield from ((listed, index) for index in range(len(listed)))


def test_every_ledger_that_loads_can_be_drawn(ledger: Ledger) -> None:
    """An operation whose arguments make no sense is unknown: it cannot keep the rest from being read."""
    data = json.loads(json.dumps(ledger.to_json()))
    wrong: list[Any] = [None, 0, -1, 10**9, 1.5, float("nan"), "x", [], [0], {}, {"tensor": 0}, [{"tensor": 0}], [[]]]
    scalar, matrix = [[[], [], "float32"]], [[[0, 3], [3, 1], "int64"]]
    wrong += [scalar, matrix, scalar[0], matrix[0], [[[], [], "float32", None]]]
    drawn = 0
    for container, key in list(operation_values(data["operations"])):
        right = container[key]
        for value in wrong:
            container[key] = value
            try:
                damaged = Ledger.from_json(data)
            except UserError:
                continue
            drawn += 1
            for convention in CONVENTIONS:
                assert damaged.by_layer(convention).total["params"] == 4 * 4 + 4 + 4 + 4
                assert damaged.by_operation(convention).to_csv()
        container[key] = right
    assert drawn > 300


# ---- what is asked of it


@pytest.mark.parametrize("view", ["totals", "by_layer", "by_operation", "by_module"])
@pytest.mark.parametrize(
    ("convention", "said"),
    [
        ("torchstats", r"^unknown convention 'torchstats'.* Did you mean 'torchstat'\?"),
        ("", "^unknown convention ''.* full, torchstat"),
        ("FULL", "^unknown convention 'FULL'.* full, torchstat"),
    ],
)
def test_unknown_convention(ledger: Ledger, view: str, convention: str, said: str) -> None:
    fails(lambda: getattr(ledger, view)(convention=convention), said)


@pytest.mark.parametrize("phase", ["sideways", "", "Forward"])
def test_unknown_phase(ledger: Ledger, phase: str) -> None:
    fails(lambda: ledger.totals(phase=phase), f"^phase is '{phase}'; the phases are forward, backward, optimizer$")


@pytest.mark.parametrize("depth", [-1, 1.0, "1", None, True], ids=repr)
def test_depth_that_is_none(ledger: Ledger, depth: Any) -> None:
    fails(lambda: ledger.by_module(depth), "^depth is .*, expected a whole number from 0$")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """Convention and id of each operation that a rule priced, with nothing kept before or after."""
    calls: list[tuple[str, int]] = []

    def counted(convention: Convention) -> Convention:
        def price(operation: Operation) -> Price:
            calls.append((convention.name, id(operation)))
            return convention.price(operation)

        return dataclasses.replace(convention, price=price)

    for name, convention in list(CONVENTIONS.items()):
        monkeypatch.setitem(CONVENTIONS, name, counted(convention))
    pricing.forget()
    yield calls
    pricing.forget()


def test_an_operation_is_priced_once_a_process_and_convention(ledger: Ledger, asked: list[tuple[str, int]]) -> None:
    first = {name: ledger.totals(name) for name in CONVENTIONS}
    for name in CONVENTIONS:
        assert ledger.by_layer(name).total["operations" if name == "full" else "params"] is not None
        assert ledger.by_operation(name).rows and ledger.totals(name) == first[name]
    assert ledger.unknown == {}
    assert len(asked) == len(set(asked)) == len(CONVENTIONS) * len(ledger.record.operations)
    assert {name: Ledger(ledger.record).totals(name) for name in CONVENTIONS} == first
    assert len(asked) == len(set(asked)), "another ledger of the same operations"
    assert pickle.loads(pickle.dumps(ledger)).totals() == first["full"]
    pricing.forget()
    assert Ledger(ledger.record).totals() == first["full"]
    assert len(asked) > len(set(asked)), "priced anew"


def test_no_more_prices_are_kept_than_the_limit(
    ledger: Ledger, asked: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pricing, "LIMIT", 2)
    total = ledger.totals()
    assert len(ledger.record.operations) > 2 >= len(pricing._KEPT["full"]) > 0
    before = len(asked)
    assert ledger.totals() == total and len(asked) == before, "a ledger keeps its own"
    assert Ledger(ledger.record).totals() == total and len(asked) > before


def test_a_ledger_from_a_file_keeps_its_prices_to_itself(tmp_path: Path) -> None:
    """Nobody else has its operations: what the process kept of them, it would never find again."""
    ledger = analyze(nn.Sequential(nn.Linear(5, 7), nn.ReLU()), (5,))
    total = ledger.totals()
    ledger.save(tmp_path / "net.json")
    before = len(pricing._KEPT["full"])
    for _ in range(3):
        read = Ledger.load(tmp_path / "net.json")
        assert read.totals() == total and read.by_layer().total["macs"] == 35
    assert len(pricing._KEPT["full"]) == before


def test_threads_price_at_once(asked: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pricing, "LIMIT", 3)  # one thread begins anew while another one looks
    ledgers = [analyze(nn.Sequential(nn.Linear(size, size), nn.ReLU()), (size,)) for size in range(1, 9)]
    expected = [ledger.totals("fvcore")["macs"] for ledger in ledgers]
    assert expected == [size * size for size in range(1, 9)]
    with ThreadPoolExecutor(4) as pool:
        many = pool.map(lambda ledger: Ledger(ledger.record).totals("fvcore")["macs"], ledgers * 50)
        assert list(many) == expected * 50


def test_assumptions_are_a_copy(ledger: Ledger) -> None:
    ledger.record.assumptions.append("something")
    ledger.assumptions.append("more")
    assert ledger.assumptions == ["something"]


# ---- tables


def test_table_in_all_forms(ledger: Ledger) -> None:
    table = ledger.by_layer()
    assert isinstance(table, Table)
    assert str(table) == table.to_text() == table.to_text(width=None, color=False)
    assert max(map(len, table.to_text(50).splitlines())) <= 50 < max(map(len, table.to_text().splitlines()))
    assert "\x1b[" in table.to_text(color=True) and "\x1b" not in str(table)
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [row["macs"] for row in rows] == ["32", "0", "0", "0"], "2 x 4 x 4, BatchNorm, clamp, cat; exact numbers"
    assert [int(row["flops"]) for row in rows] == [row["flops"] for row in table.rows]
    assert (
        table.to_markdown().startswith("### Block, by layer, convention full")
        and "| **total** |" in table.to_markdown()
    )
    as_json = json.loads(json.dumps(table.to_json()))
    assert as_json["rows"] == table.rows and as_json["total"] == table.total and as_json["notes"] == table.notes


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("view", ["by_layer", "by_operation", "by_module"])
def test_columns_have_the_names_of_the_quantities(ledger: Ledger, view: str, convention: str) -> None:
    table = getattr(ledger, view)(convention=convention)
    names = [column.name for column in table.columns]
    assert table.to_csv().splitlines()[0].split(",") == names
    assert all(list(row) == names for row in table.rows) and list(table.total) == names
    assert {quantity.name for quantity in CONVENTIONS[convention].quantities} <= set(names)
    assert set(names) - set(ledger.totals(convention)) <= {
        *("module", "operation", "kind", "calls", "input_shape", "output_shape", "note")
    }


def test_table_and_total_of_one_ledger_do_not_share_state(ledger: Ledger) -> None:
    table = ledger.by_layer()
    table.rows[0]["macs"] = table.total["macs"] = -1
    table.notes.clear()
    assert ledger.by_layer().rows[0]["macs"] == 32 == ledger.totals()["macs"] and ledger.by_layer().notes


def test_lone_surrogate_in_a_name_does_not_stop_a_file(ledger: Ledger, tmp_path: Path) -> None:
    """Names of modules are any text, and some text has no UTF-8."""
    ledger.record.modules.paths[1] = "layer\ud800"
    path = tmp_path / "net.csv"
    ledger_module.write_whole(path, ledger.by_layer().to_csv())
    assert "layer\\ud800," in path.read_text(encoding="utf-8")
    ledger.save(path)
    assert Ledger.load(path).record == ledger.record


# ---- without torch

DRAW = """
import sys
from torchledger.ledger import Ledger
ledger = Ledger.load(sys.argv[1])
for convention in ("full", "torchstat"):
    for table in (ledger.by_layer(convention), ledger.by_operation(convention), ledger.by_module(2, convention)):
        print(table.to_text(80), table.to_csv(), table.to_markdown(), table.to_json(), table.total)
    print(ledger.totals(convention), ledger.unknown, ledger.assumptions)
ledger.save(sys.argv[1])
import torchledger
print(torchledger.Ledger, torchledger.Table, torchledger.UserError, torchledger.ForwardError)
assert "torch" not in sys.modules and "numpy" not in sys.modules, "torch was imported"
"""


def test_saved_ledger_is_read_priced_drawn_and_saved_without_torch(ledger: Ledger, saved: Path) -> None:
    source = str(Path(torchledger.__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": source, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", DRAW, str(saved)], capture_output=True, text=True, encoding="utf-8", env=environment
    )
    assert done.returncode == 0, done.stderr
    assert str(ledger.totals()) in done.stdout and ledger.by_layer("torchstat").to_csv() in done.stdout
    assert Ledger.load(saved).record == ledger.record


def test_a_file_that_begins_with_a_mark_of_its_encoding(tmp_path: Path) -> None:
    ledger = analyze(nn.Linear(4, 3), (4,))
    ledger.save(tmp_path / "net.json")
    (tmp_path / "marked.json").write_text((tmp_path / "net.json").read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert Ledger.load(tmp_path / "marked.json").to_json() == ledger.to_json()
