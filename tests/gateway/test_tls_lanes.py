"""`[permits] seal`: what the gateway tells its policies and its permits of how lanes are sealed, and nothing else."""

from __future__ import annotations

import pytest

from gateway.starter import Site
from tests.gateway.conftest import running_gateway
from tests.gateway.test_watch import edit, own_bundle


@pytest.fixture
def strict(site: Site) -> Site:
    """Whose safeguards want lanes of plain TLS in place of sealed ones, as docs/relay.md says."""
    safeguards = own_bundle(site) / "safeguards.cedar"
    edit(
        safeguards, lambda text: text.replace('lane_cipher == "AES-256-GCM"', 'lane_cipher == "TLS_AES_256_GCM_SHA384"')
    )
    return site


async def test_a_gateway_whose_permits_say_tls_satisfies_a_policy_that_wants_it(strict: Site) -> None:
    edit(strict.gateway_config, lambda text: text.replace("[permits]", '[permits]\nseal = "tls"'))
    async with running_gateway(strict) as running:
        _, permit = await running.begin()
    assert permit.claims.seal == "tls"


async def test_a_gateway_with_its_own_seal_is_denied_by_it_and_permits_nothing(strict: Site) -> None:
    async with running_gateway(strict) as running:
        await running.poll("a")
        answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
        assert answer.status_code == 403, answer.text
        assert "Forbidden: A VM moves only under TLS 1.3" in answer.text
        assert await running.poll("a") == []


async def test_a_policy_that_wants_sealed_frames_is_not_satisfied_by_tls(site: Site) -> None:
    edit(site.gateway_config, lambda text: text.replace("[permits]", '[permits]\nseal = "tls"'))
    async with running_gateway(site) as running:
        await running.poll("a")
        answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
    assert answer.status_code == 403
