"""The made-up site that the tests of policies share: people, VMs, hosts, and bundles written in one line."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from policy.bundle import Bundle
from policy.bundle_files import MANIFEST, SCHEMA
from policy.facts import Context, HostFacts, Person, Provenance, Question, VmFacts, VmProvenance

PACKAGE = Path(__file__).parents[2] / "policy"
BANK = PACKAGE / "examples" / "bank"
OUR_SCHEMA = (PACKAGE / "schema.cedarschema").read_text(encoding="utf-8")
NOW = datetime(2026, 11, 22, 21, 42, 21, 123456, tzinfo=UTC)
CIRCUMSTANCES = Context(time=NOW, reason_given=True)

OLGA = Person("sealane-local#olga", "sealane-local", "Olga", frozenset({"sealane-local#operators"}), "local")
PAVEL = Person(
    "sealane-local#pavel", "sealane-local", "Pavel", frozenset({"sealane-local#production-operators"}), "local"
)
JUST_NOW = Provenance("inventory", 0)
SANDBOX = VmFacts(
    "0e3b7b2c-0000-4000-8000-000000000001",
    "sandbox",
    "test",
    "internal",
    frozenset({"linux"}),
    "lab1",
    VmProvenance(JUST_NOW, JUST_NOW, JUST_NOW),
)
LAB1 = HostFacts("spiffe://bank.test/host/lab1", "lab1", "fra", "test", "DE", "10.0.0.1:7443", provenance=JUST_NOW)
LAB2 = HostFacts("spiffe://bank.test/host/lab2", "lab2", "fra", "test", "DE", "[fd00::2]:7443", provenance=JUST_NOW)

ALLOW_ALL = '@id("all") @reason("All.") permit (principal, action, resource);'


def move(
    person: Person = OLGA,
    vm: VmFacts | None = SANDBOX,
    source: HostFacts | None = LAB1,
    destination: HostFacts | None = LAB2,
    context: Context = CIRCUMSTANCES,
    action: str = "MigrateVm",
) -> Question:
    return Question(action, person, vm, source, destination, context, requester=PAVEL)


def files(*policies: str, schema: str = OUR_SCHEMA, tests: str = "", version: int = 1) -> dict[str, str]:
    """A bundle as `Bundle.from_files` takes it, one file for each policy."""
    made = {MANIFEST: f'name = "made-up"\nversion = {version}\n', SCHEMA: schema}
    made |= {f"policies/{number:03}.cedar": text for number, text in enumerate(policies)}
    return made | ({"tests/cases.yaml": tests} if tests else {})


def bundle(*policies: str) -> Bundle:
    return Bundle.from_files(files(*policies))


def write(directory: Path, contents: dict[str, str]) -> Path:
    for path, text in contents.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return directory
