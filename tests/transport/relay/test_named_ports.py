"""`[ports.NAME]`: what may stand there, and that a stream of one goes nowhere else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import msgspec
import pytest
import trio

from policy.permit import Requirements
from tests.transport.relay.conftest import serving, unheard, with_limits
from tests.transport.site import Site
from transport.errors import LocalBroken, OfferRefused
from transport.relay.config import RelayConfig
from transport.relay.control import ControlLink
from transport.relay.destination import _say_broken
from transport.relay.host import RelayHost, open_host
from transport.relay.named_ports import PortSection, loopback_port, port_problem
from transport.relay.piping import PipeSource, pipe
from transport.relay.socket_ends import SocketSource
from transport.relay.source import MigrationOrder, carry_as_source
from transport.wire.messages import Cancel

VM = "5ea1a4e0-0000-4000-8000-0000000000ac"


@pytest.mark.parametrize(
    ("name", "section", "problem"),
    [
        ("memory", PortSection(), "a name of the hypervisor's"),
        ("x", PortSection(listen="p-{uuid}"), "listen must be an absolute path"),
        ("x", PortSection(listen="/run/p"), "listen must be an absolute path"),
        ("x", PortSection(listen="/run/{uuid}/{name}"), "listen must be an absolute path"),
        ("x", PortSection(connect="/run/{uuid}/{uuid}"), "no other placeholder"),
        ("x", PortSection(connect="192.0.2.1:873"), "neither an absolute path nor a port of a loopback"),
        ("x", PortSection(connect="localhost:873"), "neither an absolute path nor a port of a loopback"),
        ("x", PortSection(connect="127.0.0.1:0"), "neither an absolute path nor a port of a loopback"),
        ("x", PortSection(connect="/" + "x" * 107), "too long"),
    ],
)
def test_a_port_that_could_lead_elsewhere_is_refused(name: str, section: PortSection, problem: str) -> None:
    assert problem in port_problem(name, section)


def test_ports_that_are_well_said() -> None:
    assert port_problem("backup", PortSection(listen="/run/p/{uuid}", connect="[::1]:873")) == ""
    assert port_problem("backup", PortSection(connect="/run/rsync-{uuid}.sock")) == ""
    assert loopback_port("[::1]:873") == ("::1", 873)
    assert PortSection().listens_at("backup", VM) == Path(f"/run/sealane/ports/backup-{VM}.sock")
    assert PortSection(connect="/r/{uuid}").connects_to(VM) == Path(f"/r/{VM}")


def with_ports(config: RelayConfig, **ports: PortSection) -> RelayHost:
    return open_host(msgspec.structs.replace(config, ports=ports))


@pytest.mark.whole
async def test_a_stream_of_a_named_port_reaches_a_program_on_loopback_and_an_answer_comes_back(site: Site) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    where = f"127.0.0.1:{listener.socket.getsockname()[1]}"

    async def answer() -> None:
        stream = await listener.accept()
        said = b"".join([bytes(chunk) async for chunk in stream])
        await stream.send_all(said[::-1])
        await stream.aclose()

    with trio.fail_after(60):
        async with (
            serving(with_ports(site.relay_config("b"), echo=PortSection(connect=where))) as (_, address),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(answer)
            source = with_ports(site.relay_config("a"), echo=PortSection())
            given, taken = os.pipe(), os.pipe()
            os.write(given[1], b"drawer")
            os.close(given[1])
            permit, ends = site.permit(vm=VM, ports=("echo",)), (given[0], taken[1])
            news = (await pipe(source, permit, address, ends, trio.Event())).news
            assert news.state == "completed", news.message
            assert os.read(taken[0], 100) == b"reward"
            for descriptor in (given[0], *taken):
                os.close(descriptor)
    await listener.aclose()


@pytest.mark.parametrize("whose", ["hypervisor", "program"])
async def test_who_sends_to_what_dies_is_told_whether_it_was_a_hypervisor(whose: str) -> None:
    said: list[Cancel] = []

    class Link:
        async def send(self, message: Cancel) -> None:
            said.append(message)

    await _say_broken(cast(ControlLink, Link()), LocalBroken("reset"), whose)
    assert said == [
        Cancel("hypervisor", f"the {whose} there failed, refused or hangs; the log of the relay there says which")
    ]


@pytest.mark.whole
async def test_a_port_to_which_nobody_connects_holds_its_vm_for_so_long_and_no_longer(
    site: Site, short_path: Path
) -> None:
    config = with_limits(site.relay_config("a"), first_connection_seconds=1.0)
    section = PortSection(connect=f"{short_path}/nobody-{{uuid}}", listen=f"{short_path}/{{uuid}}")
    server = trio.socket.socket(trio.socket.AF_UNIX)
    await server.bind(f"{short_path}/nobody-{VM}")
    server.listen()
    with server, trio.fail_after(30):
        async with serving(with_ports(site.relay_config("b"), echo=section)) as (_, address):
            source = with_ports(config, echo=section)
            order = MigrationOrder(site.permit(vm=VM, ports=("echo",)), address)
            news = await carry_as_source(source, order, unheard, trio.Event())
    assert (news.state, news.message) == ("failed", "nobody connected within 1 s (limits.first_connection_seconds)")
    assert not Path(f"{short_path}/{VM}").exists()


@pytest.mark.whole
async def test_a_session_between_bare_sockets_waits_no_longer_for_its_first_connection(
    site: Site, short_path: Path
) -> None:
    source, destination = (
        open_host(with_limits(site.relay_config(name, kind="sockets", memory_socket=at), first_connection_seconds=1.0))
        for name, at in (("a", "/never/{uuid}"), ("b", f"{short_path}/{{uuid}}"))
    )
    server = trio.socket.socket(trio.socket.AF_UNIX)
    await server.bind(f"{short_path}/{VM}")
    server.listen()
    with server, trio.fail_after(30):
        async with serving(destination) as (_, address):
            order = MigrationOrder(site.permit(vm=VM, ports=("memory",)), address)
            news = await carry_as_source(source, order, unheard, trio.Event())
    assert (news.state, news.message) == ("failed", "nobody connected within 1 s (limits.first_connection_seconds)")


@pytest.mark.parametrize("kind", ["qmp", "sockets"])
def test_a_port_that_this_relay_does_not_know_is_refused_and_so_is_a_bound_vm(site: Site, kind: str) -> None:
    paths = {"qmp": {"qmp_socket": "/vm/{uuid}"}, "sockets": {"memory_socket": "/vm/{uuid}"}}[kind]
    host = with_ports(site.relay_config("a", kind=kind, **paths), echo=PortSection(listen="/p/{uuid}"))
    with pytest.raises(OfferRefused, match="these ports only"):
        host.permits.verify(site.permit(ports=("other",)), source=host.spiffe_id, destination=None)
    bound = site.permit(ports=("echo",), requirements=Requirements(False, False, vm_binding=True))
    with pytest.raises(OfferRefused, match="UUID"):
        host.permits.verify(bound, source=host.spiffe_id, destination=None)
    good = host.permits.verify(site.permit(vm=VM, ports=("echo",)), source=host.spiffe_id, destination=None)
    assert type(host.source_end(good, {}, 300, 10.0)) is SocketSource
    assert PipeSource.hands_over is False


async def test_a_socket_that_a_dead_relay_left_is_made_anew_for_those_who_may_come(
    site: Site, short_path: Path
) -> None:
    at = short_path / "ports" / "echo"
    before = os.umask(0o077)  # that of the unit
    try:
        for uids, mode in ((frozenset({0}), 0o600), (frozenset({0, 12345}), 0o666)):
            assert at.exists() == (mode == 0o666)
            (inlet,) = SocketSource(uids, "echo", at).inlets(short_path / "unused")
            with inlet.listening:  # whose path stays, as it does where a relay is killed
                assert (at.stat().st_mode & 0o777, at.parent.stat().st_mode & 0o777) == (mode, 0o755)
                assert inlet.port == "echo"
    finally:
        os.umask(before)


@pytest.mark.parametrize(("mode", "owner"), [(0o777, 0), (0o775, 0), (0o755, 12345)])
async def test_a_folder_in_which_others_could_put_a_link_is_none_for_a_port(
    short_path: Path, mode: int, owner: int
) -> None:
    folder = short_path / "ports"
    folder.mkdir()
    folder.chmod(mode)
    os.chown(folder, owner, -1)
    with pytest.raises(LocalBroken, match="writable by nobody else"):
        SocketSource(frozenset({0, 12345}), "echo", folder / "echo").inlets(short_path / "unused")
