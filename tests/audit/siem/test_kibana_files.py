"""The files of deploy/siem: well-formed, their references whole, and every question in them answered by a real server.

The lifecycle policy is read and checked by Elasticsearch's own classes. Kibana itself is not here: that it loads them
is not tested. Its query language is read by the few forms that they use.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from audit.siem.document import Document, document_of
from audit.siem.mapping import MAPPING
from tests.audit.siem.conftest import Indices
from tests.audit.siem.entries import log_entry
from tests.elasticsearch_node.process import read_lifecycle_policy

FOLDER = Path(__file__).parents[3] / "deploy" / "siem"
RULES = [json.loads(line) for line in (FOLDER / "detection-rules.ndjson").read_text().splitlines()]
OBJECTS = [json.loads(line) for line in (FOLDER / "kibana-dashboard.ndjson").read_text().splitlines()]
JURISDICTIONS = [
    {"uid": {"type": "Sealane::Host", "id": f"spiffe://bank.example/host/{host}"}, "attrs": {"jurisdiction": law}}
    for host, law in (("a", "DE"), ("b", "CH"))
]
# What each rule must find, and nothing else.
SETTING_OFF: dict[str, dict[str, Any]] = {
    "sealane-denied-burst": {"outcome": "denied"},
    "sealane-break-glass": {"kind": "breakglass.used", "outcome": "allowed"},
    "sealane-other-jurisdiction": {"details": {"policy_entities": JURISDICTIONS}},
    "sealane-unpermitted-placement": {"kind": "placement.unpermitted", "outcome": None},
    "sealane-receipts-missing": {"kind": "audit.reconciled", "outcome": "failed"},
    "sealane-log-differs": {"kind": "siem.reconciled", "outcome": "failed"},
    "sealane-delivery": {"kind": "siem.degraded", "outcome": None},
    "sealane-split-view": {"kind": "witness.disagrees", "outcome": None},
}
HARMLESS: list[dict[str, Any]] = [
    {},
    {"kind": "heartbeat", "outcome": None},
    {"kind": "siem.reconciled", "outcome": "completed"},
    {"kind": "audit.reconciled", "outcome": "completed"},
    {"kind": "siem.recovered", "outcome": None},
]


def query_of(kuery: str) -> dict[str, Any]:
    """`field : "a"`, `field : ("a" or "b")`, `field : true`, joined by `and`."""
    clauses = []
    for part in kuery.split(" and ") if kuery else []:
        match = re.fullmatch(r'([a-z_.]+) : (?:"([^"]+)"|\(([^)]+)\)|(true|false))', part)
        assert match is not None, part
        values = [match[2]] if match[2] else re.findall(r'"([^"]+)"', match[3] or "") or [match[4]]
        clauses.append({"terms": {match[1]: values}})
    return {"bool": {"filter": clauses}}


def fields_of(mapping: dict[str, Any], path: str = "") -> set[str]:
    found: set[str] = set()
    for name, member in mapping["properties"].items():
        here = f"{path}.{name}".lstrip(".")
        found |= fields_of(member, here) if "properties" in member else {here}
    return found


def test_every_field_that_is_asked_for_has_a_mapping() -> None:
    known = fields_of(MAPPING)
    texts = [rule["query"] for rule in RULES]
    texts += [
        json.loads(each["attributes"]["kibanaSavedObjectMeta"]["searchSourceJSON"])["query"]["query"]
        for each in OBJECTS[1:]
    ]
    for text in texts:
        assert {name for clause in query_of(text)["bool"]["filter"] for name in clause["terms"]} <= known
    for each in OBJECTS:
        if each["type"] == "visualization":
            for agg in json.loads(each["attributes"]["visState"])["aggs"]:
                assert agg["params"].get("field", "@timestamp") in known


def test_every_reference_of_the_dashboard_is_in_its_file() -> None:
    there = {(each["type"], each["id"]) for each in OBJECTS}
    assert len(there) == len(OBJECTS)
    for each in OBJECTS:
        assert {(one["type"], one["id"]) for one in each["references"]} <= there
    (dashboard,) = [each for each in OBJECTS if each["type"] == "dashboard"]
    panels = json.loads(dashboard["attributes"]["panelsJSON"])
    assert {panel["panelRefName"] for panel in panels} == {one["name"] for one in dashboard["references"]}


def test_rules_have_ids_of_their_own() -> None:
    assert {rule["rule_id"] for rule in RULES} == SETTING_OFF.keys()


@pytest.mark.real
async def test_each_rule_finds_what_it_is_for_on_a_real_server_and_nothing_else(indices: Indices) -> None:
    documents: list[Document] = []
    wanted: dict[str, str] = {}
    for rule_id, changes in SETTING_OFF.items():
        documents.append(document_of(log_entry(len(documents), **changes)))
        wanted[rule_id] = documents[-1].id
    documents += [document_of(log_entry(len(documents) + n, **changes)) for n, changes in enumerate(HARMLESS)]
    assert await indices.sink.deliver(documents) == []
    await indices.sink.refresh()
    for rule in RULES:
        hits = indices.admin.search(index=indices.sink.pattern, query=query_of(rule["query"]))["hits"]["hits"]
        assert [hit["_id"] for hit in hits] == [wanted[rule["rule_id"]]], rule["rule_id"]
    heartbeat = json.loads((FOLDER / "missing-heartbeat-rule.json").read_text())["params"]
    query = json.loads(heartbeat["esQuery"])["query"]
    assert indices.admin.count(index=indices.sink.pattern, query=query)["count"] == 1


@pytest.mark.real
def test_the_server_s_own_classes_take_the_lifecycle_policy() -> None:
    read = json.loads(read_lifecycle_policy(FOLDER / "lifecycle-policy.json"))
    assert {name: phase["min_age"] for name, phase in read["phases"].items()} == {
        "hot": "0ms",
        "warm": "92d",
        "delete": "397d",
    }


@pytest.mark.real
def test_a_lifecycle_policy_with_an_unknown_phase_is_refused_by_them(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text((FOLDER / "lifecycle-policy.json").read_text().replace('"hot"', '"hoot"'))
    with pytest.raises(subprocess.CalledProcessError) as refused:
        read_lifecycle_policy(tmp_path / "policy.json")
    assert "does not support phase [hoot]" in refused.value.stderr
