"""Becomes another program that ends with its parent, and gives up root first where it is told to.

Run by path, with nothing but the standard library, in front of every server:
`python -I -S launch.py PARENT SIGNAL UID GID PROGRAM ARGUMENT…` (UID and GID `-`: stay who you are).
It is a program of its own because code between fork and exec (`preexec_fn`) is unsafe in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    parent, signal_number, uid, gid, *command = arguments
    if uid != "-":
        os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))
    if sys.platform == "linux":
        # After the change of user, which would clear it. macOS has no such thing: there the keeper's own end is what
        # stops the servers, and what a killed keeper left behind is stopped by the next start.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0)
        if os.getppid() != int(parent):
            # The parent ended before the request above: nobody would ever send the signal.
            os._exit(1)
    os.umask(0o077)
    os.execv(command[0], command)  # noqa: S606 - that no shell is in between is the point


if __name__ == "__main__":
    main(sys.argv[1:])
