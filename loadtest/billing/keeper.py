#!/usr/bin/env python3
"""Waits until the drill that started it is gone, however it went (its end of the pipe closes), then ends whatever the drill
left running and removes its directory.

    keeper.py DIRECTORY < pipe

A process is the drill's if its working directory is in there: PostgreSQL's are in their data directory whoever became their
parent, and nobody else's can be.
"""

import os
import pathlib
import shutil
import signal
import sys
import time

END_SECONDS = 30


def residents(directory: pathlib.Path) -> list[int]:
    """Processes whose working directory is the directory or below it."""
    found, top = [], str(directory)
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            here = os.readlink(f"/proc/{entry}/cwd").removesuffix(" (deleted)")
        except OSError:
            # It has ended, or is somebody else's.
            continue
        if here == top or here.startswith(top + "/"):
            found.append(int(entry))
    return found


def kill_all(directory: pathlib.Path, seconds: float = END_SECONDS) -> None:
    """SIGKILL to every resident, also to those that are born meanwhile, until none is left."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in residents(directory) if pid != os.getpid()]:
        if time.monotonic() > deadline:
            raise SystemExit(f"processes of {directory} do not end: {left}")
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.002)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    directory = pathlib.Path(sys.argv[1])
    sys.stdin.buffer.read()
    try:
        kill_all(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
