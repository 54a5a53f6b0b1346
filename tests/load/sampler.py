"""Where a server's processor time goes: a sampler on its own clock, which costs a few per cent and not a factor.

`python -m tests.load.sampler OUT MODULE ARGUMENT…` runs a module and writes what it saw when that ends.
"""

from __future__ import annotations

import gc
import json
import runpy
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType

# The kernel looks at this clock once a tick, so a shorter time would only be a wish.
_EVERY_S = 0.004
_SHOWN = 30


class Sampler:
    """Counts, for each tick of the process's own time, the function on top and all functions below it."""

    def __init__(self) -> None:
        self.top: Counter[str] = Counter()
        self.within: Counter[str] = Counter()
        self.ticks = 0
        self.collected_s = 0.0
        self._began = 0.0

    def start(self) -> None:
        gc.callbacks.append(self._collecting)
        signal.signal(signal.SIGPROF, self._tick)
        signal.setitimer(signal.ITIMER_PROF, _EVERY_S, _EVERY_S)

    def _tick(self, _number: int, frame: FrameType | None) -> None:
        self.ticks += 1
        seen = set()
        first = True
        while frame is not None:
            code = frame.f_code
            path = Path(code.co_filename)
            name = f"{path.parent.name}/{path.name}:{code.co_qualname}"
            if first:
                self.top[f"{name}:{frame.f_lineno}"] += 1
                first = False
            seen.add(name)
            frame = frame.f_back
        self.within.update(seen)

    def _collecting(self, phase: str, _info: dict[str, int]) -> None:
        """The collector works below the line that happened to make the last object: it is told of by itself."""
        if phase == "start":
            self._began = time.process_time()
        else:
            self.collected_s += time.process_time() - self._began

    def write(self, path: Path) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        gc.callbacks.remove(self._collecting)
        found = {
            "ticks": self.ticks,
            "seconds": time.process_time(),
            "collected_s": self.collected_s,
            "top": self.top.most_common(400),
            "within": self.within.most_common(400),
        }
        path.write_text(json.dumps(found))


def told(path: Path) -> str:
    """The profile for a person: lines by their own time, functions by the time spent within them."""
    found = json.loads(path.read_text())
    ticks = max(1, found["ticks"])
    lines = [f"{found['ticks']} samples, one in {_EVERY_S * 1000:g} ms of processor time", "", "own time, by line"]
    lines[1:1] = [f"{found['collected_s'] / found['seconds']:.1%} of it in the garbage collector"]
    lines += [f"  {count / ticks:6.1%}  {name}" for name, count in found["top"][:_SHOWN]]
    lines += ["", "time within, by function"]
    lines += [f"  {count / ticks:6.1%}  {name}" for name, count in found["within"][: 2 * _SHOWN]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    out, module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    sampler = Sampler()
    sampler.start()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sampler.write(Path(out))
