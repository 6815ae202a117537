"""`make neighbours`: a guest moved between a relay of this commit and one of an earlier commit, both ways round.

The earlier commit is unpacked beside this one and runs in a process of its own, with its own code and the libraries of
this environment. Both get the same small configuration, as an operator's file of that time would be: what is new has
defaults.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from gateway.demo.guest import build_boot_image, count_passes, memory_problems
from gateway.demo.machines import dump_region, let_run, start_qemu, stop_qemu, wait_passes
from policy.permit import Limits
from tests.transport.relay.conftest import until
from tests.transport.relay.test_handover import LAYOUT, MEMORY_MIB, VM, Machines, require_one_guest, wait_one_place
from tests.transport.site import Site

HERE = Path(__file__).parents[2]
DEADLINE_SECONDS = 240.0


def unpack(revision: str, folder: Path) -> Path:
    """The files of a commit of this repository, without touching the checkout."""
    archive = subprocess.run(["git", "archive", revision], cwd=HERE, stdout=subprocess.PIPE, check=True, timeout=60)
    folder.mkdir()
    subprocess.run(["tar", "x", "-C", str(folder)], input=archive.stdout, check=True, timeout=60)
    return folder


def write_config(site: Site, name: str) -> Path:
    certs, path = site.certs, site.folder / f"relay-{name}.toml"
    host, gateway = certs / "hosts" / name, certs / "gateway"
    path.write_text(
        f'[relay]\nlisten = "127.0.0.1:0"\nstate_dir = "{site.folder / f"relay-{name}"}"\n'
        f'[identity]\ncertificate = "{host / "host.pem"}"\nprivate_key = "{host / "host.key"}"\n'
        f'trust_bundle = "{certs / "ca.pem"}"\ncrls = ["{certs / "crl.pem"}"]\n'
        f'[gateway]\nurl = "https://127.0.0.1:1"\ntrust_bundle = "{certs / "ca.pem"}"\n'
        f'permit_keys = ["{gateway / "permit.pub"}"]\nlog_keys = ["{gateway / "log.vkey"}"]\n'
        f'[hypervisor]\nkind = "qmp"\nqmp_socket = "{site.folder / f"q{name}" / "{uuid}" / "qmp.sock"}"\n'
        "[limits]\nsettle_retry_seconds = 0.5\n"
    )
    return path


@asynccontextmanager
async def relay(code: Path, config: Path, *begin: str) -> AsyncIterator[str]:
    """A relay of the commit at `code`; gives its address. `begin`: a permit's file and where to go with it."""
    output = config.with_suffix(".log")
    with output.open("wb") as log:
        command = [sys.executable, "-m", "tests.transport.relay.mortal_relay", str(config), "never", *begin]
        process = subprocess.Popen(command, cwd=code, stdout=log, stderr=log)
    try:
        await until(lambda: "ready " in output.read_text() or process.poll() is not None, 60)
        ready = [line for line in output.read_text().splitlines() if line.startswith("ready ")]
        if not ready:
            raise AssertionError(f"a relay of {code} did not start: {output.read_text()[-2000:]}")
        yield ready[0].removeprefix("ready ")
    finally:
        process.kill()
        process.wait()


async def move(source: Path, destination: Path, folder: Path) -> None:
    """A guest from a relay of the code at `source` to one of that at `destination`, unharmed, or an error."""
    site = Site.lay_out(folder)
    image = build_boot_image(LAYOUT, folder)
    at_source = await start_qemu(folder / "qa" / VM, VM, memory_mib=MEMORY_MIB, image=image)
    waiting = await start_qemu(folder / "qb" / VM, VM, memory_mib=MEMORY_MIB, incoming=True, image=image)
    machines = Machines(at_source, waiting)
    try:
        await wait_passes(at_source, 3)
        await dump_region(at_source, folder / "before", LAYOUT)
        await let_run(at_source)
        permit = folder / "permit.jwt"
        permit.write_text(site.permit(vm=VM, limits=Limits(max_channels=16, bandwidth_bytes_per_second=0)))
        async with AsyncExitStack() as relays:
            address = await relays.enter_async_context(relay(destination, write_config(site, "b")))
            config = write_config(site, "a")
            await relays.enter_async_context(relay(source, config, str(permit), address))
            told = config.with_suffix(".log")
            await until(lambda: any(f"news {each}" in told.read_text() for each in ("completed", "failed")), 120)
            where = await wait_one_place(site, machines, 60)
            assert where == "destination", f"the guest is at the {where}: {told.read_text()[-1000:]}"
            await require_one_guest(machines, "destination")
            printed = at_source.printed() + await dump_region(waiting, folder / "after", LAYOUT)
        problems = memory_problems(folder / "before", folder / "after", LAYOUT, count_passes(printed))
        assert not problems, problems[:3]
    finally:
        await stop_qemu(at_source)
        await stop_qemu(waiting)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make neighbours", description=__doc__)
    parser.add_argument("--revision", action="append", help="an earlier commit; repeat it. Default: HEAD~1 and HEAD~50")
    revisions = parser.parse_args().revision or ["HEAD~1", "HEAD~50"]
    failed = 0
    for revision in revisions:
        with tempfile.TemporaryDirectory(prefix="sl") as name:
            earlier = unpack(revision, Path(name) / "code")
            for what, source, destination in (("to", earlier, HERE), ("from", HERE, earlier)):
                folder = Path(name) / what
                folder.mkdir()
                try:
                    trio.run(_within, source, destination, folder)
                    outcome = "moved, unharmed"
                except Exception as error:  # noqa: BLE001 - the line shows it, whatever it is
                    outcome, failed = f"FAILED: {error!r}"[:500], failed + 1
                print(f"{revision} {what} this commit: {outcome}", flush=True)
    return 1 if failed else 0


async def _within(source: Path, destination: Path, folder: Path) -> None:
    with trio.fail_after(DEADLINE_SECONDS):
        await move(source, destination, folder)


if __name__ == "__main__":
    sys.exit(main())
