"""The registry: complete, torch-free to read, and helpful about a wrong name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from torchledger import Ledger, models
from torchledger.cli import main
from torchledger.errors import UserError
from torchledger.models import registry

ARTICLE = ("article_alexnet", "article_vgg16", "article_inception", "article_basicblock")


FAMILIES = """
    alexnet alexnet_2012 vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn googlenet_v1 googlenet inception_v2
    inception_v3 inception_v4 resnet18 resnet34 resnet50 resnet101 resnet152 resnet20 resnet32 resnet44 resnet56
    resnet110 resnet1202 plain20 plain32 plain44 plain56 plain110 plain1202
""".split()


def test_names() -> None:
    assert registry.names() == (*FAMILIES, *ARTICLE) == models.names()
    assert all(registry.entry(name).name == name for name in registry.names())


@pytest.mark.parametrize("name", registry.names())
def test_stat_of_every_name(name: str, tmp_path: Path) -> None:
    """No operation is unknown (`--strict` would exit with 3), and the figures are those of figures.json."""
    file = tmp_path / "net.json"
    with pytest.raises(SystemExit) as done:
        main(["stat", name, "--strict", "--format", "json", "--output", str(file)])
    assert not done.value.code
    ledger = Ledger.load(file)
    assert ledger.unknown == {}
    totals = ledger.totals()
    assert {"params": totals["params"], "macs": totals["macs"]} == vars(registry.figures()[name])
    assert totals["priced"] > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_arguments_that_every_network_takes(name: str) -> None:
    with torch.device("meta"):
        model = models.build(name, num_classes=7, in_channels=5, dropout=0.0, init=False).train()
    size = registry.entry(name).input_size_for({"in_channels": 5})
    made = model(torch.empty(2, *size, device="meta"))
    for logits in [made] if isinstance(made, torch.Tensor) else made:
        assert logits.shape == (2, 7)
    for wrong, value in (("num_classes", 0), ("in_channels", -1), ("num_classes", 2.5), ("in_channels", True)):
        with pytest.raises(UserError, match=f"{wrong} is {value}, expected a whole number from 1"):
            models.build(name, **{wrong: value})


@pytest.mark.parametrize("name", FAMILIES)
def test_accuracies_have_a_source(name: str) -> None:
    entry = registry.entry(name)
    assert (entry.top1 is None) == (entry.top1_source == "")
    if entry.weights.startswith("torchvision"):
        import torchvision.models

        weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
        assert entry.top1 == weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]


def test_arguments_that_a_network_has_not_are_named() -> None:
    with pytest.raises(
        UserError, match=r"'resnet18' takes no argument 'num_clases': it accepts num_classes, .*\. Did you"
    ):
        models.build("resnet18", num_clases=3)
    with pytest.raises(UserError, match="'article_basicblock' takes no argument 'num_classes'"):
        models.build("article_basicblock", num_classes=3)


def test_build_passes_arguments() -> None:
    with torch.device("meta"):
        model: Any = models.build("article_alexnet", num_classes=10)
    assert model.classifier[6].out_features == 10


def test_input_size_follows_in_channels() -> None:
    entry = registry.entry("article_inception")
    assert entry.input_size_for({}) == (3, 224, 224)
    assert entry.input_size_for({"in_channels": 192}) == (192, 224, 224)


def test_unknown_name_gives_close_matches_and_choices() -> None:
    with pytest.raises(UserError, match=r"unknown model 'article_alexnt'\. Did you mean 'article_alexnet'") as caught:
        registry.entry("article_alexnt")
    assert all(name in str(caught.value) for name in ARTICLE)
    with pytest.raises(UserError, match="unknown model 'zzz'"):
        models.build("zzz")
    for wrong in (None, []):
        with pytest.raises(UserError, match="unknown model"):
            models.build(wrong)  # type: ignore[arg-type]


def test_reading_the_registry_does_not_import_torch() -> None:
    code = (
        "import sys; from torchledger.models import registry; from torchledger import sources; registry.names();"
        " registry.entry('article_vgg16'); sources.resolve('article_vgg16'); sources.resolve('a.b:C');"
        " sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
