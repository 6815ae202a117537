"""`sealane directory check` against a real Samba Active Directory, set up right and wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.starter import Site
from tests.gateway.active_directory_site import add_active_directory
from tests.gateway.cli.conftest import Sealane, last_object
from tests.policy.identity.samba_ad import (
    BASE,
    REALM,
    USERS,
    Domain,
    TestAuthority,
    add_user,
    change,
    seeded_domain,
    start_domain,
    write_krb5_conf,
)

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Domain]:
    with start_domain(seeded_domain(tmp_path_factory), tmp_path_factory.mktemp("domain"), kdc=True) as running:
        yield running


@pytest.fixture
def ad_site(site: Site, domain: Domain) -> Site:
    add_active_directory(site, domain, "https://login.corp.example.test")
    return site


def edit(site: Site, old: str, new: str) -> None:
    text = site.gateway_config.read_text(encoding="utf-8")
    assert old in text
    site.gateway_config.write_text(text.replace(old, new), encoding="utf-8")


def test_where_everything_works_each_step_of_each_controller_says_so(sealane: Sealane, ad_site: Site) -> None:
    result = sealane("directory", "check", "--config", ad_site.gateway_config, "--user", f"alice@{REALM}")
    assert result.exit_code == 0, result.output
    for words in ("TLSv1.3", f"svc-sealane@{REALM}", BASE, "outer", "Domain Users", "enabled", "Everything works."):
        assert words in result.output
    assert result.output.count("connect") == 2
    document = last_object(
        sealane("directory", "check", "--config", ad_site.gateway_config, "--user", "CORP\\alice", "--json")
    )
    assert document["outcome"] == "ok"
    names = [step["step"] for step in document["steps"]]
    assert names == ["dns", "connect", "tls", "bind", "base", "user", "groups", "state"] * 2
    groups = next(step["groups"] for step in document["steps"] if step["step"] == "groups")
    assert "inner" in groups.values()
    assert all(sid.startswith("S-1-5-") for sid in groups)


@pytest.mark.parametrize(
    ("old", "new", "step", "remedy"),
    [
        ("'dc1.", "'dc9.", "configuration", ""),
        ('base = "DC=corp', 'base = "DC=other', "base", "`base`"),
        ("svc-sealane@", "svc-nobody@", "bind", "bind_user"),
    ],
)
def test_a_wrong_setting_is_named(sealane: Sealane, ad_site: Site, old: str, new: str, step: str, remedy: str) -> None:
    edit(ad_site, old, new)
    result = sealane("directory", "check", "--config", ad_site.gateway_config, "--json")
    if step == "configuration":
        assert result.exit_code == 2, result.output
        return
    assert result.exit_code == 3, result.output
    failed = [each for each in last_object(result)["steps"] if not each["passed"]]
    assert [each["step"] for each in failed] == [step, step]
    assert all(remedy in each["remedy"] for each in failed)


def test_a_wrong_password_is_named_and_never_shown(sealane: Sealane, ad_site: Site) -> None:
    (ad_site.directory / "ad-password").write_text("the-wrong-one\n", encoding="ascii")
    result = sealane("directory", "check", "--config", ad_site.gateway_config)
    assert result.exit_code == 3
    assert "wrong user name or password" in result.output
    assert "the-wrong-one" not in result.output


def test_a_certificate_of_an_unknown_ca_is_named(sealane: Sealane, ad_site: Site) -> None:
    (ad_site.directory / "ad-ca.pem").write_bytes(TestAuthority().pem)
    result = sealane("directory", "check", "--config", ad_site.gateway_config)
    assert result.exit_code == 3
    assert "trust_bundle" in result.output


def test_one_controller_that_hangs_is_a_failure_though_the_other_works(
    sealane: Sealane, ad_site: Site, domain: Domain
) -> None:
    with domain.controllers[0].hung():
        result = sealane("directory", "check", "--config", ad_site.gateway_config, "--json")
    assert result.exit_code == 1
    (failed,) = [each for each in last_object(result)["steps"] if not each["passed"]]
    assert (failed["step"], failed["controller"]) == ("tls", f"dc1.{REALM}:636")


def test_a_user_who_is_disabled_or_nobody(sealane: Sealane, ad_site: Site, domain: Domain) -> None:
    with domain.controllers[0].administrator() as administrator:
        add_user(administrator, "gone")
        change(administrator, f"CN=gone,{USERS}", userAccountControl="514")
    result = sealane("directory", "check", "--config", ad_site.gateway_config, "--user", f"gone@{REALM}")
    assert result.exit_code == 1
    assert "the account is disabled" in result.output
    result = sealane("directory", "check", "--config", ad_site.gateway_config, "--user", "CORP\\*")
    assert result.exit_code == 1
    assert "no such account" in result.output
    assert sealane("directory", "check", "--config", ad_site.gateway_config, "--user", "alice").exit_code == 2


def test_with_a_keytab_the_ticket_is_a_step_of_its_own(
    sealane: Sealane, site: Site, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_active_directory(site, domain, "https://login.corp.example.test", keytab=True)
    monkeypatch.setenv("KRB5_CONFIG", str(site.directory / "krb5.conf"))
    check = ("directory", "check", "--config", site.gateway_config, "--user", "CORP\\alice")
    result = sealane(*check)
    assert result.exit_code == 0, result.output
    for words in (f"ldap/dc1.{REALM}@{REALM.upper()}", f"as svc-sealane@{REALM.upper()}", "outer", "enabled"):
        assert words in result.output
    write_krb5_conf(site.directory / "krb5.conf", "127.0.0.1:1")
    result = sealane(*check)
    assert result.exit_code == 3
    assert "ticket" in result.output
    assert "let this machine reach a KDC" in result.output
    (site.directory / "svc.keytab").chmod(0o644)
    result = sealane(*check)
    assert result.exit_code == 2
    assert "chmod 600" in result.output


def test_without_a_directory_or_with_a_password_for_everybody(sealane: Sealane, site: Site, domain: Domain) -> None:
    result = sealane("directory", "check", "--config", site.gateway_config)
    assert result.exit_code == 2
    assert "[identity.active_directory]" in result.output
    add_active_directory(site, domain, "https://login.corp.example.test")
    (site.directory / "ad-password").chmod(0o644)
    result = sealane("directory", "check", "--config", site.gateway_config)
    assert result.exit_code == 2
    assert "chmod 600" in result.output
