"""What tests with real processes and guests begin with: services of a site, a guest on its host a, room for it on b."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

from gateway.demo.machines import Qemu, start_qemu, stop_qemu
from gateway.demo.processes import Commands, Service
from gateway.starter import Site


async def serve(commands: Commands, stack: AsyncExitStack, name: str, config: Path) -> Service:
    """`name`: gateway…, or relay-HOST. It ends with `stack`."""
    kind = "gateway" if name.startswith("gateway") else "relay"
    return await stack.enter_async_context(commands.serve(name, kind, "serve", "--config", str(config)))


async def serve_relays(commands: Commands, stack: AsyncExitStack, site: Site) -> None:
    for host in ("a", "b"):
        await serve(commands, stack, f"relay-{host}", site.relay_config(host))


async def start_guests(site: Site, stack: AsyncExitStack, uuid: str, image: Path, memory_mib: int) -> tuple[Qemu, Qemu]:
    """It runs at the source; the destination waits for it. Both end with `stack`."""
    source = await start_qemu(site.directory / "vm-a" / uuid, uuid, memory_mib=memory_mib, image=image)
    stack.push_async_callback(stop_qemu, source)
    destination = await start_qemu(site.directory / "vm-b" / uuid, uuid, memory_mib=memory_mib, incoming=True)
    stack.push_async_callback(stop_qemu, destination)
    return source, destination
