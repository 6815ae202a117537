"""A gateway that delivers to a real rsyslog and to a file: from the configuration to what lies there, and back."""

from __future__ import annotations

import gzip
import re
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

import gateway.config as configuration
from gateway.errors import ConfigRefused, StartRefused
from gateway.service import serve
from gateway.starter import Site
from tests.audit.siem.receivers import RsyslogReceiver
from tests.audit.siem.rsyslog import SERVER_NAME
from tests.gateway.cli.invoking import invoke
from tests.gateway.conftest import Running, running_gateway

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "siem-receivers.md"
EXAMPLES = re.findall(r"```toml\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)


def with_sinks(site: Site, *texts: str) -> Path:
    with site.gateway_config.open("a") as file:
        file.write("\n".join(["", *texts]))
    return site.gateway_config


def test_every_example_of_the_documentation_is_a_configuration(site: Site) -> None:
    assert {tomllib.loads(each)["siem"]["sinks"][0]["kind"] for each in EXAMPLES} == {
        *("relp", "syslog", "splunk", "webhook", "file")
    }
    sinks = configuration.load(with_sinks(site, *EXAMPLES)).siem.sinks
    assert len(sinks) == len(EXAMPLES)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('kind = "syslog"', "address"),
        ('kind = "relp"\naddress = "h:1"\nplaintext = true', "plaintext"),
        ('kind = "syslog"\naddress = "h:1"\ncertificate = "c.pem"', "needs `private_key`"),
        ('kind = "syslog"\naddress = "h:1"\nformat = "xml"', "format"),
        ('kind = "syslog"\naddress = "h:1"\nmax_message_bytes = 100', "max_message_bytes"),
        ('kind = "syslog"\naddress = "h:1"\nredact = ["user.name"]', "`entry` holds all fields"),
        ('kind = "splunk"\nurl = "http://h"\ntoken_file = "t"', "must be https"),
        ('kind = "webhook"\nurl = "https://u:p@h"\nkey_file = "t"', "must not hold a password"),
        ('kind = "file"\npath = "a"\nrotate_bytes = 1', "rotate_bytes"),
        ('kind = "file"\npath = "a"\nkeep = 0', "keep"),
    ],
)
def test_what_is_wrong_with_a_sink_is_told_by_its_key(site: Site, text: str, complaint: str) -> None:
    with pytest.raises(ConfigRefused, match=complaint):
        configuration.load(with_sinks(site, f'[[siem.sinks]]\nname = "one"\n{text}'))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('kind = "syslog"\naddress = "nowhere"', "address: .*HOST:PORT"),
        ('kind = "syslog"\naddress = "h:0"', "port 0"),
        ('kind = "relp"\naddress = "h:1"\ntrust_bundle = "none.pem"', r"none\.pem: is no bundle"),
        ('kind = "splunk"\nurl = "https://h"\ntoken_file = "open.key"', "chmod 600"),
        ('kind = "webhook"\nurl = "https://h"\nkey_file = "bad.key"', "line 1 is neither"),
    ],
)
async def test_files_and_addresses_that_cannot_be_used_refuse_the_start_without_showing_a_secret(
    site: Site, text: str, complaint: str
) -> None:
    for name, mode in (("open.key", 0o644), ("bad.key", 0o600)):
        (site.directory / name).touch(mode=0o600)
        (site.directory / name).write_text("s3cret-of-somebody")
        (site.directory / name).chmod(mode)
    config = configuration.load(with_sinks(site, f'[[siem.sinks]]\nname = "one"\n{text}'))
    with pytest.raises(StartRefused, match=f"siem sink one: .*{complaint}") as refused:
        await serve(config)
    assert "s3cret" not in str(refused.value)


def delivered(running: Running, *names: str) -> bool:
    statuses = [running.gateway.delivery.status(name) for name in names]
    return all(status["lag"] == 0 and status["position"] > 0 for status in statuses)


async def until_delivered(running: Running, *names: str) -> None:
    with trio.fail_after(30):
        while not delivered(running, *names):
            await trio.sleep(0.02)


@pytest.mark.real
@pytest.mark.whole
async def test_the_log_arrives_at_rsyslog_and_in_a_file_and_every_change_there_is_found(
    site: Site, tmp_path: Path
) -> None:
    (tmp_path / "rsyslog").mkdir()
    rsyslog = RsyslogReceiver(tmp_path / "rsyslog", "relp")
    try:
        await _deliver_and_compare(site, rsyslog, tmp_path / "audit.jsonl")
    finally:
        rsyslog.close()


async def _deliver_and_compare(site: Site, rsyslog: RsyslogReceiver, lines: Path) -> None:
    trust = rsyslog.trust
    tls = (
        f'server_name = "{SERVER_NAME}"\ntrust_bundle = "{trust.trust_bundle}"\n'
        f'certificate = "{trust.certificate}"\nprivate_key = "{trust.private_key}"\nmax_message_bytes = 65536\n'
    )
    server = rsyslog.server
    with_sinks(
        site,
        f'[[siem.sinks]]\nname = "relp"\nkind = "relp"\naddress = "127.0.0.1:{server.relp_port}"\n{tls}',
        f'[[siem.sinks]]\nname = "tls"\nkind = "syslog"\naddress = "127.0.0.1:{server.syslog_port}"\n{tls}'
        'format = "leef"\nfilter = "kind:migration.decision"',
        f'[[siem.sinks]]\nname = "lines"\nkind = "file"\npath = "{lines}"\nformat = "ecs"\nredact = ["user.name"]',
    )
    async with running_gateway(site) as running:
        await running.begin()
        await until_delivered(running, "relp", "tls", "lines")
    # The gateway stopped: its last record may have come too late for delivery.
    end = len(lines.read_bytes().splitlines())
    stored = server.text
    relp = [line for line in stored.read_bytes().splitlines() if line.startswith(b"{")]
    leef = [line for line in stored.read_bytes().splitlines() if line.startswith(b"LEEF")]
    assert len(leef) == 1
    assert b"Alice" not in lines.read_bytes()
    split = {"relp": relp[:end], "tls": leef, "lines": lines.read_bytes().splitlines()}
    for name, found in split.items():
        file = stored.with_name(f"{name}.stored")
        file.write_bytes(b"\n".join(found) + b"\n")
        result = reconcile_range(site, name, file, end)
        assert (result["outcome"], result["compared"]) == ("agrees", end), result
    packed = stored.with_name("packed.gz")
    packed.write_bytes(gzip.compress(b"\n".join(relp[:end])))
    assert reconcile_range(site, "relp", packed, end)["outcome"] == "agrees"
    tampered = stored.with_name("tampered.stored")
    forged = relp[1].replace(b'"sequence":1', b'"sequence":9999').replace(b'-1"', b'-9999"', 1)
    tampered.write_bytes(b"\n".join([*relp[:1], relp[1].replace(b'"time":"2', b'"time":"1', 1), *relp[3:end], forged]))
    result = reconcile_range(site, "relp", tampered, end, code=1)
    assert (result["missing"], [each["index"] for each in result["altered"]]) == ([2], [1])
    assert result["added"] == [f"tampered.stored:{end}"]


@pytest.mark.whole
async def test_what_was_found_in_files_goes_on_record_as_the_word_of_who_compared(site: Site, tmp_path: Path) -> None:
    lines, home = tmp_path / "audit.jsonl", tmp_path / ".config" / "sealane"
    with_sinks(site, f'[[siem.sinks]]\nname = "lines"\nkind = "file"\npath = "{lines}"')
    home.mkdir(parents=True)
    async with running_gateway(site) as running:
        await until_delivered(running, "lines")
        (home / "client.toml").write_text(f'gateway = "{running.url}"\nca = "{site.ca}"\n')
        (home / "token.json").touch(0o600)
        (home / "token.json").write_text(running.token("carol") + "\n")
        stored = tmp_path / "stored"
        stored.write_bytes(b"".join(lines.read_bytes().splitlines(keepends=True)[1:]))
        arguments = ["siem", "reconcile-file", "lines", str(stored), "--config", str(site.gateway_config), "--to", "1"]
        run = partial(invoke, *arguments, "--record", "--json", env={"HOME": str(tmp_path)})
        result = await trio.to_thread.run_sync(run)
        assert result.exit_code == 1, result.output
        (record,) = await running.records("siem.reconciled")
        assert (record["outcome"], record["actor"]["name"], record["sequence"]) == (
            "failed",
            "Carol Auditor",
            msgspec.json.decode(result.stdout)["recorded"],
        )
        details = record["details"]
        assert (details["by"], details["sink"], details["missing"]) == ("reconcile-file", "lines", [0])
        found = {name: details[name] for name in ("from", "to", "compared", "missing_count")}
        told = {**found, "altered_count": 0, "added_count": 0}
        assert (await running.person("bob").post("/v1/siem/lines/file-findings", json=told)).status_code == 403
        beyond = await running.person("carol").post("/v1/siem/lines/file-findings", json={**told, "to": 10**6})
        assert beyond.status_code == 400
        assert len(await running.records("siem.reconciled")) == 1


def reconcile_range(site: Site, name: str, file: Path, end: int, code: int = 0) -> dict[str, Any]:
    arguments = ["siem", "reconcile-file", name, str(file), "--config", str(site.gateway_config), "--to", str(end)]
    run = invoke(*arguments, "--json")
    assert run.exit_code == code, run.output
    return dict(msgspec.json.decode(run.stdout))
