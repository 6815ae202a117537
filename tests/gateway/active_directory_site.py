"""Adds Active Directory to the configuration of a test's own site."""

from __future__ import annotations

from gateway.starter import Site
from tests.policy.identity.samba_ad import SERVICE_PASSWORD, Domain


def add_active_directory(site: Site, domain: Domain, issuer: str) -> None:
    """Groups of `issuer`, whose keys are in jwks.json, come from the controllers of `domain`."""
    folder, settings = site.directory, domain.settings()
    (folder / "ad-password").write_text(SERVICE_PASSWORD + "\n", encoding="ascii")
    (folder / "ad-password").chmod(0o600)
    (folder / "ad-ca.pem").write_bytes(domain.authority.pem)
    addresses = ", ".join(f'"{name}" = "{address}"' for name, address in settings.addresses.items())
    text = site.gateway_config.read_text(encoding="utf-8")
    text += f"""
[[identity.issuers]]
issuer = "{issuer}"
audience = "sealane"
algorithms = ["ES256"]
jwks_file = "jwks.json"
groups = "active-directory"
account_claim = "upn"

[identity.active_directory]
controllers = {list(settings.controllers)}
addresses = {{ {addresses} }}
trust_bundle = "ad-ca.pem"
base = "{settings.base}"
domain = "CORP"
bind_user = "{settings.bind_user}"
bind_password_file = "ad-password"
connect_seconds = 1
receive_seconds = 1
deadline_seconds = 4
retry_seconds = 1
"""
    site.gateway_config.write_text(text, encoding="utf-8")
