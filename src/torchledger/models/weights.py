"""Load a checkpoint into a network: strictly, without running anything that the file may hold."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchledger.errors import UserError, close_matches, printable

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # what training scripts put a state dict under
EXTRA = "_extra_state"  # what a module may add to its state dict that is no tensor
LISTED = 5  # keys of a kind that an error lists before it says how many more there are
LONGEST = 80  # characters of a key in an error


def load_weights(model: nn.Module, path: str | PathLike[str], device: torch.device | str | None = None) -> None:
    """Load the checkpoint at `path` into `model`, or raise `UserError` and leave the model as it was.

    Every key, shape and kind of number must fit, but for BatchNorm's count of batches, which files of before 2018 have
    not. Floating-point tensors take the model's dtypes. A state dict may be wrapped, as in {"state_dict": ...}, and its
    keys may all start with "module.", as DataParallel writes them. What is loaded is the model's own: the file can be
    written over, and tensors that share memory in it do not in the model.

    Args:
        model: real, or on meta: then copies of the tensors in the file become its own.
        path: a `.safetensors` file, or one that `torch.save` wrote, which is read without running what it holds.
        device: where the tensors go; by default where the model is. On meta nothing is loaded: the file is compared.
    """
    target = torch.device(device) if device is not None else _device(model)
    found = read(path, values=target.type != "meta")
    own: dict[str, object] = model.state_dict(keep_vars=True)
    shown = f"weights '{printable(fspath(path))}'"
    if lazy := [key for key, value in own.items() if isinstance(value, Tensor) and is_lazy(value)]:
        raise UserError(f"{type(model).__name__} has no shapes yet ({_listing(lazy)}): run it once before it is loaded")
    if all(key.startswith("module.") for key in found) and not any(key.startswith("module.") for key in own):
        found = {key.removeprefix("module."): value for key, value in found.items()}
    counts = {key for key in own if key.endswith("num_batches_tracked")}
    missing = [key for key in own if key not in found and key not in counts]
    unexpected = [key for key in found if key not in own]
    both = [(key, found[key], value) for key, value in own.items() if key in found]
    misfits = [f"{key} ({said})" for key, value, wanted in both if (said := _misfit(value, wanted))]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another kind or shape", misfits))
    if wrong := [f"{len(keys)} {kind}: {_listing(keys)}" for kind, keys in kinds if keys]:
        hint = "" if misfits else _hint(missing, unexpected)
        raise UserError(f"{shown} do not fit {type(model).__name__}: {'; '.join(wrong)}.{hint}")
    if target.type == "meta":
        return
    ready: dict[str, object] = {
        key: torch.zeros_like(value, device=target)
        for key, value in own.items()
        if key in counts - found.keys() and isinstance(value, Tensor)
    }
    for key, value, wanted in both:
        if isinstance(value, Tensor) and isinstance(wanted, Tensor):
            value = value.detach().to(target, wanted.dtype, copy=True, memory_format=torch.contiguous_format)
        ready[key] = value
    model.load_state_dict(ready, assign=any(isinstance(value, Tensor) and value.is_meta for value in own.values()))


def _misfit(value: object, wanted: object) -> str:
    """Say how an entry of a file differs from what the network wants, or return an empty text."""
    if not isinstance(wanted, Tensor):
        return ""
    if not isinstance(value, Tensor):
        return "no tensor in the file"
    if value.is_nested:
        return "nested in the file"
    if value.shape != wanted.shape:
        return f"{_size(value)} in the file, {_size(wanted)} in the network"
    if value.layout != torch.strided or value.is_quantized:
        return f"{'quantised' if value.is_quantized else str(value.layout).removeprefix('torch.')} in the file"
    if _number(value.dtype) != _number(wanted.dtype):
        names = (str(dtype).removeprefix("torch.") for dtype in (value.dtype, wanted.dtype))
        return "{} in the file, {} in the network".format(*names)
    return "without values: it was saved from a model on meta" if value.is_meta else ""


def _number(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "bool"
    return "floating" if dtype.is_floating_point else "complex" if dtype.is_complex else "whole"


def read(path: str | PathLike[str], values: bool = True) -> dict[str, object]:
    """Return the state dict in a file, on the CPU, or raise `UserError`. Without `values` no weight need be read."""
    if not isinstance(path, str | PathLike):
        raise UserError(f"weights is {path!r}, expected the path of a file")
    shown = f"weights '{printable(fspath(path))}'"
    file = Path(path)
    try:
        if not fspath(path) or not file.is_file():
            near = [other.name for other in file.parent.iterdir() if other.is_file()] if file.parent.is_dir() else []
            folder = fspath(path) and file.is_dir()
            raise UserError(f"{shown} {'is a folder' if folder else f'is no file.{close_matches(file.name, near)}'}")
        with file.open("rb") as opened:
            start = opened.read(9)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{shown} cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    try:
        if start[8:] == b"{" or file.suffix.lower() == ".safetensors":
            content: object = _safetensors(file, values)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of layouts that are refused below
                # Mapped, a file's weights are read when they are copied; files of before torch 1.6 cannot be.
                content = torch.load(file, "cpu", weights_only=True, mmap=start.startswith(b"PK\x03\x04"))
    except pickle.UnpicklingError as error:
        text = start.strip()
        if text and text.isascii() and text.decode().isprintable():
            raise UserError(
                f"{shown} are text, not a checkpoint (it begins {text.decode()!r}): was the download a web page?"
            ) from error
        raise UserError(
            f"{shown} hold more than tensors, or no checkpoint at all: such a file could run code, and is not read. "
            "Save the state dict alone: torch.save(model.state_dict(), ...)"
        ) from error
    except Exception as error:  # readers raise what they like on a file that is cut off or of another kind
        reason = printable(str(error).split("\n")[0])[:200]
        if "weights_only" in reason:  # torch's advice is to run what the file holds
            reason = (
                "TorchScript, or a form of before torch 0.4; save the state dict: torch.save(model.state_dict(), ...)"
            )
        why = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
        raise UserError(f"{shown} hold no checkpoint that can be read ({why})") from error
    for _ in WRAPPERS:  # a state dict holds no dict; a wrapper may be wrapped, but not without end
        if isinstance(content, Mapping):
            inner = (content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping))
            content = next((found for found in inner if found), content)
    if not isinstance(content, Mapping) or not content:
        kind = "an empty dict" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise UserError(f"{shown} hold no state dict, but {kind}")
    strange = [
        str(key)
        for key, value in content.items()
        if not isinstance(key, str) or not (isinstance(value, Tensor) or key.endswith(EXTRA))
    ]
    if strange:
        verb = "are" if len(strange) > 1 else "is"
        raise UserError(f"{shown} hold no state dict: {_listing(strange)} {verb} no tensor")
    return dict(content)


def _safetensors(file: Path, values: bool) -> dict[str, object]:
    from safetensors import safe_open

    with safe_open(file, framework="pt", device="cpu") as opened:
        keys = list(opened.keys())
        if values:
            return {key: opened.get_tensor(key) for key in keys}
        # A stand-in of the right shape and kind of number, with a single element in memory.
        slices = {key: opened.get_slice(key) for key in keys}
        return {
            key: torch.zeros((), dtype=_stand_in(found.get_dtype())).expand(found.get_shape())
            for key, found in slices.items()
        }


def _stand_in(name: str) -> torch.dtype:
    """Return a dtype of the kind of number that safetensors calls `name`, such as BF16 or I64."""
    if name == "BOOL":
        return torch.bool
    return {"F": torch.float32, "B": torch.float32, "C": torch.complex64}.get(name[0], torch.int64)


def _device(model: nn.Module) -> torch.device:
    tensors = (value for value in model.state_dict().values() if isinstance(value, Tensor))
    return next((value.device for value in tensors), torch.device("cpu"))


def _size(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"


def _listing(names: Iterable[str]) -> str:
    shown = [printable(name) for name in names]
    more = f" and {len(shown) - LISTED} more" if len(shown) > LISTED else ""
    return ", ".join(name if len(name) <= LONGEST else f"{name[:LONGEST]}..." for name in shown[:LISTED]) + more


def _hint(missing: list[str], unexpected: list[str]) -> str:
    """Say which argument of the network would make the file fit, where one is plain."""
    heads = ("aux1.", "aux2.", "AuxLogits.")
    if unexpected and not missing and all(key.startswith(heads) for key in unexpected):
        return " The file has auxiliary heads: build the network with aux_logits=True."
    if missing and not unexpected and all(key.startswith(heads) for key in missing):
        return " The file has no auxiliary heads: build the network with aux_logits=False."
    return ""
