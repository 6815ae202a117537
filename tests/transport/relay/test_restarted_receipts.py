"""A relay that was killed in a handover certifies its session after all, without counts: an audit says just that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from gateway.host_receipts import BEFORE_RESTART, UNCOUNTED, Finding, compare_receipts
from policy.permit import Requirements
from tests.transport.relay.conftest import until
from tests.transport.relay.test_handover import VM, Machines, machines, relay, wait_one_place, write_config
from tests.transport.site import Site

pytestmark = pytest.mark.real
__all__ = ["machines"]  # a fixture


def bodies(site: Site, host: str) -> list[str]:
    files = (site.folder / f"relay-{host}" / "receipts").glob("*.json")
    return [json.loads(each.read_bytes())["receipt"]["body"] for each in files]


def found(site: Site) -> list[Finding]:
    """By `sealane audit reconcile hosts`."""

    def records() -> Iterator[tuple[int, dict[str, Any]]]:
        yield 0, {"kind": "migration.decision", "migration_id": "m", "details": {"permit": {"session_until": 0}}}
        for body in (*bodies(site, "a"), *bodies(site, "b")):
            details = {"role": json.loads(body)["role"], "body": body}
            details["body_sha256"] = hashlib.sha256(body.encode()).hexdigest()
            yield 1, {"kind": "migration.receipt", "migration_id": "m", "details": details}

    return list(compare_receipts(records(), 10**10).findings)


@pytest.mark.parametrize(
    ("moment_at_a", "moment_at_b", "why"),
    [
        ("after:handed-over", "never", (UNCOUNTED["source"],)),
        ("before:ended", "never", (BEFORE_RESTART["destination"], UNCOUNTED["source"])),
        ("never", "after:started", (UNCOUNTED["destination"],)),
    ],
)
async def test_a_restart_in_a_handover_makes_no_liar_of_its_host(
    site: Site, machines: Machines, moment_at_a: str, moment_at_b: str, why: tuple[str, ...]
) -> None:
    permit = site.folder / "permit"
    required = Requirements(content_digest=True, stream_inspection=False, vm_binding=True)
    permit.write_text(site.permit(vm=VM, requirements=required))
    async with AsyncExitStack() as running:
        at_b = await running.enter_async_context(relay(write_config(site, "b"), moment_at_b))
        address = at_b.address
        config = write_config(site, "a")
        at_a = await running.enter_async_context(relay(config, moment_at_a, str(permit), address))
        victim, host = (at_b, "b") if moment_at_a == "never" else (at_a, "a")
        await until(lambda: victim.process.poll() is not None, 90)
        await running.enter_async_context(relay(config if host == "a" else write_config(site, "b", listen=address)))
        assert await wait_one_place(site, machines) == "destination"
        await until(lambda: bool(bodies(site, "a") and bodies(site, "b")), 30)
    (finding,) = found(site)
    assert (finding.what, finding.why) == ("uncounted", why)
    (of_restarted,) = (json.loads(each) for each in bodies(site, host))
    assert (of_restarted["lacks_counts"], of_restarted["channels"], of_restarted["content_digests"]) == (True, [], None)
