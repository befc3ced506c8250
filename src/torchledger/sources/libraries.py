"""torchvision:NAME and timm:NAME -> a model without weights, and inputs of the size that it is made for."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import re
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torchledger.errors import UserError, close_matches
from torchledger.sources.built import Example, MakeExample, of_size
from torchledger.sources.naming import describe

if TYPE_CHECKING:
    import torch
    from torch import nn

_EXTRAS = {"torchvision": "torchvision", "timm": "timm", "transformers": "hf"}
_IMAGE = 224  # pixels a side of ImageNet's crops, where neither the model nor its weights say another number
_FRAMES = 16  # of a clip: what most of torchvision's video networks are trained on; all of them take as many
_FLOW = (3, 520, 960)  # the frames of torchvision's own example of optical flow, multiples of 8
_schemas: list[torch.library.Library] = []  # kept: the schemas go with their library


def imported(package: str, module: str | None = None) -> ModuleType:
    """Import a package that torchledger does not depend on (or a module of it), or raise `UserError` with its extra."""
    complete_torchvision()
    try:
        return importlib.import_module(module or package)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise UserError(
                f"{package} is not installed: pip install 'torchledger[{_EXTRAS[package]}]'"
                + (", with the build that fits your torch" if package == "torchvision" else "")
            ) from error
        raise UserError(f"importing {package} failed: {describe(error)}") from error
    except Exception as error:
        raise UserError(f"importing {package} failed: {describe(error)}") from error


def complete_torchvision() -> None:
    """Let torchvision be imported where its compiled part does not fit torch (a CUDA wheel beside a CPU torch).

    It asks for the schemas of two operations, and gets them. What runs the operations is still missing, which a model
    on meta does not need. timm and transformers import torchvision as well.
    """
    import torch

    try:
        spec = importlib.util.find_spec("torchvision")
    except ValueError:  # imported by other means
        return
    if spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    try:
        for path in Path(spec.origin).parent.glob("_C.*"):
            torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(schema)  # type: ignore[no-untyped-call]
        _schemas.append(library)


@contextlib.contextmanager
def without_network(name: str) -> Iterator[None]:
    """Refuse connections while a library builds a model: a model's weights play no part, and none is downloaded."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise UserError(f"{name!r} asks for a download, and nothing is downloaded here: build it without weights")

    before = socket.getaddrinfo, socket.socket.connect
    socket.getaddrinfo, socket.socket.connect = refuse, refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        socket.getaddrinfo, socket.socket.connect = before  # type: ignore[method-assign]


def _refuse_weights(name: str, arguments: Mapping[str, object], *flags: str) -> None:
    for flag in flags:
        if arguments.get(flag) not in (None, False):
            raise UserError(
                f"{flag}={arguments[flag]!r} would download weights, and nothing is downloaded here: leave {flag} out"
                f" of {name!r}, or give a file with --weights"
            )


# ---- torchvision


def torchvision_builder(name: str, arguments: Mapping[str, object]) -> Callable[..., object]:
    """Return what builds torchvision's network `name` without weights. Raises `UserError` for an unknown name."""
    models = imported("torchvision", "torchvision.models")
    if name not in (known := models.list_models()):
        raise UserError(
            f"torchvision has no model {name!r}.{close_matches(name, known)} "
            "torchvision.models.list_models() lists its names."
        )
    _refuse_weights(f"torchvision:{name}", arguments, "weights", "weights_backbone")
    builder = models.get_model_builder(name)
    # A detector's backbone would come with weights of its own by default.
    none = dict.fromkeys({"weights", "weights_backbone"} & set(inspect.signature(builder).parameters))

    @functools.wraps(builder)
    def build(**given: object) -> object:
        with warnings.catch_warnings():
            # Two old networks warn that the values that they draw will change.
            warnings.filterwarnings("ignore", message="The default weight initialization")
            return builder(**{**given, **none})

    return build


def torchvision_example(name: str, model: nn.Module) -> MakeExample:
    """Return what makes inputs of the kind and size that torchvision's network `name` takes."""
    models = imported("torchvision", "torchvision.models")
    kind = models.get_model_builder(name).__module__.removeprefix("torchvision.models.").partition(".")[0]
    if kind == "detection":
        side = _detector_side(model)
        # A list of images, each with a size of its own: the batch is how many.
        return lambda batch, dtype: Example(([_on_meta((3, side, side), dtype) for _ in range(batch)],))
    if kind == "optical_flow":
        return of_size(_FLOW, _FLOW)
    own = getattr(model, "image_size", None)  # a vision transformer takes its own size only
    height, width = _pair(own) or _crop_size(models, name) or (_IMAGE, _IMAGE)
    return of_size((3, _FRAMES, height, width) if kind == "video" else (3, height, width))


def _detector_side(model: Any) -> int:
    """Return the side of a square that the detector's own transform leaves as it is."""
    fixed = model.transform.fixed_size
    return int(fixed[0] if fixed is not None else model.transform.min_size[-1])


def _crop_size(models: ModuleType, name: str) -> tuple[int, int] | None:
    """Return the size that the transforms of the default weights crop to, or resize to. Nothing is loaded."""
    default = getattr(models.get_model_weights(name), "DEFAULT", None)
    preset = {} if default is None else getattr(default.transforms, "keywords", {})
    return _pair(preset.get("crop_size")) or _pair(preset.get("resize_size"))


def _pair(size: object) -> tuple[int, int] | None:
    if isinstance(size, (tuple, list)) and size:
        return int(size[0]), int(size[-1])
    return (size, size) if isinstance(size, int) else None


def _on_meta(size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    import torch

    return torch.empty(size, dtype=dtype, device="meta")


# ---- timm


def timm_builder(name: str, arguments: Mapping[str, object]) -> Callable[..., object]:
    """Return what builds timm's model `name` (a tag of weights may follow) without weights, or raise `UserError`."""
    timm = imported("timm")
    architecture, _, tag = name.partition(".")
    if not re.fullmatch(r"\w+", architecture) or not timm.is_model(architecture):
        raise UserError(
            f"timm has no model {name!r}.{close_matches(architecture, timm.list_models())} "
            "timm.list_models() lists its names."
        )
    if tag and name not in (tagged := timm.list_pretrained(f"{architecture}.*")):
        raise UserError(f"timm's {architecture} has no tag {tag!r}.{close_matches(name, tagged)} Or leave the tag out.")
    _refuse_weights(f"timm:{name}", arguments, "pretrained", "checkpoint_path", "pretrained_cfg")
    create = timm.create_model

    def build(**given: object) -> object:
        return create(name, **{**given, "pretrained": False})

    return build


def timm_example(model: Any, arguments: Mapping[str, object]) -> MakeExample | None:
    """Return what makes an image of the size in default_cfg, or of the arguments `in_chans` and `img_size`."""
    size = (getattr(model, "default_cfg", None) or {}).get("input_size")
    if not isinstance(size, (tuple, list)) or not size:
        return None
    channels, *pixels = size
    if isinstance(arguments.get("in_chans"), int):
        channels = arguments["in_chans"]
    if (given := _pair(arguments.get("img_size"))) is not None:
        pixels = list(given)
    return of_size((channels, *pixels))
