"""`sealane migrate --with-disks`, from the person to the images: all of it real, and a guest that writes."""

from __future__ import annotations

import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from gateway.demo.machines import start_qemu, stop_qemu
from gateway.demo.processes import Commands
from gateway.demo.site import DESTINATION, OPERATOR, SOURCE, lay_out
from tests.transport.disks_moved import boot_image, compare, has_written_all, make_images, stop_guest, with_disks
from tests.transport.kinds import VM
from tests.transport.relay.conftest import until

pytestmark = [pytest.mark.real, pytest.mark.whole]


async def test_a_person_moves_a_guest_with_its_disks_by_one_command() -> None:
    with tempfile.TemporaryDirectory(prefix="sl") as name, trio.fail_after(240):
        folder = Path(name)
        site, commands = lay_out(folder, "counter", VM), Commands(folder)
        make_images(folder)
        image = boot_image(folder)
        token = folder / "token"
        where = ("--gateway", f"https://{site.gateway_listen}", "--ca", str(site.site.ca), "--token-file", str(token))
        async with AsyncExitStack() as stack:
            for service, config in (
                ("gateway", site.site.gateway_config),
                ("relay", site.site.relay_config(SOURCE)),
                ("relay", site.site.relay_config(DESTINATION)),
            ):
                await stack.enter_async_context(
                    commands.serve(f"{service}-{config.stem}", service, "serve", "--config", str(config))
                )
            source = await start_qemu(
                site.machine(SOURCE), VM, memory_mib=32, image=image, more=with_disks(folder, "a")
            )
            stack.push_async_callback(stop_qemu, source)
            destination = await start_qemu(
                site.machine(DESTINATION), VM, memory_mib=32, image=image, incoming=True, more=with_disks(folder, "b")
            )
            stack.push_async_callback(stop_qemu, destination)
            await until(lambda: has_written_all(source), 150)
            password = str(site.password(OPERATOR))
            code, said = await commands.run("login", "--user", OPERATOR.username, "--password-file", password, *where)
            assert code == 0, said
            asked = ("migrate", "counter", "--to", DESTINATION, "--reason", "CHG-1", "--with-disks")
            code, said = await commands.run(*asked, *where)
            assert (code, said["outcome"]) == (0, "completed"), said
            await until(lambda: source.ended, 20)
            arrived = len(destination.printed())
            await until(lambda: len(destination.printed()) > arrived + 5, 60)  # it goes on writing there
            await stop_guest(destination)
            assert b"E" not in source.printed() + destination.printed()  # as it prints where the disk fails it
        assert compare(folder)
