"""Child processes of the keeper: started through launch.py, logged to a file, found again after an unclean end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from gateway.dev.privilege import Account

_LAUNCH = Path(__file__).with_name("launch.py")
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")


class ServerFailed(Exception):
    """A server did not start or did not do as told; the message says which, why, and shows the end of its log."""

    def __init__(self, server: str, reason: str) -> None:
        super().__init__(f"{server}: {reason}")
        self.server = server


@dataclass(frozen=True, slots=True)
class Command:
    """A program to run: `argv[0]` is a path; nothing of the caller's environment reaches it but PATH and the like."""

    argv: tuple[str, ...]
    account: Account | None = None
    environment: dict[str, str] = field(default_factory=dict)
    when_parent_dies: signal.Signals = signal.SIGKILL
    folder: Path = Path("/")

    def launch_line(self) -> list[str]:
        uid, gid = (str(self.account.uid), str(self.account.gid)) if self.account else ("-", "-")
        parent, death = str(os.getpid()), str(int(self.when_parent_dies))
        return [sys.executable, "-I", "-S", str(_LAUNCH), parent, death, uid, gid, *self.argv]

    def full_environment(self) -> dict[str, str]:
        # PGPORT, JAVA_TOOL_OPTIONS and their like would change what the servers do.
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        return {**inherited, "LC_ALL": "C", "TZ": "UTC", **self.environment}


async def spawn(command: Command, log: Path) -> asyncio.subprocess.Process:
    """Start a program whose output goes to the end of `log`."""
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *command.launch_line(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=command.folder,
            env=command.full_environment(),
        )


async def run(command: Command, log: Path, *, server: str, what: str, timeout_s: float) -> None:
    """Run a program to its end; ServerFailed if it fails or takes too long."""
    process = await spawn(command, log)
    try:
        async with asyncio.timeout(timeout_s):
            code = await process.wait()
    except TimeoutError:
        raise ServerFailed(server, f"{what} took more than {timeout_s:.0f} s; see {log}") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code != 0:
        raise ServerFailed(server, f"{what} failed (exit {code}). The end of {log}:\n{tail(log)}")


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log, for a message to a person."""
    try:
        text = log.read_bytes()[-8192:].decode(errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:])


def write_private(path: Path, text: str) -> None:
    """Write a new file that only its owner may read, from its first byte on."""
    path.unlink(missing_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


@dataclass(frozen=True, slots=True)
class PidFile:
    """Remembers which process serves a folder, so that one left by an unclean end can be found and stopped."""

    path: Path

    def write(self, pid: int, marker: str) -> None:
        self.path.write_text(json.dumps({"pid": pid, "marker": marker}))

    def stop_leftover(self, timeout_s: float = 10.0) -> bool:
        """Stop the process this file names, if it still lives and its command line still names our folder."""
        try:
            recorded = json.loads(self.path.read_text())
            pid, marker = int(recorded["pid"]), str(recorded["marker"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        stopped = False
        deadline = time.monotonic() + timeout_s
        # SIGQUIT is Postgres' immediate stop, and ends Valkey and Python; a JVM only prints its threads, hence SIGKILL.
        for sign, patience in ((signal.SIGQUIT, timeout_s / 4), (signal.SIGKILL, timeout_s)):
            if marker not in command_line(pid):
                break
            stopped = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
            until = min(deadline, time.monotonic() + patience)
            while marker in command_line(pid) and time.monotonic() < until:
                time.sleep(0.02)
        self.path.unlink(missing_ok=True)
        return stopped


def command_line(pid: int) -> str:
    """The command line of a process; empty when there is none (or it is a zombie)."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        if Path("/proc/self").exists():
            return ""
    shown = subprocess.run(["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout
