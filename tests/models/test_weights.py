"""Checkpoints load strictly, from both kinds of file, run nothing, and what does not fit is said in one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from torchledger.errors import UserError
from torchledger.models import build
from torchledger.models.weights import load_weights


def small() -> nn.Module:
    return build("resnet20", init=False)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {key: value.clone() for key, value in small().state_dict().items()}


def saved(path: Path, state: dict[str, Tensor], **wrapped: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({**wrapped, "state_dict": state} if wrapped else state, path)
    return path


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth", "net.pt"])
def test_weights_load(name: str, tmp_path: Path, state: dict[str, Tensor]) -> None:
    file = saved(tmp_path / name, state)
    model = build("resnet20", weights=file)
    assert same(model.state_dict(), state)
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())
    ready = small()
    load_weights(ready, file)
    assert same(ready.state_dict(), state)


def test_weights_of_the_old_format_load(tmp_path: Path, state: dict[str, Tensor]) -> None:
    file = tmp_path / "old.pth"
    torch.save(state, file, _use_new_zipfile_serialization=False)
    assert same(build("resnet20", weights=file).state_dict(), state)
    with torch.device("meta"):
        load_weights(small(), file)


def test_wrapped_and_prefixed_weights_load(tmp_path: Path, state: dict[str, Tensor]) -> None:
    wrapped = {f"module.{key}": value for key, value in state.items()}
    assert same(build("resnet20", weights=saved(tmp_path / "net.pth", wrapped, epoch=3)).state_dict(), state)


def test_counts_of_batches_may_be_missing(tmp_path: Path, state: dict[str, Tensor]) -> None:
    before = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    model = build("resnet20", weights=saved(tmp_path / "net.safetensors", before))
    assert same(model.state_dict(), state)


def test_half_precision_takes_the_models_dtype(tmp_path: Path, state: dict[str, Tensor]) -> None:
    halved = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    model = build("resnet20", weights=saved(tmp_path / "net.safetensors", halved))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth"])
def test_on_meta_weights_are_compared_and_not_read(name: str, tmp_path: Path, state: dict[str, Tensor]) -> None:
    file = saved(tmp_path / name, state)
    with torch.device("meta"):
        model = small()
    load_weights(model, file)
    assert all(value.is_meta for value in model.state_dict().values())
    del state["linear.bias"]
    with pytest.raises(UserError, match=r"1 missing: linear\.bias"):
        load_weights(model, saved(tmp_path / name, state))


def test_what_does_not_fit_is_one_error_and_changes_nothing(tmp_path: Path, state: dict[str, Tensor]) -> None:
    state["linear.weight"] = torch.zeros(7, 64)
    state["extra"] = torch.zeros(1)
    del state["conv1.weight"]
    file = saved(tmp_path / "net.pth", state)
    model = small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(model, file)
    said = str(caught.value)
    assert "do not fit CifarResNet: 1 missing: conv1.weight; 1 unexpected: extra; 1 of another kind or shape: " in said
    assert "linear.weight (7x64 in the file, 10x64 in the network)" in said and "\n" not in said
    assert same(model.state_dict(), before)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_text_and_a_script_are_told_from_a_checkpoint(tmp_path: Path) -> None:
    page = tmp_path / "page.pth"
    for text in ("<!doctype html><title>404</title>", "\n <!doctype html>\n"):
        page.write_text(text)
        said = r"are text, not a checkpoint \(it begins '<!doc.*'\): was the download a web page\?$"
        with pytest.raises(UserError, match=said):
            build("resnet20", weights=page)
    script = tmp_path / "script.pt"
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), script)
    with pytest.raises(UserError, match=r"hold no checkpoint .*TorchScript, .* save the state dict"):
        build("resnet20", weights=script)


def test_many_keys_are_counted(tmp_path: Path) -> None:
    file = saved(tmp_path / "net.pth", {"a": torch.zeros(1)})
    with pytest.raises(UserError, match=r"\d+ missing: conv1\.weight, .* and \d+ more; 1 unexpected: a"):
        build("resnet20", weights=file)


def test_heads_are_named_where_they_are_the_difference(tmp_path: Path) -> None:
    with_heads = build("googlenet", num_classes=2, init=False).state_dict()
    file = saved(tmp_path / "net.safetensors", {key: value.clone() for key, value in with_heads.items()})
    with pytest.raises(UserError, match="The file has auxiliary heads: build the network with aux_logits=True"):
        build("googlenet", weights=file, num_classes=2, aux_logits=False)
    without = {key: value.clone() for key, value in with_heads.items() if not key.startswith("aux")}
    with pytest.raises(UserError, match="The file has no auxiliary heads: build the network with aux_logits=False"):
        build("googlenet", weights=saved(tmp_path / "bare.safetensors", without), num_classes=2)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_input_convention_of_published_weights_is_set(name: str, tmp_path: Path) -> None:
    made: Any = build(name, num_classes=2, aux_logits=False, init=False)
    assert made.transform_input is False
    file = saved(tmp_path / "net.safetensors", {key: value.clone() for key, value in made.state_dict().items()})
    loaded: Any = build(name, weights=file, num_classes=2, aux_logits=False)
    assert loaded.transform_input is True
    own: Any = build(name, weights=file, num_classes=2, aux_logits=False, transform_input=False)
    assert own.transform_input is False


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was-here",)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Evil()}, "evil.pth")
    with pytest.raises(UserError, match=r"'evil\.pth' hold more than tensors.*could run code"):
        build("resnet20", weights="evil.pth")
    assert not Path("was-here").exists()


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off", b"\x80\x02."])
def test_a_file_of_another_kind_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"weights .*net") as caught:
        build("resnet20", weights=tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch.zeros(3), "hold no state dict, but a Tensor"),
        ([1, 2], "hold no state dict, but a list"),
        ({}, "hold no state dict, but an empty dict"),
        ({"epoch": 3}, "hold no state dict: epoch is no tensor"),
        ({"state_dict": {}}, "hold no state dict: state_dict is no tensor"),
        ({"a": torch.zeros(1), "b": 3}, "hold no state dict: b is no tensor"),
    ],
)
def test_what_is_no_state_dict_is_said(content: object, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(UserError, match=said):
        build("resnet20", weights=tmp_path / "net.pth")


def test_a_missing_file_gives_close_matches(tmp_path: Path, state: dict[str, Tensor]) -> None:
    saved(tmp_path / "resnet20.pth", state)
    with pytest.raises(UserError, match=r"is no file\. Did you mean 'resnet20\.pth'"):
        build("resnet20", weights=tmp_path / "resnet2.pth")
    with pytest.raises(UserError, match="is a folder"):
        build("resnet20", weights=tmp_path)


def test_a_loaded_network_is_its_own(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """The file can be written over, and what shares memory in it does not in the network."""
    for name in ("net.pth", "net.safetensors"):
        file = saved(tmp_path / name, state)
        model = build("resnet20", weights=file)
        saved(file, {key: value.clone() for key, value in model.state_dict().items()})
        saved(file, {key: torch.zeros_like(value) for key, value in state.items()})
        assert same(model.state_dict(), state)
    state["layer1.0.conv1.weight"] = state["layer1.0.conv2.weight"]
    state["linear.weight"] = torch.ones(1, 1).expand(10, 64)
    state["bn1.running_mean"].requires_grad_()
    tied: Any = build("resnet20", weights=saved(tmp_path / "tied.pth", state))
    block = tied.layer1[0]
    assert block.conv1.weight.data_ptr() != block.conv2.weight.data_ptr()
    assert tied.linear.weight.is_contiguous() and not tied.bn1.running_mean.requires_grad
    tied(torch.randn(2, 3, 8, 8)).sum().backward()


STRANGE = [
    ("conv1.weight", lambda value: value.to(torch.complex64), "complex64 in the file, float32 in the network"),
    ("conv1.weight", lambda value: value.long(), "int64 in the file, float32 in the network"),
    ("bn1.running_mean", lambda value: value > 0, "bool in the file, float32 in the network"),
    ("bn1.num_batches_tracked", lambda value: value.double(), "float64 in the file, int64 in the network"),
    ("linear.weight", lambda value: torch.nested.nested_tensor([value]), "nested in the file"),
    ("linear.weight", lambda value: value.to_sparse(), "sparse_coo in the file"),
    ("linear.weight", lambda value: value.to_sparse_csr(), "sparse_csr in the file"),
    ("linear.weight", lambda value: value.to("meta"), "without values: it was saved from a model on meta"),
    ("linear.weight", lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "quantised in the file"),
]


@pytest.mark.parametrize(("key", "change", "said"), STRANGE, ids=[said for *_, said in STRANGE])
@pytest.mark.filterwarnings("ignore")  # torch's own, of such tensors
def test_tensors_of_another_kind_are_refused_and_change_nothing(
    key: str, change: Any, said: str, tmp_path: Path, state: dict[str, Tensor]
) -> None:
    file = saved(tmp_path / "net.pth", {name: value + 1 for name, value in state.items()} | {key: change(state[key])})
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.device("meta"):
        on_meta = small()
    for network in (model, on_meta):
        with pytest.raises(UserError) as caught:
            load_weights(network, file)
        assert f"1 of another kind or shape: {key} ({said})" in str(caught.value)
    assert same(model.state_dict(), before)


def test_kinds_of_numbers_are_compared_without_values(tmp_path: Path, state: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        model = small()
    halved = {key: value.bfloat16() if value.is_floating_point() else value for key, value in state.items()}
    load_weights(model, saved(tmp_path / "half.safetensors", halved))
    for dtype in (torch.int32, torch.bool, torch.uint8):
        state["conv1.weight"] = torch.zeros(16, 3, 3, 3, dtype=dtype)
        with pytest.raises(UserError, match=r"conv1\.weight .* in the file, float32 in the network"):
            load_weights(model, saved(tmp_path / "net.safetensors", state))


def test_wrappers_of_training_scripts(tmp_path: Path, state: dict[str, Tensor]) -> None:
    whole: dict[str, Any] = {"epoch": 1, "state_dict": state, "best_acc1": torch.tensor(76.1), "optimizer": {}}
    torch.save(whole, tmp_path / "imagenet.pth")
    torch.save({"state_dict": {}, "model": {"net": state}}, tmp_path / "deep.pth")
    for name in ("imagenet.pth", "deep.pth"):
        assert same(build("resnet20", weights=tmp_path / name).state_dict(), state)
    cycle: dict[str, Any] = {}
    cycle["state_dict"] = cycle
    torch.save(cycle, tmp_path / "cycle.pth")
    with pytest.raises(UserError, match="state_dict is no tensor"):
        build("resnet20", weights=tmp_path / "cycle.pth")


def test_kind_of_file_is_told_by_its_content(tmp_path: Path, state: dict[str, Tensor]) -> None:
    saved(tmp_path / "net.safetensors", state).rename(tmp_path / "net.pth")
    assert same(build("resnet20", weights=tmp_path / "net.pth").state_dict(), state)


def test_what_a_module_adds_to_its_state_loads(tmp_path: Path) -> None:
    class Counting(nn.Linear):
        seen = 0

        def get_extra_state(self) -> dict[str, int]:
            return {"seen": self.seen}

        def set_extra_state(self, state: dict[str, int]) -> None:
            self.seen = state["seen"]

    model, other = Counting(2, 2), Counting(2, 2)
    model.seen = 3
    torch.save(model.state_dict(), tmp_path / "net.pth")
    load_weights(other, tmp_path / "net.pth")
    assert other.seen == 3 and torch.equal(other.weight, model.weight)


def test_a_lazy_model_has_nothing_to_compare_with(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"LazyLinear has no shapes yet \(weight, bias\): run it once"):
        load_weights(nn.LazyLinear(2), tmp_path / "net.pth")


def test_errors_stay_short(tmp_path: Path) -> None:
    torch.save({"k" * 100_000: torch.zeros(1), "\x1b[31m": torch.zeros(1)}, tmp_path / "net.pth")
    with pytest.raises(UserError) as caught:
        build("resnet20", weights=tmp_path / "net.pth")
    assert len(str(caught.value)) < 600 and "kkk..., \\x1b[31m" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("", "weights '' is no file"),
        ("x" * 5000, "cannot be opened: File name too long"),
        ("nul\x00x", r"weights 'nul\\x00x' (is no file|cannot be opened)"),
        (3, "weights is 3, expected the path of a file"),
        (b"x", "weights is b'x', expected the path of a file"),
    ],
)
def test_paths_that_are_none(path: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        build("resnet20", weights=path)


def test_weights_for_other_channels_rescale_nothing(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"num_classes": 2, "aux_logits": False, "in_channels": 1}
    torch.save(build("googlenet", init=False, **arguments).state_dict(), tmp_path / "net.pth")
    loaded: Any = build("googlenet", weights=tmp_path / "net.pth", **arguments)
    assert loaded.transform_input is False
