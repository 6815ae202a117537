"""Adds Active Directory to the configuration of a test's own site."""

from __future__ import annotations

from gateway.starter import Site
from tests.policy.identity.samba_ad import REALM, SERVICE_PASSWORD, Domain, write_krb5_conf


def add_active_directory(site: Site, domain: Domain, issuer: str, *, keytab: bool = False) -> None:
    """Groups of `issuer`, whose keys are in jwks.json, come from the controllers of `domain`.

    With `keytab` the service account binds by Kerberos, and libkrb5's configuration is in krb5.conf.
    """
    folder, settings = site.directory, domain.settings()
    if keytab:
        domain.controllers[0].export_keytab(folder / "svc.keytab")
        write_krb5_conf(folder / "krb5.conf", *(each.address for each in domain.controllers))
        bind = f'bind = "gssapi"\nbind_user = "svc-sealane@{REALM.upper()}"\nbind_keytab = "svc.keytab"'
    else:
        (folder / "ad-password").write_text(SERVICE_PASSWORD + "\n", encoding="ascii")
        (folder / "ad-password").chmod(0o600)
        bind = f'bind_user = "{settings.bind_user}"\nbind_password_file = "ad-password"'
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
{bind}
connect_seconds = 1
receive_seconds = 1
deadline_seconds = 4
retry_seconds = 1
"""
    site.gateway_config.write_text(text, encoding="utf-8")
