"""Runs a program for as long as somebody holds the other end of its standard input, however that somebody ends.

Run by path, with nothing but the standard library: `python -I -S leash.py GRACE PROGRAM ARGUMENT…`. When standard input
closes, or on SIGTERM, the program gets SIGTERM and GRACE seconds to finish what is in flight, then SIGKILL.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

_LAUNCH = Path(__file__).with_name("launch.py")


def main(arguments: list[str]) -> int:
    grace_s, command = float(arguments[0]), arguments[1:]
    # launch.py ties the program to this process, should this one be killed itself.
    launch = [sys.executable, "-I", "-S", str(_LAUNCH), str(os.getpid()), str(int(signal.SIGKILL)), "-", "-"]
    program = subprocess.Popen([*launch, *command], stdin=subprocess.DEVNULL)

    def end() -> None:
        program.terminate()
        try:
            program.wait(grace_s)
        except subprocess.TimeoutExpired:
            program.kill()

    def held() -> None:
        while os.read(0, 4096):
            pass
        end()

    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=end, daemon=True).start())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=held, daemon=True).start()
    return program.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
