"""What this process holds in memory, from Linux's /proc; elsewhere nothing is known of it."""

from __future__ import annotations

import contextlib
from pathlib import Path

STATUS = Path("/proc/self/status")


def forget_peak() -> None:
    """Let the peak begin anew at what the process holds now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak() -> float | None:
    """Return the most that the process has held since then, in MB.

    Not `ru_maxrss`: a process that another one started begins there with what that one held.
    """
    if not STATUS.exists():
        return None
    lines = dict(line.split(":", 1) for line in STATUS.read_text(encoding="ascii").splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024 / 1e6
