"""Load a checkpoint into a network: strictly, without running anything that the file may hold."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from pathlib import Path

import torch
from torch import Tensor, nn

from torchledger.errors import UserError, close_matches, printable

# What training scripts wrap a state dict in.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
LISTED = 5  # keys of a kind that an error lists before it says how many more there are


def load_weights(model: nn.Module, path: str | PathLike[str], device: torch.device | str | None = None) -> None:
    """Load the checkpoint at `path` into `model`, or raise `UserError` and leave the model as it was.

    Every key and shape must fit, but for BatchNorm's count of batches, which files of before 2018 have not. Floating
    point tensors take the model's dtypes. A state dict may be wrapped, as in {"state_dict": ...}, and its keys may all
    start with "module.", as DataParallel writes them.

    Args:
        model: real, or on meta: then the tensors of the file become its own.
        path: a `.safetensors` file, or one that `torch.save` wrote, which is read without running what it holds.
        device: where the tensors go; by default where the model is. On meta shapes alone are read and compared.
    """
    target = torch.device(device) if device is not None else _device(model)
    found = read(path, target)
    own = model.state_dict(keep_vars=True)
    shown = printable(fspath(path))
    if found and all(key.startswith("module.") for key in found) and not any(key.startswith("module.") for key in own):
        found = {key.removeprefix("module."): value for key, value in found.items()}
    counts = {key for key in own if key.endswith("num_batches_tracked")}
    missing = [key for key in own if key not in found and key not in counts]
    unexpected = [key for key in found if key not in own]
    misshapen = [
        f"{key} ({_size(found[key])} in the file, {_size(value)} in the network)"
        for key, value in own.items()
        if key in found and found[key].shape != value.shape
    ]
    said = [
        f"{len(keys)} {kind}: {_listing(keys)}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if keys
    ]
    if said:
        raise UserError(
            f"{shown!r} does not fit {type(model).__name__}: {'; '.join(said)}.{_hint(missing, unexpected, misshapen)}"
        )
    if target.type == "meta":
        return
    for key in counts - found.keys():
        found[key] = torch.zeros_like(own[key], device=target)
    for key, value in found.items():
        dtype = own[key].dtype
        found[key] = value.to(dtype) if value.is_floating_point() and dtype.is_floating_point else value
    on_meta = any(value.is_meta for value in own.values())
    model.load_state_dict(found, assign=on_meta)


def read(path: str | PathLike[str], device: torch.device) -> dict[str, Tensor]:
    """Return the state dict in a file, or raise `UserError`. On meta no weight is read."""
    file = Path(path)
    shown = printable(str(file))
    if not file.is_file():
        near = [other.name for other in file.parent.iterdir() if other.is_file()] if file.parent.is_dir() else []
        what = "is a folder" if file.is_dir() else f"is no file.{close_matches(file.name, sorted(near))}"
        raise UserError(f"weights {shown!r} {what}")
    content: object
    try:
        content = _safetensors(file, device) if file.suffix == ".safetensors" else _torch_file(file, device)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"weights {shown!r} hold more than tensors, or no checkpoint at all: such a file could run code, and is"
            f" not read. Save the state dict alone: torch.save(model.state_dict(), ...)"
        ) from error
    except Exception as error:  # readers raise what they like on a file that is cut off or of another kind
        reason = printable(str(error).split("\n")[0])[:200]
        raise UserError(f"weights {shown!r} cannot be read: {type(error).__name__}: {reason}") from error
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"weights {shown!r} hold no state dict, but {_kind(content)}")
    strange = [str(key) for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if strange:
        raise UserError(
            f"weights {shown!r} hold no state dict: {_listing(strange)} {'are' if len(strange) > 1 else 'is'} no tensor"
        )
    return dict(content)


def _safetensors(file: Path, device: torch.device) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(file, framework="pt", device="cpu" if device.type == "meta" else str(device)) as opened:
        if device.type == "meta":
            return {key: torch.empty(opened.get_slice(key).get_shape(), device=device) for key in opened.keys()}  # noqa: SIM118
        return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118


def _torch_file(file: Path, device: torch.device) -> object:
    with file.open("rb") as opened:
        zipped = opened.read(4) == b"PK\x03\x04"
    return torch.load(file, map_location=device, weights_only=True, mmap=zipped and device.type in ("cpu", "meta"))


def _device(model: nn.Module) -> torch.device:
    return next((value.device for value in model.state_dict().values()), torch.device("cpu"))


def _kind(content: object) -> str:
    if isinstance(content, Mapping):
        return f"a dict of {_listing(map(str, content))}" if content else "an empty dict"
    return f"a {type(content).__name__}"


def _size(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"


def _listing(names: Iterable[str]) -> str:
    shown = [printable(name) for name in names]
    more = f" and {len(shown) - LISTED} more" if len(shown) > LISTED else ""
    return ", ".join(shown[:LISTED]) + more


def _hint(missing: list[str], unexpected: list[str], misshapen: list[str]) -> str:
    """Say which argument of the network would make the file fit, where one is plain."""
    heads = ("aux1.", "aux2.", "AuxLogits.")
    if not misshapen and unexpected and not missing and all(key.startswith(heads) for key in unexpected):
        return " The file has auxiliary heads: build the network with aux_logits=True."
    if not misshapen and missing and not unexpected and all(key.startswith(heads) for key in missing):
        return " The file has no auxiliary heads: build the network with aux_logits=False."
    return ""
