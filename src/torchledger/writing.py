"""Files are written whole or not at all, and packed by gzip where their name ends in .gz."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import re
import secrets
import zlib
from pathlib import Path

from torchledger.errors import UserError

# What the shell has opened already: /dev/stdout, and the /dev/fd/63 of >(command).
_OPENED = re.compile(r"/dev/(?:(?P<name>stdout|stderr)|fd/(?P<number>\d{1,9}))|/proc/self/fd/(?P<same>\d{1,9})")
_NUMBERS = {"stdout": 1, "stderr": 2}

_GZIP = b"\x1f\x8b"  # how such a file begins
# A ledger packs to a tenth or so; a file that is made to fill the memory packs to a thousandth.
LARGEST_RATIO = 100
ALWAYS_UNPACKED = 2**26  # bytes


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

    Packed by gzip where `path` ends in .gz, without a name or a time, so that the same content gives the same file.
    Raise UserError where the folder is missing or cannot be written to.
    """
    data = content.encode("utf-8", errors="replace") if isinstance(content, str) else content
    target = check_writable(path)
    if os.fsdecode(path).lower().endswith(".gz"):
        data = gzip.compress(data, 6, mtime=0)  # 9 takes three times as long for a file as large
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


def read_whole(path: str | os.PathLike[str]) -> bytes:
    """Read a file, and unpack it where it begins as gzip does, whatever its name. Raise UserError where that fails."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {os.fspath(path)!r}: {error.strerror}") from error
    except (TypeError, ValueError) as error:  # no path at all, or one with a null in it
        raise UserError(f"{path!r} is no path of a file: {error}") from error
    return _unpacked(data, repr(os.fspath(path))) if data.startswith(_GZIP) else data


def _unpacked(data: bytes, shown: str) -> bytes:
    limit, size, parts = max(LARGEST_RATIO * len(data), ALWAYS_UNPACKED), 0, []
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while size <= limit and (part := file.read(2**20)):
                size += len(part)
                parts.append(part)
    except EOFError as error:
        raise UserError(f"{shown} is a gzip file that is cut off; save it again") from error
    except (OSError, zlib.error) as error:
        raise UserError(f"{shown} is a damaged gzip file ({error}); save it again") from error
    if size > limit:
        raise UserError(f"{shown} unpacks to more than {LARGEST_RATIO} times its size, as no ledger does: not read")
    return b"".join(parts)


def _opened(path: str | os.PathLike[str]) -> int | None:
    """Return the number of the open file that a path stands for, None for one of a file's own."""
    try:
        found = _OPENED.fullmatch(os.path.normpath(os.fsdecode(path)))
    except (TypeError, ValueError):
        return None
    if found is None:
        return None
    return _NUMBERS[found["name"]] if found["name"] else int(found["number"] or found["same"])
