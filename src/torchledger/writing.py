"""Files are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path

from torchledger.errors import UserError

# What the shell has opened already: /dev/stdout, and the /dev/fd/63 of >(command).
_OPENED = re.compile(r"/dev/(?:(?P<name>stdout|stderr)|fd/(?P<number>\d{1,9}))|/proc/self/fd/(?P<same>\d{1,9})")
_NUMBERS = {"stdout": 1, "stderr": 2}


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Return where `path` leads. Raise UserError where that is a folder, or its folder is missing."""
    if path == "":
        raise UserError("cannot write '': name a file")
    if (opened := _opened(path)) is not None:
        try:
            os.fstat(opened)
        except OSError as error:
            raise UserError(f"cannot write {os.fspath(path)!r}: {error.strerror}") from error
        return Path(os.fsdecode(path))
    try:
        target = Path(os.path.realpath(os.fsdecode(path)))  # a link stays a link: what it points to is replaced
    except (TypeError, ValueError) as error:
        raise UserError(f"{path!r} is no path of a file: {error}") from error
    shown = repr(os.fspath(path))
    try:
        if not target.parent.is_dir():
            raise UserError(f"cannot write {shown}: there is no folder {str(target.parent)!r}; make it first")
        if target.is_dir():
            raise UserError(f"cannot write {shown}: it is a folder; name a file in it")
        if target.is_symlink():
            raise UserError(f"cannot write {shown}: it is a link to itself")
        target.exists()
    except OSError as error:  # a name that is too long, for one
        raise UserError(f"cannot write {shown}: {error.strerror}") from error
    return target


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write text or bytes to `path` so that a file there is replaced whole or stays as it was.

    Raise UserError where the folder is missing or cannot be written to.
    """
    data = content.encode("utf-8", errors="replace") if isinstance(content, str) else content
    target = check_writable(path)
    shown = repr(os.fspath(path))
    temporary = None
    try:
        if (opened := _opened(path)) is not None:
            with open(os.dup(opened), "wb") as file:  # goes on where the shell is, and replaces nothing
                file.write(data)
            return
        if target.exists() and not target.is_file():
            target.write_bytes(data)  # a device or a pipe
            return
        name = f".{target.name[:100]}.{secrets.token_hex(4)}.tmp"
        descriptor = os.open(target.parent / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        temporary = target.parent / name
        with open(descriptor, "wb") as file:
            file.write(data)
        if target.exists():
            os.chmod(temporary, target.stat().st_mode & 0o7777)
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise UserError(f"cannot write {shown}: {error.strerror}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _opened(path: str | os.PathLike[str]) -> int | None:
    """Return the number of the open file that a path stands for, None for one of a file's own."""
    try:
        found = _OPENED.fullmatch(os.path.normpath(os.fsdecode(path)))
    except (TypeError, ValueError):
        return None
    if found is None:
        return None
    return _NUMBERS[found["name"]] if found["name"] else int(found["number"] or found["same"])
