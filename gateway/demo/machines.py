"""QEMUs for the demo and the tests: started with two monitors, looked into, and ended by process id.

DIRECTORY/qmp.sock        monitor for the relay
DIRECTORY/observer.sock   monitor for whoever checks the guest
DIRECTORY/serial.txt      what the guest printed
DIRECTORY/qemu.log        what QEMU said
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from gateway.demo.errors import MissingProgram, ProcessFailed
from gateway.demo.guest import GuestLayout, count_passes
from transport.hypervisors.errors import HypervisorError, HypervisorGone, HypervisorUnreachable
from transport.hypervisors.qemu import QemuMachine
from transport.hypervisors.qmp import QmpConnection

QEMU = "qemu-system-x86_64"
_START_SECONDS = 90.0
_ANSWER_SECONDS = 30.0
_DUMP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Qemu:
    """A QEMU process of ours and where to reach it."""

    process: trio.Process
    directory: Path
    uuid: str

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    @property
    def qmp_socket(self) -> Path:
        """The relay's monitor."""
        return self.directory / "qmp.sock"

    @property
    def observer_socket(self) -> Path:
        """The monitor that stays free while a relay holds the other."""
        return self.directory / "observer.sock"

    @property
    def serial_file(self) -> Path:
        """What the guest printed on this host."""
        return self.directory / "serial.txt"

    @property
    def log_file(self) -> Path:
        """What QEMU itself said."""
        return self.directory / "qemu.log"

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.process.poll() is not None

    def printed(self) -> bytes:
        """All that the guest printed on this host so far."""
        return self.serial_file.read_bytes() if self.serial_file.exists() else b""


def require_qemu(program: str = QEMU) -> None:
    """Raises MissingProgram."""
    if shutil.which(program) is None:
        raise MissingProgram(program, "qemu-system-x86")


async def start_qemu(  # noqa: PLR0913 - a machine's description
    directory: Path,
    uuid: str,
    *,
    memory_mib: int = 64,
    incoming: bool = False,
    image: Path | None = None,
    program: str = QEMU,
    more: Sequence[str] = (),
) -> Qemu:
    """Start a QEMU whose monitors answer when this returns; `incoming` lets it wait for a migration.

    `directory` is made if it is missing and should be this VM's own. Without `image` there is nothing to boot. `more`:
    further arguments. Raises MissingProgram; ProcessFailed with what QEMU said.
    """
    require_qemu(program)
    directory.mkdir(parents=True, exist_ok=True)
    command = [program, "-nodefaults", "-no-user-config", "-display", "none", "-name", f"sealane-demo-{uuid[:8]}"]
    command += ["-accel", "tcg", "-machine", "pc", "-m", f"{memory_mib}M", "-uuid", uuid]
    command += ["-serial", f"file:{directory / 'serial.txt'}"]
    for monitor in ("qmp.sock", "observer.sock"):
        command += ["-qmp", f"unix:{directory / monitor},server=on,wait=off"]
    if image is not None:
        command += ["-drive", f"if=floppy,format=raw,readonly=on,file={image}"]
    if incoming:
        command += ["-incoming", "defer"]
    command += more
    with (directory / "qemu.log").open("wb") as log:
        # A session of its own: Ctrl-C is for whoever started it, who ends it in order.
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    machine = Qemu(process, directory, uuid)
    try:
        await _wait_monitor(machine)
    except BaseException:
        await stop_qemu(machine)
        raise
    return machine


async def stop_qemu(machine: Qemu) -> None:
    """End a QEMU however it is (stopped by a signal, too), and wait for it, even when we are cancelled."""
    with trio.CancelScope(shield=True):
        if not machine.ended:
            machine.process.kill()
        await machine.process.wait()


async def dump_region(machine: Qemu, file: Path, layout: GuestLayout) -> bytes:
    """Stop the guest, write its region to `file`, and return what it had printed on this host by then.

    The guest stays stopped: see `let_run`. Uses the observer's monitor.
    """
    async with await QmpConnection.connect(machine.observer_socket, deadline_seconds=_ANSWER_SECONDS) as monitor:
        await monitor.execute("stop", deadline_seconds=_ANSWER_SECONDS)
        region = {"val": layout.start, "size": layout.size_bytes, "filename": str(file)}
        await monitor.execute("pmemsave", region, deadline_seconds=_DUMP_SECONDS)
    return machine.printed()


async def let_run(machine: Qemu) -> None:
    """Let a guest go on that `dump_region` stopped."""
    async with await QmpConnection.connect(machine.observer_socket, deadline_seconds=_ANSWER_SECONDS) as monitor:
        await monitor.execute("cont", deadline_seconds=_ANSWER_SECONDS)


async def run_state(machine: Qemu) -> str:
    """The run state by the observer's monitor: running, paused, inmigrate, postmigrate, … or gone."""
    if machine.ended:
        return "gone"
    try:
        async with await QemuMachine.connect(machine.observer_socket) as observer:
            return await observer.status()
    except HypervisorError:
        if machine.ended:
            return "gone"
        raise


async def wait_passes(machine: Qemu, passes: int, *, earlier: bytes = b"", deadline_seconds: float = 60.0) -> int:
    """Wait until the guest has counted to `passes`; `earlier` is what it printed on the host before.

    Raises ProcessFailed at the deadline or when QEMU ends, ValueError for a gap (see `count_passes`).
    """
    end = trio.current_time() + deadline_seconds
    while (counted := count_passes(earlier + machine.printed())) < passes:
        if machine.ended or trio.current_time() > end:
            raise ProcessFailed("guest", f"counted to {counted} only, not to {passes}", tail_of(machine.log_file))
        await trio.sleep(0.02)
    return counted


def tail_of(file: Path, lines: int = 12) -> str:
    """The last lines of a log, for an error message."""
    if not file.exists():
        return ""
    return "\n".join(file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


async def _wait_monitor(machine: Qemu) -> None:
    """Wait for the second monitor: QEMU answers there only when both listen and its start is over."""
    end = trio.current_time() + _START_SECONDS
    while True:
        try:
            async with await QemuMachine.connect(machine.observer_socket, answer_seconds=_START_SECONDS):
                return
        except (HypervisorUnreachable, HypervisorGone) as error:
            if machine.ended:
                code = machine.process.returncode
                raise ProcessFailed("qemu", f"exit code {code}", tail_of(machine.log_file)) from None
            if trio.current_time() > end:
                raise ProcessFailed("qemu", f"{error}", tail_of(machine.log_file)) from None
        await trio.sleep(0.01)
