"""What a process has used: processor time and memory, from the kernel's own books (Linux)."""

import os
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """Processor time of all threads that the process has now."""
    nanoseconds = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            nanoseconds += int((task / "schedstat").read_text(encoding="ascii").split()[0])
        except FileNotFoundError:  # the thread has just ended
            continue
    return nanoseconds / 1e9


def resident_bytes(pid: int) -> int:
    """What the process has in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
