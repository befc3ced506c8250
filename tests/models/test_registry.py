"""The registry: complete, torch-free to read, and helpful about a wrong name."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from torchledger.errors import UserError
from torchledger.models import registry

ARTICLE = ("article_alexnet", "article_vgg16", "article_inception", "article_basicblock")


def test_names() -> None:
    assert registry.names() == ARTICLE
    assert all(registry.entry(name).name == name for name in ARTICLE)


@pytest.mark.parametrize("name", registry.names())
def test_every_entry_builds_and_takes_its_input_size(name: str) -> None:
    entry = registry.entry(name)
    with torch.device("meta"):
        model = registry.build(name).eval()
    assert type(model) is entry.load()
    assert model(torch.empty(1, *entry.input_size, device="meta")).shape[0] == 1


def test_build_passes_arguments() -> None:
    with torch.device("meta"):
        model: Any = registry.build("article_alexnet", num_classes=10)
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
        registry.build("zzz")


def test_reading_the_registry_does_not_import_torch() -> None:
    code = (
        "import sys; from torchledger.models import registry; from torchledger import sources; registry.names();"
        " registry.entry('article_vgg16'); sources.resolve('article_vgg16'); sources.resolve('a.b:C');"
        " sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
