"""`sealane policy` as author, approver and publisher use it, against a real gateway."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import Result

from gateway.starter import EXAMPLE_BUNDLE, Site
from tests.gateway.cli.conftest import CannedGateway, last_object
from tests.gateway.cli.conftest import Sealane as Run
from tests.gateway.cli.test_real_gateway import Person, person  # noqa: F401 - the fixture
from tests.gateway.conftest import Running
from tests.gateway.test_publishing import add

Sealane = Callable[..., Result]
FREEZE = '@id("freeze")\n@reason("Year end.")\nforbid (principal, action in Sealane::Action::"AnyMove", resource);\n'


@pytest.fixture
def sealane(sealane: Run) -> Sealane:
    """The command; its exit code must be the expected one."""

    def run(*arguments: object, expected: int = 0, stdin: str | None = None) -> Result:
        ended = sealane(*arguments, stdin=stdin)
        assert ended.exit_code == expected, ended.output
        return ended

    return run


def draft(folder: Path, version: int) -> Path:
    """A bundle of an author's own, with one policy more."""
    shutil.copytree(EXAMPLE_BUNDLE, folder)
    manifest = folder / "bundle.toml"
    manifest.write_text(re.sub(r"(?m)^version = \d+", f"version = {version}", manifest.read_text()))
    shutil.rmtree(folder / "tests")
    (folder / "policies" / "freeze.cedar").write_text(FREEZE)
    return folder


def keys(sealane: Sealane, folder: Path, *names: str) -> str:
    """Makes the keys FOLDER/NAME.key; returns the file of signers."""
    return "\n".join(sealane("policy", "key", name, "--out", folder / f"{name}.key").stdout for name in names)


def test_a_key_is_the_owners_alone_and_its_table_is_what_the_gateway_takes(sealane: Sealane, tmp_path: Path) -> None:
    shown = keys(sealane, tmp_path, "ann")
    assert shown.startswith('[[signer]]\nname = "ann"\nkey = "')
    assert (tmp_path / "ann.key").stat().st_mode & 0o077 == 0
    assert (tmp_path / "ann.key").read_text() not in shown
    again = sealane("policy", "key", "ann", "--out", tmp_path / "ann.key", expected=2)
    assert "exists" in again.stderr
    bad = sealane("policy", "key", 'x"\nroles = ["author"]', "--out", tmp_path / "x.key", expected=2)
    assert "would not take this signer" in bad.stderr
    assert not (tmp_path / "x.key").exists()


def test_what_cannot_be_signed_or_approved_is_said_in_one_line(sealane: Sealane, tmp_path: Path) -> None:
    keys(sealane, tmp_path, "ann", "ben")
    bundle = draft(tmp_path / "draft", 2)
    out = tmp_path / "publication.json"
    sign = ("policy", "sign", bundle, "--as", "ann", "--key", tmp_path / "ann.key", "--out", out)
    (bundle / "policies" / "freeze.cedar").write_text(FREEZE.replace("@reason", "@raison"))
    refused = sealane(*sign, expected=2)
    assert refused.stderr.count("\n") == 1
    assert "policies/freeze.cedar" in refused.stderr
    assert not out.exists()
    (bundle / "policies" / "freeze.cedar").write_text(FREEZE)
    (tmp_path / "ann.key").chmod(0o640)
    assert "chmod 600" in sealane(*sign, expected=2).stderr
    (tmp_path / "ann.key").chmod(0o600)
    sealane(*sign)
    own = ("policy", "approve", out, "--as", "ann", "--key", tmp_path / "ann.key", "--yes")
    assert "signed it already" in sealane(*own, expected=2).stderr
    before = out.read_bytes()
    asked = sealane("policy", "approve", out, "--as", "ben", "--key", tmp_path / "ben.key", expected=1, stdin="n\n")
    assert "author ann" in asked.stdout
    assert out.read_bytes() == before


def test_a_publication_unpacks_into_the_files_that_were_signed(sealane: Sealane, tmp_path: Path) -> None:
    keys(sealane, tmp_path, "ann")
    bundle = draft(tmp_path / "draft", 2)
    out = tmp_path / "publication.json"
    sealane("policy", "sign", bundle, "--as", "ann", "--key", tmp_path / "ann.key", "--out", out)
    sealane("policy", "unpack", out, tmp_path / "unpacked")
    files = [path.relative_to(bundle) for path in sorted(bundle.rglob("*")) if path.is_file()]
    assert [path.relative_to(tmp_path / "unpacked") for path in sorted((tmp_path / "unpacked").rglob("*.*"))] == files
    assert all((tmp_path / "unpacked" / path).read_bytes() == (bundle / path).read_bytes() for path in files)
    refused = sealane("policy", "unpack", out, tmp_path / "unpacked", expected=2).stderr
    assert "File exists; the requester must act; name a directory that does not exist yet" in refused
    nowhere = tmp_path / "nowhere" / "key"
    assert f"sealane: {nowhere}: No such file" in sealane("policy", "key", "ben", "--out", nowhere, expected=2).stderr


def test_without_a_name_it_is_published_at_all_gateways_of_client_toml(
    logged_in: CannedGateway, home: Path, sealane: Sealane, tmp_path: Path
) -> None:
    keys(sealane, tmp_path, "ann")
    out = tmp_path / "bank-2.json"
    bundle = draft(tmp_path / "draft", 2)
    sealane("policy", "sign", bundle, "--as", "ann", "--key", tmp_path / "ann.key", "--out", out)
    logged_in.answer("POST", "/v1/policy/publications", (201, {"version": 2, "record_index": 7}))
    client = home / ".config" / "sealane" / "client.toml"
    client.write_text(client.read_text() + 'others = ["https://127.0.0.1:1"]\n')
    ended = sealane("policy", "publish", out, "--json", expected=3)
    results = {each["gateway"]: each["outcome"] for each in last_object(ended)["gateways"]}
    assert results == {logged_in.url: "in_force", "https://127.0.0.1:1": "refused"}


def test_who_stops_reading_leaves_no_gateway_behind_the_others(
    logged_in: CannedGateway,
    other_canned: CannedGateway,
    home: Path,
    sealane: Sealane,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`sealane policy publish … | head -1`. A gateway that stands in client.toml twice is asked once."""
    keys(sealane, tmp_path, "ann")
    out = tmp_path / "bank-2.json"
    bundle = draft(tmp_path / "draft", 2)
    sealane("policy", "sign", bundle, "--as", "ann", "--key", tmp_path / "ann.key", "--out", out)
    for each in (logged_in, other_canned):
        each.answer("POST", "/v1/policy/publications", (201, {"version": 2, "record_index": 7}))
    client = home / ".config" / "sealane" / "client.toml"
    client.write_text(client.read_text() + f'others = ["{logged_in.url}", "{other_canned.url}"]\n')

    def stop_reading(_: str) -> None:
        raise typer.Exit(141)

    monkeypatch.setattr("gateway.cli.policy_in_force.say", stop_reading)
    sealane("policy", "publish", out, expected=141)
    assert [len(each.asked) for each in (logged_in, other_canned)] == [1, 1]


@pytest.fixture
def site(site: Site, sealane: Sealane) -> Site:
    """Bob may publish; Ann and Ben may sign."""
    people = site.people.read_text()
    site.people.write_text(people.replace('"guests"', '"policy-authors"'))
    (site.directory / "signers.toml").write_text(keys(sealane, site.directory, "ann", "ben"))
    add(site, '[policy.publishing]\nsigners = "signers.toml"\n')
    return site


@pytest.mark.whole
async def test_an_author_an_approver_and_a_publisher_put_a_bundle_in_force_and_take_it_back(
    running: Running,
    person: Callable[[str], Person],  # noqa: F811
    sealane: Sealane,
    tmp_path: Path,
) -> None:
    bob, home = person("bob"), running.site.directory
    bob.take_token()
    out = tmp_path / "bank-2.json"
    bundle = draft(tmp_path / "draft", 2)
    signed = sealane("policy", "sign", bundle, "--as", "ann", "--key", home / "ann.key", "--out", out, "--json")
    assert last_object(signed)["version"] == 2
    alone = await bob.sealane("policy", "publish", out, expected=1)
    assert "0 of 1 approvals" in alone.stderr
    sealane("policy", "approve", out, "--as", "ben", "--key", home / "ben.key", "--yes")

    tried = await bob.sealane("policy", "shadow", bundle)
    assert "Version 2 is tried" in tried.stdout
    assert "candidate: version 2" in (await bob.sealane("policy", "status")).stdout
    assert "Ended after 0 decisions" in (await bob.sealane("policy", "shadow", "--stop")).stdout

    where = ("--gateway", running.url, "--gateway", "https://127.0.0.1:1")
    ended = await bob.sealane("policy", "publish", out, *where, "--json", expected=3)
    results = {each["gateway"]: each["outcome"] for each in ended.document["gateways"]}
    assert results == {running.url: "in_force", "https://127.0.0.1:1": "refused"}
    assert "in force: bank version 2" in (await bob.sealane("policy", "status")).stdout

    third = tmp_path / "third"
    back = await bob.sealane("policy", "rollback", 2, third, "--json")
    assert back.document["version"] == 3
    assert "version = 3" in (third / "bundle.toml").read_text()
    again = tmp_path / "bank-3.json"
    sealane("policy", "sign", third, "--as", "ben", "--key", home / "ben.key", "--out", again)
    sealane("policy", "approve", again, "--as", "ann", "--key", home / "ann.key", "--yes")
    await bob.sealane("policy", "publish", again)
    state = json.loads((await bob.sealane("policy", "status", "--json")).stdout)
    assert (state["in_force"]["version"], state["published_versions"]) == (3, [2, 3])
