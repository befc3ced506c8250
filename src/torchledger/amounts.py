"""Texts such as 60M, 24GB and 1% -> numbers. One reader of amounts for counts, bytes, shares and thresholds."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from fractions import Fraction

from torchledger.errors import UserError

LETTERS = "KMGTP"  # powers of 1000; with an i, as in GiB, of 1024
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
        raise UserError(f"{name} is {value!r}; write a count such as 60M or 1.5G (K, M, G, T and P are powers of ten)")
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


@dataclass(frozen=True)
class Limit:
    """What a change must reach to be shown: an amount, or a share of the largest one. `text` says it in words."""

    amount: float
    is_share: bool
    text: str


def parse_threshold(value: str | int | float, name: str = "threshold") -> Limit:
    """Return the limit that a number or a text names: 1% of the largest change, or 10M, 2.5GB, 1000.

    >>> parse_threshold("1%")
    Limit(amount=0.01, is_share=True, text='1% of the largest change')
    >>> parse_threshold("10M").amount, parse_threshold("2KiB").amount, parse_threshold(0.5).amount
    (10000000.0, 2048.0, 0.5)
    """
    if isinstance(value, str):
        text = value.strip()
        if SHARE.fullmatch(value) and (share := parse_share(value, name)) <= 1:
            return Limit(float(share), True, f"{text} of the largest change")
        found = AMOUNT.fullmatch(value)
        if found is not None and (found[2] or not found[3]):
            return Limit(float(_scaled(found)), False, text)
    elif isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max:
        return Limit(float(value), False, str(value))
    raise UserError(f"{name} is {value!r}; write a share of the largest change, such as 1%, or an amount such as 10M")


def _amount(value: object, found: re.Match[str] | None) -> int | None:
    """Return what was given as a number or matched as a text, cut to a whole number; None for anything else."""
    if found is None:
        return value if isinstance(value, int) and not isinstance(value, bool) else None
    if "." in found[1] and not found[2]:
        return None  # half a byte
    return int(_scaled(found))


def _scaled(found: re.Match[str]) -> Fraction:
    number, letter, binary, _ = found.groups()
    power = 1 + LETTERS.index(letter.upper()) if letter else 0
    return Fraction(number) * Fraction(1024 if binary else 1000) ** power
