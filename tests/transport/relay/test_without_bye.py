"""Sessions that are over at the destination and whose source never says Bye: kept for a while, and some of them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.transport.relay.conftest import host_with, serving, until
from tests.transport.relay.hostile import Driver
from tests.transport.relay.test_carriage import VM, listen
from tests.transport.relay.test_hostile_peer import states
from tests.transport.site import Site
from transport.errors import RefusalCode
from transport.relay import admitting
from transport.relay.host import RelayHost, open_host
from transport.wire.messages import Answer, Cancel, Message, Outcome, Refusal

pytestmark = pytest.mark.whole


@pytest.fixture
def three(short_path: Path) -> Site:
    return Site.lay_out(short_path, ("a", "b", "c"))


@pytest.fixture
async def vm_listener(three: Site) -> AsyncIterator[trio.SocketListener]:
    async with listen(three) as listener:
        yield listener


def held(host: RelayHost) -> int:
    """Descriptors of this process that are journals of its destination."""
    folder = str(host.spool.run_dir.parent / "journals" / "destination-")
    return sum(str(each.readlink()).startswith(folder) for each in Path("/proc/self/fd").iterdir() if each.is_symlink())


async def leave(site: Site, address: str, name: str, permit: str) -> str:
    """Begin a session as host `name`, and go for good; returns its id."""
    async with Driver.connected(address, open_host(site.relay_config(name)).credentials) as driver:
        answer = await driver.offer(permit)
        assert isinstance(answer, Answer), answer
        return driver.session_id


async def asked(site: Site, address: str, name: str, session_id: str, permit: str) -> Message | None:
    """What its source is told that comes back to settle it after all."""
    async with Driver.connected(address, open_host(site.relay_config(name)).credentials) as driver:
        said = await driver.offer(permit, session_id=session_id, attempt=1, purpose="settle")
        if not isinstance(said, Answer):
            return said
        await driver.send(Cancel("abandoned", ""))
        return await driver.hear()


async def test_a_source_that_never_says_bye_has_so_many_kept_and_takes_no_other_sources_place(
    three: Site, vm_listener: trio.SocketListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each held a descriptor, a journal and memory for as long as the relay ran."""
    monkeypatch.setattr(admitting, "MAX_WITHOUT_BYE", 4)
    async with serving(host_with(three, "b", {})) as (destination, address):
        of_c = three.permit(vm=VM, source=three.spiffe("c"))
        other = await leave(three, address, "c", of_c)
        await until(lambda: states(destination) == ["discarded"])
        left: list[tuple[str, str]] = []
        for number in range(1, 8):
            permit = three.permit(vm=VM)
            left.append((await leave(three, address, "a", permit), permit))
            await until(lambda number=number: states(destination) == ["discarded"] * (1 + min(number, 4)))  # type: ignore[misc]
        assert held(destination) == 5
        assert len(list(destination.spool.run_dir.iterdir())) == 5
        refused = await asked(three, address, "a", *left[0])
        assert isinstance(refused, Refusal)
        assert refused.code is RefusalCode.SESSION_UNKNOWN
        assert await asked(three, address, "a", *left[-1]) == Outcome("discarded")
        assert await asked(three, address, "c", other, of_c) == Outcome("discarded")


async def test_what_nobody_may_ask_for_any_more_is_forgotten_while_the_relay_runs(
    three: Site, vm_listener: trio.SocketListener
) -> None:
    """It was once the relay was restarted."""
    async with serving(host_with(three, "b", {"remember_outcome_seconds": 0.5})) as (destination, address):
        until_then = int(time.time()) + 2
        short = three.permit(vm=VM, exp=until_then, session_until=until_then, recover_until=until_then)
        await leave(three, address, "a", short)
        await until(lambda: states(destination) == ["discarded"])
        await trio.sleep(until_then + 0.6 - time.time())
        await leave(three, address, "c", three.permit(vm=VM, source=three.spiffe("c")))
        await until(lambda: states(destination) == ["discarded"] and held(destination) == 1)
