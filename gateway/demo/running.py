"""The demo's edge: its folder, Ctrl-C, and what is said when something goes wrong."""

import shutil
import signal
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import trio

from certs.errors import CertificateError
from gateway.demo.errors import DemoError
from gateway.demo.machines import tail_of
from gateway.demo.story import tell_story
from gateway.demo.telling import Findings, Teller
from transport.hypervisors.errors import HypervisorError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_MAX_FOLDER_BYTES = 45  # a unix socket's path has 107 bytes, of which HOST/UUID/observer.sock takes 58


@dataclass(slots=True)
class _Ending:
    """How the demo ended: with findings, with an error, or with neither where it was interrupted."""

    findings: Findings | None = None
    what: str = ""
    who_must_act: str = "operator"
    next_step: str = ""
    tails: dict[str, str] = field(default_factory=dict)


def run(*, as_json: bool, keep: bool) -> int:
    """Run the demo in a folder of its own, and leave nothing of it but, with `keep`, that folder."""
    teller = Teller(as_json=as_json)
    folder = _make_folder()
    try:
        ending = trio.run(_until_signalled, folder, teller)
        if ending.findings is not None:
            teller.result(ending.findings)
            return 0 if ending.findings.holds else 1
        if not ending.what:
            words = "interrupted; every process of the demo has ended"
            teller.failure(words, "requester", "Run it again when you like.", {})
            return INTERRUPTED
        tails = ending.tails if keep else _tails(folder) | ending.tails
        teller.failure(ending.what, ending.who_must_act, ending.next_step, tails)
        return 1
    finally:
        if keep:
            teller.say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


async def _until_signalled(folder: Path, teller: Teller) -> _Ending:
    """Tell the story; SIGINT and SIGTERM cancel it, which ends its processes in order."""
    ending = _Ending()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            try:
                ending.findings = await tell_story(folder, teller)
            except DemoError as error:
                ending.what, ending.next_step, ending.who_must_act = str(error), error.next_step, error.who_must_act
                ending.tails = {"its last words": error.tail} if error.tail else {}
            except HypervisorError as error:
                ending.what, ending.next_step = f"QEMU: {error}", error.next_step
            except (CertificateError, OSError) as error:
                ending.what, ending.next_step = f"cannot set up the site: {error}", "Check space and rights in TMPDIR."
            nursery.cancel_scope.cancel()
    return ending


def _make_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="sealane-demo-")).resolve()
    if len(str(folder)) <= _MAX_FOLDER_BYTES:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="sealane-demo-", dir="/tmp")).resolve()


def _tails(folder: Path) -> dict[str, str]:
    """The last lines of every log, as the folder goes away."""
    logs = sorted(path for path in folder.rglob("*.log") if path.is_file())
    return {str(path.relative_to(folder)): tail for path in logs if (tail := tail_of(path))}
