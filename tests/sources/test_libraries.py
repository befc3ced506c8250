"""torchvision:NAME and timm:NAME: the networks themselves, without weights, and inputs of the kind that each takes."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from torchledger import analyze
from torchledger.errors import UserError
from torchledger.sources import build, resolve
from torchledger.sources.libraries import imported, without_network


def sizes(text: str, arguments: dict[str, object] | None = None, batch: int = 1) -> Any:
    """Return the inputs of a source: sizes of one sample, or sizes of the tensors in a list."""
    built = build(resolve(text), arguments, device="meta")
    assert built.on_meta and built.example is not None
    example = built.example(batch, torch.float32)
    assert not example.kwargs
    return [[tuple(t.shape) for t in arg] if isinstance(arg, list) else arg for arg in example.args]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", [(3, 224, 224)]),
        ("inception_v3", [(3, 299, 299)]),  # its weights' transforms crop to 299
        ("efficientnet_b1", [(3, 240, 240)]),  # the default weights are the second ones, which crop to 240
        ("vit_b_32", [(3, 224, 224)]),
        ("vit_h_14", [(3, 224, 224)]),  # not the 518 of its default weights: it is built for 224 without them
        ("lraspp_mobilenet_v3_large", [(3, 520, 520)]),
        ("r3d_18", [(3, 16, 112, 112)]),
        ("mvit_v2_s", [(3, 16, 224, 224)]),
        ("raft_small", [(3, 520, 960), (3, 520, 960)]),
        ("ssd300_vgg16", [[(3, 300, 300)]]),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", [[(3, 320, 320)]]),
        ("fasterrcnn_resnet50_fpn", [[(3, 800, 800)]]),
    ],
)
def test_torchvision_inputs(name: str, expected: object) -> None:
    assert sizes(f"torchvision:{name}") == expected


def test_inputs_follow_the_arguments_and_the_batch() -> None:
    assert sizes("torchvision:vit_b_32", {"image_size": 96}) == [(3, 96, 96)]
    assert sizes("torchvision:ssd300_vgg16", batch=2) == [[(3, 300, 300)] * 2]  # one image a sample, in a list


def test_torchvision_models_take_their_inputs() -> None:
    # published as 40.697, 4.089 and 24.48 GMACs ("_ops" of the weights; a pixel of the last is upsampled, not counted)
    for name, macs in (("r3d_18", 40.697), ("resnet50", 4.089)):
        built = build(resolve(f"torchvision:{name}"), device="meta")
        assert built.example is not None
        ledger = analyze(built.model, *built.example(1, torch.float32).args)
        assert round(ledger.totals()["macs"] / 1e9, 3) == macs


def test_detector_comes_without_the_weights_of_its_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    # By torchvision's default the backbone's weights are downloaded. A build that tried would fail here.
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("a download"))
    assert build(resolve("torchvision:retinanet_resnet50_fpn"), device="meta").on_meta


def test_timm_inputs() -> None:
    assert sizes("timm:vit_base_patch16_224") == [(3, 224, 224)]
    assert sizes("timm:vit_tiny_patch16_384") == [(3, 384, 384)]
    assert sizes("timm:efficientnet_b3.ra2_in1k") == [(3, 288, 288)]
    assert sizes("timm:vit_tiny_patch16_224", {"img_size": 96, "in_chans": 1}) == [(1, 96, 96)]
    built = build(resolve("timm:vit_base_patch16_224"), {"num_classes": 10}, device="meta")
    assert built.example is not None
    ledger = analyze(built.model, *built.example(2, torch.float32).args, batch=2)
    # 85,798,656 of the trunk (timm's count) and 768 x 10 + 10 of the head
    assert ledger.totals()["params"] == 85_798_656 + 7_690


@pytest.mark.parametrize(
    ("text", "arguments", "match"),
    [
        ("torchvision:", {}, "'torchvision:' names no model: write torchvision:resnet50, for example"),
        ("torchvision:resnet5O", {}, "torchvision has no model 'resnet5O'. Did you mean 'resnet50'"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "weights='DEFAULT' would download weights.*--weights"),
        ("torchvision:resnet18", {"num_clases": 3}, r"building resnet18\(num_clases=3\) failed: TypeError"),
        ("torchvision:resnet18", {"a.b": 3}, "argument 'a.b' has a dot: only a config's fields, of hf:, have parts"),
        ("torchvision:fasterrcnn_resnet50_fpn", {"weights_backbone": "DEFAULT"}, "weights_backbone='DEFAULT' would"),
    ],
)
def test_errors(text: str, arguments: dict[str, object], match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        build(resolve(text), arguments, device="meta")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "arguments", "match"),
    [
        (
            "timm:vit_bse_patch16_224",
            {},
            "timm has no model 'vit_bse_patch16_224'. Did you mean 'vit_base_patch16_224'",
        ),
        ("timm:resnet50.a9_in1k", {}, "timm's resnet50 has no tag 'a9_in1k'. Did you mean 'resnet50"),
        ("timm:hf-hub:timm/resnet50", {}, "timm has no model 'hf-hub:timm/resnet50'"),
        ("timm:resnet50", {"pretrained": True}, "pretrained=True would download weights"),
        ("timm:resnet50", {"checkpoint_path": "/x"}, "checkpoint_path='/x' would download weights"),
    ],
)
def test_errors_of_timm(text: str, arguments: dict[str, object], match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        build(resolve(text), arguments, device="meta")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("package", "extra"), [("torchvision", "torchvision"), ("timm", "timm"), ("transformers", "hf")]
)
def test_package_that_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    import importlib

    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(UserError, match=rf"{package} is not installed: pip install 'torchledger\[{extra}\]'"):
        imported(package)


def test_nothing_is_downloaded_and_the_network_is_back_afterwards() -> None:
    before = socket.getaddrinfo, socket.socket.connect
    with pytest.raises(UserError, match="'x' asks for a download"), without_network("x"):
        torch.hub.load_state_dict_from_url("http://localhost:9/weights.pth", "/nonexistent", progress=False)
    assert (socket.getaddrinfo, socket.socket.connect) == before


def test_torchvision_whose_compiled_part_does_not_fit(tmp_path: Path) -> None:
    # A stand-in that asks for its schema when it is imported, as torchvision does, and has no library that loads.
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "_C.so").write_bytes(b"no library")
    (package / "__init__.py").write_text(
        "import torch\ntorch.library.register_fake('torchvision::nms')(lambda *a: a)\n"
    )
    code = "from torchledger.sources.libraries import imported; print(imported('torchvision').__name__)"
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.stdout, run.returncode) == ("torchvision\n", 0), run.stderr
