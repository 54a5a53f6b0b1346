"""The demo's own processes: `silogate serve` and `silogate work` as an operator would run them, on a leash."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.dev.process import tail
from gateway.dev.stack import PROJECT

_LEASH = Path(__file__).with_name("leash.py")
_GRACE_S = 10
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR", "HOME", "LANG")


class ChildFailed(Exception):
    """A process of the demo ended by itself or failed; the message shows the end of its log."""


@dataclass(frozen=True, slots=True)
class Child:
    """One running process. It ends with this one, also when this one is killed."""

    name: str
    log: Path
    process: asyncio.subprocess.Process

    @classmethod
    async def start(cls, name: str, arguments: tuple[str, ...], environment: Mapping[str, str], log: Path) -> Child:
        """Starts `silogate` with these arguments; nothing of our own environment but PATH and the like reaches it."""
        inherited = {key: os.environ[key] for key in _INHERITED if key in os.environ}
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_LEASH), str(_GRACE_S)),
                *(sys.executable, "-m", "gateway.cli", *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=PROJECT,
                env={**inherited, **environment},
                start_new_session=True,  # Ctrl-C in the terminal is for us; we stop the others in order
            )
        return cls(name, log, process)

    async def stop(self) -> None:
        """Asks it to finish what is in flight; returns when it is gone."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        await self.process.wait()

    async def failed(self) -> ChildFailed:
        """Waits until it ends by itself, which it should not, and says how it ended."""
        code = await self.process.wait()
        return ChildFailed(f"{self.name} ended by itself (exit {code}). The end of {self.log}:\n{tail(self.log)}")

    async def finish(self, timeout_s: float) -> None:
        """Waits for a command that ends by itself; ChildFailed unless it succeeds in time."""
        try:
            async with asyncio.timeout(timeout_s):
                code = await self.process.wait()
        except TimeoutError:
            raise ChildFailed(f"{self.name} took more than {timeout_s:.0f} s; see {self.log}") from None
        finally:
            await self.stop()
        if code != 0:
            raise ChildFailed(f"{self.name} failed (exit {code}):\n{tail(self.log)}")
