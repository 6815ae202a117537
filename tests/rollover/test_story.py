"""The story of `make rollover` without root and log key: two rollovers, six migrations, none of which fails."""

from __future__ import annotations

from datetime import timedelta

import pytest

from certs.introduction import authority_key_id
from tests.rollover.story import fleet, gateway, roll_issuing, roll_permit_key, short_folder
from transport.relay import identity_keeping

pytestmark = [pytest.mark.real, pytest.mark.whole]


async def test_no_migration_fails_while_a_ca_and_a_key_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch of the CA makes both hosts renew in the middle of a session, which goes on with what it began with."""
    monkeypatch.setattr(identity_keeping, "LEAVING_SPREAD", timedelta(0))
    monkeypatch.setattr(identity_keeping, "LOOK_SECONDS", 0.2)
    said: list[str] = []
    with short_folder() as folder:
        async with fleet(folder, said.append) as found, gateway(found):
            found.waits_for_renewal = True
            before = [authority_key_id(host.credentials.chain[0]) for host in found.hosts]
            await roll_issuing(found)
            await roll_permit_key(found)
            assert all(
                authority_key_id(host.credentials.chain[0]) != old
                for host, old in zip(found.hosts, before, strict=True)
            )
            assert len(found.moves) == 6
            assert found.running is not None
            receipts = await found.running.records("migration.receipt")
            assert {each["outcome"] for each in receipts} == {"completed", "running"}, "\n".join(said)
