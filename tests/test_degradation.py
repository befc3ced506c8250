"""benchmarks/degradation.py: it trains, reads CIFAR-10 safely, says what is wrong in one line; its page is current."""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def degradation() -> ModuleType:
    """Import the script under a name that its worker processes find too."""
    spec = importlib.util.spec_from_file_location("degradation", ROOT / "benchmarks" / "degradation.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["degradation"] = module
    spec.loader.exec_module(module)
    return module


def test_a_small_run_writes_both_files(
    degradation: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--epochs", "2", "--seeds", "2", "--layers", "8", "--samples", "65", "--batch", "64"]
    assert degradation.main([*options, "--output", str(tmp_path)]) == 0
    rows = degradation.from_csv((tmp_path / "degradation.csv").read_text(encoding="utf-8").splitlines())
    assert [(row.network, row.seed, row.epoch) for row in rows] == [
        (network, seed, epoch) for network in ("plain8", "resnet8") for seed in (0, 1) for epoch in (1, 2)
    ]
    assert all(0 <= row.training_error <= 100 and 0 <= row.test_error <= 100 for row in rows)
    picture = (tmp_path / "degradation.svg").read_text(encoding="utf-8")
    assert picture.startswith("<?xml") and picture.rstrip().endswith("</svg>")
    assert "| resnet8 |" in capsys.readouterr().out


def test_a_run_can_be_repeated(degradation: ModuleType) -> None:
    settings = degradation.Settings(epochs=1, batch=32, rate=0.05, data=None, samples=64)
    assert degradation.train(8, True, 3, settings) == degradation.train(8, True, 3, settings)


def cifar_folder(folder: Path, content: Any = None) -> Path:
    inner = folder / "cifar-10-batches-py"
    inner.mkdir()
    generator = np.random.default_rng(0)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        images = generator.integers(0, 256, (4, 3072), dtype=np.uint8)
        batch = {b"data": images, b"labels": [0, 1, 2, 3], b"batch_label": name.encode()}
        (inner / name).write_bytes(pickle.dumps(batch if content is None else content, protocol=2))
    return folder


def test_cifar_is_read(degradation: ModuleType, tmp_path: Path) -> None:
    for folder in (cifar_folder(tmp_path), tmp_path / "cifar-10-batches-py"):
        data = degradation.load(str(folder), None)
        assert data.name == "CIFAR-10"
        assert (data.images.shape, data.test_images.shape) == ((20, 3, 32, 32), (4, 3, 32, 32))
        assert data.classes.tolist() == [0, 1, 2, 3] * 5
        assert data.images.mean((0, 2, 3)).abs().max() < 1e-4
    assert len(degradation.load(str(tmp_path), 7).images) == 7


def test_images_that_are_all_the_same_are_refused(
    degradation: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their deviation is 0, and a normalised pixel would be no number."""
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 1024), dtype=np.uint8)
    images[:, 1] = 7
    batch = {b"data": images.reshape(4, 3072), b"labels": [0, 1, 2, 3]}
    assert degradation.main(["--data", str(cifar_folder(tmp_path, batch))]) == 2
    said = capsys.readouterr().err
    assert said == (
        "degradation: the training images of CIFAR-10 hold a channel that is the same everywhere: nothing to learn\n"
    )


def test_a_loss_that_diverges_is_said(
    degradation: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--epochs", "2", "--seeds", "1", "--layers", "8", "--samples", "64", "--batch", "8", "--rate", "1e30"]
    assert degradation.main([*options, "--output", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    wanted = r"degradation: the loss of \w+8, seed 0, is (nan|inf) in epoch 1: --rate 1e\+30 is too high for it\n"
    assert re.fullmatch(wanted, said), said
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_epochs(degradation: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    update = degradation.Progress.update

    def noted(progress: Any, task: Any, **changes: Any) -> None:
        seen.append(changes["completed"])
        update(progress, task, **changes)

    monkeypatch.setattr(degradation.Progress, "update", noted)
    settings = degradation.Settings(epochs=3, batch=32, rate=0.05, data=None, samples=64)
    assert len(degradation.train_all([8], 1, 2, settings)) == 6  # two networks of three epochs
    assert seen == sorted(seen) and seen[-1] == 6


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was-here",)


IMAGES = np.zeros((2, 3072), dtype=np.uint8)


@pytest.mark.parametrize(
    "content",
    [Evil(), {b"data": 3}, [1], {b"data": IMAGES, b"labels": [0]}, {b"data": IMAGES, b"labels": [0, 10]}],
)
def test_other_pickles_are_refused(
    content: Any,
    degradation: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert degradation.main(["--data", str(cifar_folder(tmp_path, content))]) == 2
    said = capsys.readouterr().err
    assert "data_batch_1' is no batch of CIFAR-10" in said and said.count("\n") == 1
    assert not Path("was-here").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--layers", "21"], "layers is 21; a CIFAR ResNet has 6n + 2"),
        (["--rate", "0"], "--rate is 0.0, expected a number above 0"),
        (["--rate", "nan"], "--rate is nan"),
        (["--data", "no/such/folder"], "no file 'no/such/folder/data_batch_1'"),
        (["--output", "no/such/folder"], "no/such/folder"),
        (["--samples", "1"], "--samples is 1, expected 2 or more"),
        (["--batch", "1"], "--batch is 1, expected 2 or more"),
        (["--layers", "8", "14", "8"], "--layers has 8 more than once"),
        (["--device", "meta"], "--device is 'meta', which torch cannot use here; there is cpu"),
        (["--device", "gpu"], "--device is 'gpu', which torch cannot use here; there is cpu"),
        (["--device", "cuda:99"], "--device is 'cuda:99', which torch cannot use here; there is cpu"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(
    options: list[str],
    said: str,
    degradation: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(degradation, "train_all", None)
    assert degradation.main(options) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_file_is_found_before_anything_is_trained(
    degradation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(degradation, "train_all", None)
    monkeypatch.setattr(degradation.tempfile, "TemporaryFile", refuse)  # permissions do not stop root
    assert degradation.main(["--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"degradation: cannot write to the folder {str(tmp_path)!r}: Permission denied\n"


@pytest.mark.parametrize("option", ["--seeds", "--epochs", "--workers", "--batch", "--samples"])
@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_numbers_are_whole_and_from_one(option: str, value: str, degradation: ModuleType) -> None:
    with pytest.raises(SystemExit) as done:
        degradation.main([f"{option}={value}"])
    assert done.value.code == 2


def test_what_the_page_concludes_is_in_its_csv(degradation: ModuleType) -> None:
    rows = degradation.from_csv((ROOT / "docs" / "degradation.csv").read_text(encoding="utf-8").splitlines())
    options = degradation.parse([])
    assert len(rows) == len(options.layers) * 2 * options.seeds * options.epochs  # of a run without any option
    ends = [row for row in rows if row.epoch == options.epochs]
    of_plain56 = [row.training_error for row in ends if row.network == "plain56"]
    of_others = [row.training_error for row in ends if row.network in ("plain20", "resnet20", "resnet56")]
    assert min(of_plain56) > 10 > 1 > max(of_others)
    assert (len(of_plain56), len(of_others)) == (options.seeds, 3 * options.seeds)


@pytest.mark.parametrize(("epochs", "rates"), [(1, [1]), (2, [1, 0.1]), (4, [1, 1, 0.1, 0.01])])
def test_the_rate_falls_at_one_half_and_three_quarters(
    epochs: int, rates: list[float], degradation: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[float] = []
    step = torch.optim.SGD.step

    def noted(optimizer: torch.optim.SGD, *arguments: Any) -> Any:
        taken.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    degradation.train(8, True, 0, degradation.Settings(epochs=epochs, batch=64, rate=0.05, data=None, samples=64))
    assert taken == pytest.approx([0.05 * rate for rate in rates])
