"""Texts such as 60M, 24GB and 1% -> exact numbers. One reader of amounts for counts and bytes."""

from __future__ import annotations

import re
from fractions import Fraction

from torchledger.errors import UserError

LETTERS = "KMGT"  # powers of 1000; with an i, as in GiB, of 1024
AMOUNT = re.compile(rf"\s*(\d{{1,30}}(?:\.\d{{1,30}})?)\s*([{LETTERS}]?)(i?)(B?)\s*", re.IGNORECASE | re.ASCII)
SHARE = re.compile(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*%\s*", re.ASCII)


def parse_bytes(value: int | str, name: str = "memory", least: int = 1) -> int:
    """Return the bytes, `least` or more, that a number or a text such as 24GB, 24GiB or 512 MB names.

    >>> parse_bytes("24GB"), parse_bytes("1.5 GiB")
    (24000000000, 1610612736)
    """
    found = AMOUNT.fullmatch(value) if isinstance(value, str) else None
    size = _amount(value, found)
    if size is None or size < least or (found is not None and found[3] and not found[2]):
        raise UserError(f"{name} is {value!r}; write bytes, or a size such as 24GB (10^9) or 24GiB (2^30)")
    return size


def parse_count(value: int | str, name: str, least: int = 0) -> int:
    """Return the count, `least` or more, that a number or a text such as 60M or 1.5G names.

    >>> parse_count("60M", "params"), parse_count("4.1 G", "macs")
    (60000000, 4100000000)
    """
    found = AMOUNT.fullmatch(value) if isinstance(value, str) else None
    count = _amount(value, found)
    if count is None or count < least or (found is not None and (found[3] or found[4])):
        raise UserError(f"{name} is {value!r}; write a count such as 60M or 1.5G (K, M, G and T are powers of ten)")
    return count


def parse_share(value: str, name: str) -> Fraction:
    """Return the share that a text such as 1% names.

    >>> parse_share("0.5%", "tolerance")
    Fraction(1, 200)
    """
    found = SHARE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise UserError(f"{name} is {value!r}; write a share such as 1% or 0.5%")
    return Fraction(found[1]) / 100


def _amount(value: object, found: re.Match[str] | None) -> int | None:
    """Return what was given as a number or matched as a text, cut to a whole number; None for anything else."""
    if found is None:
        return value if isinstance(value, int) and not isinstance(value, bool) else None
    number, letter, binary, _ = found.groups()
    if "." in number and not letter:
        return None  # half a byte
    power = 1 + LETTERS.index(letter.upper()) if letter else 0
    return int(Fraction(number) * (1024 if binary else 1000) ** power)
