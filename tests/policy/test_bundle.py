from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy import bundle_files
from policy.bundle import Bundle
from policy.bundle_files import bundle_digest
from policy.cases import run_cases
from policy.errors import BundleRefused
from tests.policy.cedar_world import ALLOW_ALL, BANK, OUR_SCHEMA, files, write

PERMIT = "permit (principal, action, resource)"
FORBID = "forbid (principal, action, resource)"
RULES = Bundle.from_files(files(ALLOW_ALL)).rules


def refused(contents: dict[str, str]) -> BundleRefused:
    with pytest.raises(BundleRefused) as caught:
        Bundle.from_files(contents)
    assert "\n" not in str(caught.value)
    return caught.value


def test_the_example_bundle_loads_and_its_tests_cover_every_policy() -> None:
    bank = Bundle.load(BANK)
    assert (bank.name, bank.version) == ("bank", 1)
    assert bank.tests_passed >= 40
    tested = "".join(path.read_text(encoding="utf-8") for path in (BANK / "tests").glob("*.yaml"))
    assert [policy.id for policy in bank.policies if policy.id not in tested] == []


def test_the_example_bundle_carries_our_schema() -> None:
    assert (BANK / "schema.cedarschema").read_text(encoding="utf-8") == OUR_SCHEMA


def test_a_bundle_knows_id_effect_reason_and_file_of_its_policies() -> None:
    policy = next(policy for policy in Bundle.load(BANK).policies if policy.id == "stay-in-zone")
    assert policy.effect == "forbid"
    assert policy.file == "policies/zones-and-data.cedar"
    assert policy.actions == ("AnyMove",)
    assert policy.reason.startswith("A VM stays in its network zone")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("permit (principal, action,", "is not Cedar: unexpected end of input"),
        (f'@reason("R.") {PERMIT};', 'policy 1 of the file has no @id("…")'),
        (f'{ALLOW_ALL} @id("") @reason("R.") {PERMIT};', "policy 2 of the file has no @id"),
        (f'@id("a b") @reason("R.") {PERMIT};', "@id must be"),
        (f'@id("\u0430ll") @reason("R.") {PERMIT};', "@id must be"),
        (f'@id("a") {PERMIT};', "policy a has no @reason"),
        (f'@id("a") @reason("  ") {PERMIT};', "policy a has no @reason"),
        (f'@id("a") @reason("x\\n\\u{{1b}}[31m") {PERMIT};', "one printable line"),
        (f'@id("a") @reason("{"x" * 301}") {PERMIT};', "one printable line"),
        (f'@id("a") @id("b") @reason("R.") {PERMIT};', "duplicate annotation"),
        (f'@id("a") @reason("R.") @on_revocation("Cancel") {PERMIT};', "@on_revocation is one of"),
        (f'@id("a") @reason("R.") @on_revocation {PERMIT};', "@on_revocation is one of"),
        (f'@id("a") @reason("R.") @baseline("true") {PERMIT};', '@baseline("true") is for a forbid'),
        (f'@id("a") @reason("R.") @baseline("no") {FORBID};', '@baseline("true") is for a forbid'),
        (f"{ALLOW_ALL} {ALLOW_ALL}", "already used in policies/000.cedar"),
        ('@id("a") @reason("R.") permit (principal == ?principal, action, resource);', "template"),
        (f'@id("a") @reason("R.") {PERMIT} when {{ resource.colour == "red" }};', "policy a does not fit the schema"),
        ('@id("a") @reason("R.") permit (principal, action == Sealane::Action::"Fly", resource);', "does not fit"),
        ('@id("a") @reason("R.") permit (principal in Sealane::Grup::"x", action, resource);', "does not fit"),
    ],
)
def test_a_policy_file_with_a_fault_is_refused_by_name(text: str, words: str) -> None:
    error = refused(files(text))
    assert error.file == "policies/000.cedar"
    assert words in str(error)


def test_an_id_is_unique_over_all_files() -> None:
    error = refused(files(ALLOW_ALL, ALLOW_ALL))
    assert error.file == "policies/001.cedar"
    assert "already used in policies/000.cedar" in error.detail


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ('name = "b"\n', "version: is missing; it must be a whole number, 1 or more"),
        ('name = "b"\nversion = 0\n', "version: is 0; allowed is a whole number, 1 or more"),
        ('name = "b c"\nversion = 1\n', 'name: is "b c"; allowed is a text of 1 to 63 ASCII letters, digits and . _ -'),
        ('name = "b"\nvresion = 1\n', 'vresion: is no key; did you mean "version"?'),
        ('name = "b\n', "is not TOML: Illegal character"),
    ],
)
def test_a_manifest_with_a_fault_is_told_by_key(manifest: str, words: str) -> None:
    error = refused({**files(ALLOW_ALL), "bundle.toml": manifest})
    assert error.file == "bundle.toml"
    assert words in error.detail


@pytest.mark.parametrize(
    "body",
    [
        "(" * 200_000 + "true" + ")" * 200_000,
        "{a:" * 50_000 + "1" + "}" * 50_000 + " == 1",
        "[" * 50_000 + "]" * 50_000 + " == []",
        " && ".join(["true"] * 50_000),
        " && ".join(["true"] * 2_400),
        "1" + "+1" * 50_000 + " == 1",
        "resource" + ".a" * 50_000,
        "if true then true else " * 20_000 + "true",
        "if " * 20_000 + "true" + " then true else true" * 20_000,
        "\n".join(["( // )"] * 2_000),
        'true) // "\n' + "(" * 50_000,
        "(" * 200 + '"' + ")" * 200 + '" == "x"' + ")" * 200,
    ],
)
def test_nesting_that_would_overflow_cedars_stack_is_refused_before_cedar_sees_it(body: str) -> None:
    assert refused(files(f'@id("a") @reason("R.") {PERMIT} when {{ {body} }};')).file == "policies/000.cedar"


def test_a_deeply_nested_schema_is_refused_before_cedar_sees_it() -> None:
    deep = "namespace X { type T = " + "Set<" * 50_000 + "Long" + ">" * 50_000 + "; }"
    assert "nested deeper" in str(refused(files(schema=deep)))


def test_a_schema_of_endless_chains_is_refused_before_cedar_sees_it() -> None:
    chain = "entity E0;\n" + "\n".join(f"entity E{n} in [E{n - 1}];" for n in range(1, 10_000))
    assert "more than 5000 words" in str(refused(files(schema=OUR_SCHEMA + chain)))


def test_brackets_in_strings_and_comments_are_no_nesting() -> None:
    text = f'// {"(" * 500}\n@id("a") @reason("R.") {PERMIT} when {{ "{"(" * 500}" != "x" }};'
    assert len(Bundle.from_files(files(text)).policies) == 1


def test_a_long_list_of_vms_is_no_nesting() -> None:
    vms = ",".join(f'Sealane::Vm::"{n}"' for n in range(500))
    text = '@id("a") @reason("R.") permit (principal, action in Sealane::Action::"AnyMove", resource)'
    assert Bundle.from_files(files(f"{text} when {{ [{vms}].contains(resource) }};")).policies


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("namespace Sealane { entity", "error parsing schema"),
        ("", "does not take the facts"),
        (OUR_SCHEMA.replace("classification: String,", ""), "does not take the facts of MigrateVm"),
        (OUR_SCHEMA.replace("reason_given: Bool, own", "own"), "does not take the facts of CancelMigration"),
        (OUR_SCHEMA.replace("port: Long,", "port: String,"), "does not take the facts"),
        (OUR_SCHEMA.replace("tags: Set<String>,", "tags: Set<String>, owner: String,"), "does not take the facts"),
        (OUR_SCHEMA.replace("PublishPolicy, ", ""), "does not take the facts of PublishPolicy"),
    ],
)
def test_a_schema_of_another_sealane_is_refused(schema: str, words: str) -> None:
    error = refused(files(schema=schema))
    assert error.file == "schema.cedarschema"
    assert words in error.detail


def test_a_schema_may_know_more_than_this_sealane_tells() -> None:
    schema = OUR_SCHEMA.replace("tags: Set<String>,", "tags: Set<String>, owner?: String,")
    assert Bundle.from_files(files(ALLOW_ALL, schema=schema)).policies


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "name = 'x'",
        "version = 1",
        "name =",
        "name = 'x'\nversion = '1'",
        "name = 'x'\nversion = true",
        "name = 'x'\nversion = 0",
        "name = 'a b'\nversion = 1",
        "name = 'x'\nversion = 1\ncolour = 'red'",
        "name = 'x'\nname = 'x'\nversion = 1",
    ],
)
def test_a_manifest_with_a_fault_is_refused(manifest: str) -> None:
    assert refused(files() | {"bundle.toml": manifest}).file == "bundle.toml"


CASE = """
people:
  a: {}
vms:
  v: {zone: test, classification: internal}
hosts:
  h: {site: s, zone: test, jurisdiction: DE}
cases:
  - name: a moves v
    action: MigrateVm
    person: a
    vm: v
    source: h
    destination: h
    expect: allow
    by: [all]
"""


def test_a_bundle_whose_own_tests_pass_is_loaded() -> None:
    assert Bundle.from_files(files(ALLOW_ALL, tests=CASE)).tests_passed == 1


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (": allow", ": deny", "line 9: case 'a moves v' expects deny, but it is allow: by all"),
        ("[all]", "[other]", "expects other to determine it, but it is all"),
        ("[all]", "[]", "expects no policy to determine it, but it is all"),
        ("MigrateVm", "Fly", "knows no action 'Fly'"),
        ("    vm: v\n", "", "does not know this VM"),
        ("person: a", "person: b", "'b' is not defined"),
        ("a: {}", "a: {groups_known: false}", "groups are not known"),
        ("a: {}", "a: {groups: [x]}", "group id"),
        (
            "a: {}",
            "a: {admin: true}",
            "line 3, column 14: people.a.admin: is no key; the keys of [people.a] are issuer,",
        ),
        (": allow", ": maybe", 'line 15, column 13: cases[0].expect: is "maybe"; allowed is "allow" or "deny"'),
        ("  - name", "  x:\n  - name", "line 9, column 3: cases: is a table; allowed is a list"),
        ("a: {}", "a: {", "is not YAML"),
        (": allow", ": allow\n    time: 2026-01-01T00:00:00", "allowed is a moment with its time zone, such as"),
        (": allow", ": allow\n    time: 2026-13-01T00:00:00Z", "2026-13-01T00:00:00Z is no moment: month must be in"),
        (": allow", ": allow\n    tiem: v", 'line 16, column 11: cases[0].tiem: is no key; did you mean "time"?'),
        ("person: a", "person: no", "'no' is not the same in every YAML"),
        ("person: a", "person: a\n    person: a", "has the key 'person' twice"),
    ],
)
def test_a_bundle_whose_own_tests_fail_is_refused(old: str, new: str, words: str) -> None:
    error = refused(files(ALLOW_ALL, tests=CASE.replace(old, new)))
    assert error.file == "tests/cases.yaml"
    assert words in error.detail


def test_tables_of_one_name_in_two_test_files_are_refused() -> None:
    assert "already defined" in str(refused(files(ALLOW_ALL, tests=CASE) | {"tests/more.yaml": "people: {a: {}}\n"}))


def test_the_digest_is_the_published_one_for_a_known_bundle() -> None:
    # printf 'sealane bundle v1\n\0\0\0\1a\0\0\0\0\0\0\0\2bc\0\0\0\1d\0\0\0\0\0\0\0\0' | sha256sum
    assert bundle_digest({"d": "", "a": "bc"}) == "b9ffca7a72cea04659b3ed1a7f5df96c4e2246a93321af68c0e6c929d6005c54"


def test_the_digest_changes_with_every_file_name_and_byte() -> None:
    contents = files(ALLOW_ALL, tests=CASE)
    digests = {bundle_digest(contents)}
    for path, text in contents.items():
        without = {other: contents[other] for other in contents if other != path}
        digests |= {bundle_digest(contents | {path: text + " "}), bundle_digest(without)}
        digests.add(bundle_digest(without | {path + "x": text}))
    assert len(digests) == 1 + 3 * len(contents)


@given(
    st.dictionaries(st.text(max_size=3), st.text(max_size=3)), st.dictionaries(st.text(max_size=3), st.text(max_size=3))
)
def test_two_bundles_have_one_digest_only_if_they_are_one(one: dict[str, str], other: dict[str, str]) -> None:
    assert (bundle_digest(one) == bundle_digest(other)) == (one == other)


def test_a_directory_loads_to_the_same_digest_as_its_texts(tmp_path: Path) -> None:
    contents = files(ALLOW_ALL, tests=CASE)
    assert (
        Bundle.load(write(tmp_path, contents)).digest == Bundle.from_files(contents).digest == bundle_digest(contents)
    )


@pytest.mark.parametrize(
    "stray",
    [
        "README.md",
        ".git",
        "policies/a.cedar~",
        "policies/.a.cedar",
        "policies/a.CEDAR",
        "policies/sub",
        "policies/a\n.cedar",
        "policies/..cedar",
        "tests/a.toml",
        "tests/a.yml",
    ],
)
def test_what_does_not_belong_in_a_bundle_is_refused(tmp_path: Path, stray: str) -> None:
    write(tmp_path, files(ALLOW_ALL) | {stray: ""})
    with pytest.raises(BundleRefused, match="does not belong"):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("path", ["bundle.toml", "schema.cedarschema", "policies/000.cedar", "policies", "tests"])
def test_a_symlink_in_a_bundle_is_refused(tmp_path: Path, path: str) -> None:
    made = write(tmp_path / "bundle", files(ALLOW_ALL, tests=CASE))
    (made / path).rename(tmp_path / "elsewhere")
    (made / path).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleRefused, match="symlink") as caught:
        Bundle.load(made)
    assert caught.value.file == path


def test_a_fifo_in_a_bundle_is_refused_and_hangs_nobody(tmp_path: Path) -> None:
    write(tmp_path, files(ALLOW_ALL))
    os.mkfifo(tmp_path / "policies" / "wait.cedar")
    with pytest.raises(BundleRefused, match="regular file"):
        Bundle.load(tmp_path)


def test_a_directory_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, files(ALLOW_ALL))
    (tmp_path / "policies" / "folder.cedar").mkdir()
    with pytest.raises(BundleRefused, match=r"policies/folder\.cedar"):
        Bundle.load(tmp_path)


def test_more_than_ten_mebibytes_are_refused_whatever_the_files(tmp_path: Path) -> None:
    write(tmp_path, files(*[ALLOW_ALL + "// " + "x" * 1024 * 1024] * 10))
    with pytest.raises(BundleRefused, match="10 MiB"):
        Bundle.load(tmp_path)


def test_more_files_than_anyone_needs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_files, "MAX_FILES", 3)
    with pytest.raises(BundleRefused, match="more than 3 files"):
        Bundle.load(write(tmp_path, files(ALLOW_ALL, ALLOW_ALL)))


def test_text_that_is_not_utf_8_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, files(ALLOW_ALL))
    (tmp_path / "policies" / "latin.cedar").write_bytes(b"// caf\xe9\n")
    with pytest.raises(BundleRefused, match=r"policies/latin\.cedar: is not UTF-8 at byte 6"):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("missing", ["bundle.toml", "schema.cedarschema"])
def test_a_bundle_needs_its_manifest_and_schema(tmp_path: Path, missing: str) -> None:
    write(tmp_path, files(ALLOW_ALL))
    (tmp_path / missing).unlink()
    with pytest.raises(BundleRefused, match=f"{missing}: is missing"):
        Bundle.load(tmp_path)


def test_a_bundle_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleRefused, match="name an existing directory"):
        Bundle.load(tmp_path / "nowhere")


def test_a_bundle_without_policies_permits_nothing_but_loads(tmp_path: Path) -> None:
    assert Bundle.load(write(tmp_path, files())).policies == ()


def test_a_bundle_may_be_replaced_by_renaming_it(tmp_path: Path) -> None:
    shutil.copytree(BANK, tmp_path / "v1")
    (tmp_path / "current").symlink_to("v1")
    assert Bundle.load(tmp_path / "current").digest == Bundle.load(BANK).digest


@settings(max_examples=60)
@given(st.text(alphabet=st.sampled_from(list('permit(pncl,aos);@id"R.{}[]when&!|=<>0 \n//\\')), max_size=200))
def test_any_policy_text_is_loaded_or_refused(text: str) -> None:
    try:
        Bundle.from_files(files(text))
    except BundleRefused:
        return


@given(st.text(max_size=200))
def test_any_test_text_is_run_or_refused(text: str) -> None:
    try:
        run_cases(RULES, {"tests/cases.yaml": text})
    except BundleRefused:
        return
