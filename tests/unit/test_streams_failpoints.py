"""Failpoints: a named place may end, stop, delay or break the process, and a third process has it in writing."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from streams import failpoints
from streams.failpoints import BadFailpoint, Injected, arm, armed_names, disarm, reach

PROGRAMME = """
import sys
from streams.failpoints import arm, reach
arm(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
for _ in range(3):
    reach("relay.after_send")
print("survived")
"""


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    disarm()


def test_nothing_is_armed_by_itself() -> None:
    """A place that nobody armed does nothing."""
    assert armed_names() == ()
    reach("relay.after_send")


def test_it_fires_at_its_hit_and_once() -> None:
    """Only the place that was named, only at the hit that was named, and not again."""
    arm("relay.after_send:hit=3:raise, consumer.after_park:raise")
    assert set(armed_names()) == {"relay.after_send", "consumer.after_park"}
    for _ in range(2):
        reach("relay.after_send")
        reach("relay.after_select")
    with pytest.raises(Injected, match=r"^relay\.after_send$"):
        reach("relay.after_send")
    reach("relay.after_send")


def test_a_delay_holds_the_process_up() -> None:
    """A delay is a pause of the whole process, as long as it says."""
    arm("relay.after_send:delay=0.05")
    started = time.monotonic()
    reach("relay.after_send")
    assert time.monotonic() - started >= 0.05


@pytest.mark.parametrize(
    "text", ["", "relay", "relay:explode", "relay:hit=0:kill", "relay:hit=x:kill", "Relay:kill", "relay:delay=soon"]
)
def test_a_wrong_specification_is_refused(text: str) -> None:
    """A test that arms nothing by mistake would prove nothing."""
    with pytest.raises(BadFailpoint):
        arm(text)


@pytest.mark.parametrize("address", ["", "udp:127.0.0.1:9", "tcp:nowhere", "unix:", "unix:/nonexistent/journal"])
def test_a_journal_that_does_not_answer_is_refused(address: str) -> None:
    """A kill without a witness could not be counted, so arming fails at once."""
    with pytest.raises(BadFailpoint):
        arm("relay.after_send:kill", address)
    assert failpoints.armed_names() == ()


@asynccontextmanager
async def journal(path: Path, lines: list[str]) -> AsyncIterator[str]:
    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        if line:
            lines.append(line.decode().strip())
            writer.write(b"noted\n")
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(note, path)
    async with server:
        yield f"unix:{path}"


async def test_a_kill_is_written_down_before_it_happens(tmp_path: Path) -> None:
    """The journal has name, hit, process and action; then the process dies by SIGKILL, at that place."""
    lines: list[str] = []
    async with journal(tmp_path / "journal", lines) as address:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAMME, "relay.after_send:hit=2:kill", address, stdout=subprocess.PIPE
        )
        output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == -signal.SIGKILL
    assert output == b""
    assert lines == [f"relay.after_send 2 {process.pid} kill"]


async def test_a_stopped_process_goes_on_when_told() -> None:
    """A stop freezes the process where it is; SIGCONT lets it continue from there."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAMME, "relay.after_send:stop", stdout=subprocess.PIPE
    )
    async with asyncio.timeout(30):
        while Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "T":
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGCONT)
        output, _ = await process.communicate()
    assert (process.returncode, output) == (0, b"survived\n")
