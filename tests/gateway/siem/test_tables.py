from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import gateway.config as configuration
from gateway.errors import ConfigRefused, StartRefused
from gateway.service import serve
from gateway.starter import Site

SINK = """
[[siem.sinks]]
name = "elastic"
kind = "elasticsearch"
url = "https://localhost:9200"
api_key_file = "elastic.key"
"""


def with_sinks(site: Site, text: str) -> Path:
    with site.gateway_config.open("a") as file:
        file.write(text)
    return site.gateway_config


def test_a_sink_with_all_its_defaults_is_taken(site: Site) -> None:
    (sink,) = configuration.load(with_sinks(site, SINK)).siem.sinks
    assert (sink.name, sink.filter, sink.redact, sink.terms.batch_entries) == ("elastic", None, (), 2_000)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ('name = "../elastic"', "must be of lower-case letters"),
        ('url = "http://localhost:9200"', "must be https"),
        ('url = "https://user:secret@localhost:9200"', "must not hold a password"),
        ('kind = "carrier-pigeon"', "carrier-pigeon"),
        ('filter = "outcome:("', "filter: "),
        ('filter = "outcom:denied"', "filter: .*outcome"),
        ('redact = ["event.hash"]', "redact: event.hash cannot be redacted"),
        ("batch_entries = 0", "batch_entries"),
        ("retries = 3", "retries"),
        ('certificate = "client.pem"', "needs `private_key`"),
        ('certificate = "client.pem"\nprivate_key = "client.key"', "and not both"),
    ],
)
def test_what_is_wrong_with_a_sink_is_told_by_its_key(site: Site, change: str, complaint: str) -> None:
    key = change.partition(" ")[0]
    kept = [line for line in SINK.splitlines() if not line.startswith(f"{key} ")]
    with pytest.raises(ConfigRefused, match=complaint):
        configuration.load(with_sinks(site, "\n".join([*kept, change])))


def test_two_sinks_of_one_name_are_refused(site: Site) -> None:
    with pytest.raises(ConfigRefused, match="two sinks have the same name"):
        configuration.load(with_sinks(site, SINK + SINK))


@pytest.mark.parametrize(
    ("mode", "content", "complaint"),
    [
        (0o644, "bXk6c2VjcmV0", "others may read it"),
        (0o600, "bXk6c2VjcmV0\ntwice", "one line"),
        (None, "", "No such file"),
    ],
)
async def test_a_key_that_others_may_read_or_that_is_none_refuses_the_start(
    site: Site, mode: int | None, content: str, complaint: str
) -> None:
    if mode is not None:
        (site.directory / "elastic.key").write_text(content)
        (site.directory / "elastic.key").chmod(mode)
    config = configuration.load(with_sinks(site, SINK))
    with pytest.raises(StartRefused, match=f"siem sink elastic: .*{complaint}") as refused:
        await serve(config)
    assert "bXk6c2VjcmV0" not in str(refused.value)


@pytest.mark.parametrize("missing", [False, True])
async def test_metrics_are_for_who_has_the_token_and_exist_only_where_configured(
    site: Site, missing: bool, tmp_path: Path
) -> None:
    from tests.gateway.conftest import running_gateway  # noqa: PLC0415 - its fixtures are this package's by conftest

    if not missing:
        (site.directory / "metrics.token").write_text("scrape-me\n")
        (site.directory / "metrics.token").chmod(0o600)
        with_sinks(site, '\n[metrics]\ntoken_file = "metrics.token"\n')
    async with running_gateway(site) as running:
        client = running.client()
        tokens: list[dict[str, Any]] = [{}, {"authorization": "Bearer scrape-them"}]
        for headers in tokens:
            assert (await client.get("/metrics", headers=headers)).status_code == (404 if missing else 401)
        answer = await client.get("/metrics", headers={"authorization": "Bearer scrape-me"})
        if missing:
            assert answer.status_code == 404
        else:
            assert "sealane_log_entries " in answer.text
            assert "sealane_log_failed 0.0" in answer.text


async def test_who_may_not_see_the_delivery_is_refused_and_recorded(site: Site) -> None:
    from tests.gateway.conftest import running_gateway  # noqa: PLC0415

    async with running_gateway(site) as running:
        assert (await running.person("carol").get("/v1/siem")).json() == {"sinks": []}
        assert (await running.person("carol").get("/v1/siem/none")).status_code == 404
        assert (await running.person("alice").get("/v1/siem")).status_code == 403
        assert (await running.person("carol").post("/v1/siem/none/resend", json={})).status_code == 403
        outcomes = [record["outcome"] for record in await running.records("siem.asked")]
        assert outcomes == ["denied", "denied"]
