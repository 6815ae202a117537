"""A whole site in a folder: private where it must be, and accepted by those who read it."""

from __future__ import annotations

import stat

import gateway.config as configuration
from gateway.starter import Site
from policy.bundle import Bundle
from policy.identity.local import LocalDirectory
from policy.inventory import Inventory
from transport.relay.config import load_relay_config


def test_gateway_and_relays_take_their_configuration(site: Site) -> None:
    configuration.load(site.gateway_config)
    for host in ("a", "b"):
        config = load_relay_config(site.relay_config(host))
        assert config.identity.certificate == str(site.host_folder(host) / "host.pem")
    assert Bundle.load(site.bundle).name == "bank"
    assert Inventory.load(site.inventory).vm("web") is not None


def test_passwords_are_random_and_fit(site: Site) -> None:
    directory = LocalDirectory.load(site.people)
    assert len(set(site.passwords.values())) == len(site.passwords)
    for username, password in site.passwords.items():
        assert directory.check_password(username, password) is not None
        assert (site.directory / "passwords" / username).read_text().strip() == password


def test_what_is_secret_is_readable_by_its_owner_only(site: Site) -> None:
    secret = [*site.directory.rglob("*.key"), *(site.directory / "passwords").iterdir(), site.people]
    assert len(secret) > 10
    for path in secret:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_IMODE(site.directory.stat().st_mode) == 0o700
