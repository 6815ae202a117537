"""The offline verifier: agrees with the writer on every sound log, and finds every altered byte."""

import ast
import base64
import hashlib
import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

import audit
from audit.checkpoint import Checkpoint, LogSigner, read_note, sign_checkpoint
from audit.cosignature import Cosigner
from audit.group import After, Draft, Unsigned
from audit.log import EntryBuilder, Log
from audit.verify import Options, Verdict, verify_log
from tests.audit.disks import FastDisk
from tests.audit.samples import (
    DESTINATION,
    OTHER_SIGNER,
    SIGNER,
    SOURCE,
    VM_ID,
    drafted,
    drafted_with_permit,
    entry,
    one,
    permit,
    permit_of,
    raw,
    record,
    with_permit,
)
from tests.audit.test_record import json_values, reencode

pytestmark = pytest.mark.whole

KEYS = [SIGNER.vkey]


def written(directory: Path, *builders: EntryBuilder) -> str:
    with Log.open(directory, SIGNER, disk=FastDisk()) as log:
        return log.append(builders).checkpoint_text


def found(directory: Path, keys: Sequence[str] = KEYS, **options: Any) -> list[tuple[int | None, str]]:
    verdict = verify_log(directory, keys, **options)
    assert verdict.ok == (not verdict.problems)
    return [(problem.index, problem.what) for problem in verdict.problems]


def warned(verdict: Verdict) -> list[str]:
    assert verdict.ok
    return [warning.what for warning in verdict.warnings]


@contextmanager
def flipped(path: Path, position: int, bit: int = 0) -> Iterator[None]:
    data = path.read_bytes()
    altered = bytearray(data)
    altered[position] ^= 1 << bit
    path.write_bytes(bytes(altered))
    yield
    path.write_bytes(data)


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """260 entries: a sealed bundle, and a tail; every other commit's records signed together."""
    directory = tmp_path_factory.mktemp("long") / "log"
    with Log.open(directory, SIGNER, disk=FastDisk()) as log:
        for number in range(26):
            log.append([drafted_with_permit if number % 2 else with_permit] * 5)
    with Log.open(directory, SIGNER, disk=FastDisk()):
        return directory


def test_the_verifier_shares_no_code_with_the_writer() -> None:
    folder = Path(audit.__file__).parent
    parts = ("tree", "entry", "group", "keys", "range", "receipt", "cosignature", "work")
    own = {"audit", *(f"audit.verify_{part}" for part in parts)}
    for name in ("verify.py", *(f"verify_{part}.py" for part in parts)):
        for node in ast.walk(ast.parse((folder / name).read_text())):
            modules = []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
                if node.module == "audit":
                    assert {alias.name for alias in node.names} <= {f"verify_{part}" for part in parts}
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            for module in modules:
                top = module.partition(".")[0]
                assert module in own or top == "cryptography" or top in sys.stdlib_module_names, module


def test_a_sound_log_is_verified_and_progress_is_told(long_log: Path) -> None:
    progress: list[tuple[int, int]] = []
    verdict = verify_log(long_log, KEYS, lambda done, total: progress.append((done, total)))
    assert (verdict.ok, verdict.problems, verdict.warnings) == (True, [], [])
    assert (verdict.size, verdict.records, verdict.permits) == (260, 130, 130)
    assert progress == [(260, 260)]


def test_an_empty_log_is_sound(tmp_path: Path) -> None:
    Log.open(tmp_path, SIGNER, disk=FastDisk()).close()
    assert found(tmp_path) == []


@settings(max_examples=20)
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.booleans(), st.booleans(), st.dictionaries(st.text(), json_values, max_size=2), st.text(max_size=9)
            ),
            min_size=1,
            max_size=9,
        ),
        max_size=4,
    ),
    st.sampled_from([0, 0, 0, 253]),
)
def test_writer_and_verifier_agree(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[tuple[bool, bool, dict[str, Any], str]]], start: int
) -> None:
    directory = tmp_path_factory.mktemp("agree")

    def builder(alone: bool, permitted: bool, details: dict[str, Any], reason: str) -> EntryBuilder:
        def build(index: int) -> Sequence[Draft]:
            if not alone:
                draft = Unsigned.of(record(index, details=details, reason=reason))
                return [draft, After(partial(permit_of, index, note=reason))] if permitted else [draft]
            decision = entry(index, details=details, reason=reason)
            return [decision, permit(index, decision, note=reason)] if permitted else [decision]

        return build

    with Log.open(directory, SIGNER, disk=FastDisk()) as log:
        if start:
            log.append([one] * start)
        for group in groups:
            log.append([builder(*each) for each in group])
        size, root = log.size, log.root_at(log.size)
    verdict = verify_log(directory, KEYS)
    assert verdict.ok, verdict.problems
    assert (verdict.size, verdict.root) == (size, root)


@pytest.mark.parametrize("together", [False, True])
def test_every_flipped_byte_of_a_small_log_is_found(together: bool, tmp_path: Path) -> None:
    small = entry(0, actor=None, details={}, reason=None)
    written(tmp_path, *([drafted_with_permit, drafted] if together else [raw(small, permit(0, small))]))
    for path in (tmp_path / "checkpoint", tmp_path / "tail" / "0"):
        for position in range(path.stat().st_size):
            with flipped(path, position, position % 8):
                assert found(tmp_path), (path, position)


def test_flipped_bytes_of_bundles_and_tiles_are_found_and_the_entry_is_named(long_log: Path) -> None:
    chance = random.Random(7)
    files = sorted(path for path in (long_log / "tile").rglob("*") if path.is_file())
    assert len(files) == 2
    for path in files:
        size = path.stat().st_size
        for position in [0, 1, 2, size - 1, *(chance.randrange(size) for _ in range(4))]:
            with flipped(path, position, chance.randrange(8)):
                problems = found(long_log)
                assert problems
                assert problems[0][0] is not None or "tile" in problems[0][1]
    assert found(long_log) == []


@pytest.mark.parametrize("name", ["tile/0/000", "tile/entries/000", "tail/1", "checkpoint"])
def test_a_missing_or_shortened_file_is_found(name: str, long_log: Path, tmp_path: Path) -> None:
    copy = tmp_path / "log"
    shutil.copytree(long_log, copy)
    (copy / name).write_bytes((long_log / name).read_bytes()[:-1])
    assert found(copy)
    (copy / name).unlink()
    assert found(copy)


def test_files_that_are_no_part_of_the_log_are_found(long_log: Path, tmp_path: Path) -> None:
    copy = tmp_path / "log"
    shutil.copytree(long_log, copy)
    shutil.copy(copy / "tile/entries/000", copy / "tile/entries/001")
    (copy / "tail/notes").touch()
    shutil.copy(copy / "tile/entries/000", copy / "tail/0")
    whats = "\n".join(what for _, what in found(copy))
    for expected in ("tile/entries/001 is not part", "tail/notes is not part", "tail/0 is in its bundle"):
        assert expected in whats


def test_keys_that_are_missing_wrong_or_of_another_origin_do_not_verify(tmp_path: Path) -> None:
    written(tmp_path, one)
    for keys in ([], [OTHER_SIGNER.vkey], [LogSigner("elsewhere/log", SIGNER.private_key).vkey]):
        assert "cannot be trusted" in found(tmp_path, keys)[0][1]
    for bad in ("", "a+b+c", SIGNER.vkey.replace("+", "-"), SIGNER.vkey[:-2] + "A="):
        with pytest.raises(ValueError, match="log key"):
            verify_log(tmp_path, [bad])


def test_records_of_an_older_key_verify_if_that_key_is_given_too(tmp_path: Path) -> None:
    written(tmp_path, lambda index: [entry(index, OTHER_SIGNER)], one)
    assert [index for index, _ in found(tmp_path)] == [0]
    assert found(tmp_path, [SIGNER.vkey, OTHER_SIGNER.vkey]) == []


def test_a_missing_directory_is_an_error_and_not_a_verdict(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        verify_log(tmp_path / "missing", KEYS)


# What a gateway whose key was misused could sign, and the verifier must still refuse


def resigned(index: int, **changes: Any) -> bytes:
    """A record entry of any shape, in canonical form, under a right signature."""
    body = json.loads(entry(index))["record"] | changes
    body = {name: value for name, value in body.items() if value is not ...}
    signature = base64.b64encode(SIGNER.sign(b"sealane audit record v1\n" + reencode(body))).decode()
    return reencode({"key": SIGNER.key_id, "record": body, "signature": signature})


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (resigned(1, sequence=2), "says that it is number 2"),
        (resigned(1, sequence=True), "says that it is number True"),
        (resigned(1, origin="elsewhere/log"), "another log"),
        (resigned(1, time="2026-11-22 21:42:21Z"), "time"),
        (resigned(1, time="2026-13-22T21:42:21.000000Z"), "time"),
        (resigned(1, version=3), "version"),
        (resigned(1, version=[]), "version"),
        (resigned(1, version=2, clock_error_us=True), "clock_error_us"),
        (resigned(1, version=2, clock_error_us=-1), "clock_error_us"),
        (resigned(1, version=2), "fields are not those"),
        (resigned(1, extra=1), "fields"),
        (resigned(1, reason=...), "fields"),
        (resigned(1, details=[]), "details"),
        (resigned(1, monotonic_ns=-1), "monotonic_ns"),
        (resigned(1, actor={"id": "x"}), "actor"),
        (resigned(1, vm={}), "vm"),
        (resigned(1, kind=7), "kind"),
        (resigned(1, source=7), "source"),
        (resigned(1, details={"n": 1.5}), "not an integer"),
        (resigned(1, reason="x" * 70_000)[:65_000], "over 61440"),
        (entry(1, OTHER_SIGNER), "which was not given"),
        (entry(1).replace(b"maintenance", b"maintenancf"), "signature is wrong"),
        (entry(1) + b" ", "canonical"),
        (entry(1).replace(b'"kind":', b'"kind":"a","kind":'), "canonical"),
        (b"[]", "not an object"),
        (b"{}", "neither a record"),
        (b"\xff\xfe", "not JSON"),
        (b'{"a":NaN}', "not an integer"),
        (b'{"key":"\\ud800"}', "canonical"),
        (b"[" * 50_000, "not JSON"),
        (b'{"kind":"other"}', "neither a record"),
    ],
)
def test_an_entry_that_is_not_a_sound_record_is_found(bad: bytes, what: str, tmp_path: Path) -> None:
    written(tmp_path, one, raw(bad), one)
    problems = found(tmp_path)
    assert problems[0][0] == 1
    assert what in problems[0][1]
    assert {index for index, _ in problems} == {1}


def permit_in_second_place(change: Callable[[bytes], bytes], **decision: Any) -> EntryBuilder:
    def build(index: int) -> Sequence[bytes]:
        first = entry(index, **decision)
        return [first, change(first)]

    return build


SIBLING = entry(0, reason="another decision")


@pytest.mark.parametrize(
    ("builder", "what"),
    [
        (permit_in_second_place(lambda first: permit(0, first), outcome="denied"), "outcome is 'denied'"),
        (permit_in_second_place(lambda first: permit(0, first), outcome=None), "outcome is None"),
        (permit_in_second_place(lambda _first: permit(0, SIBLING)), "another decision"),
        (permit_in_second_place(lambda first: permit(1, first, migration_id="m-0")), "not the entry before"),
        (permit_in_second_place(lambda first: permit(0, first, migration_id="m-9")), "another migration"),
        (permit_in_second_place(lambda first: permit(0, first, vm="another")), "another vm"),
        (permit_in_second_place(lambda first: permit(0, first, source="another")), "another source"),
        (permit_in_second_place(lambda first: permit(0, first, destination=None)), "another destination"),
        (permit_in_second_place(lambda first: permit(0, first), migration_id=None), "another migration"),
        (permit_in_second_place(lambda first: permit(0, first)[:-1] + b',"x":1}'), "neither a record"),
        (permit_in_second_place(lambda _first: b'{"claims":{},"decision":7,"kind":"sealane-permit"}'), "malformed"),
    ],
)
def test_a_permit_that_does_not_match_its_decision_is_found(builder: EntryBuilder, what: str, tmp_path: Path) -> None:
    written(tmp_path, builder)
    problems = found(tmp_path)
    assert {index for index, _ in problems} == {1}
    assert any(what in text for _, text in problems), problems


@pytest.mark.parametrize("outcome", [b"[]", b"{}", b'["allowed"]', b"7"])
def test_a_decision_whose_outcome_is_no_text_is_a_finding_and_so_is_its_permit(outcome: bytes, tmp_path: Path) -> None:
    """Whoever can write to the log's folder writes there what no gateway would."""
    altered = entry(0).replace(b'"outcome":"allowed"', b'"outcome":' + outcome)
    written(tmp_path, raw(altered, permit(0, altered)))
    problems = found(tmp_path)
    assert (0, "its outcome is neither null nor a text") in problems
    assert any(index == 1 and "a permit for a decision whose outcome is" in text for index, text in problems)


def test_a_permit_at_the_start_or_after_a_permit_is_found(tmp_path: Path) -> None:
    first = entry(0)
    written(tmp_path / "a", raw(permit(0, first)))
    assert "does not follow a decision" in found(tmp_path / "a")[0][1]
    written(tmp_path / "b", raw(first, permit(0, first), permit(0, first)))
    assert found(tmp_path / "b") == [(2, "it is a permit that does not follow a decision")]


# Histories


def test_a_checkpoint_signed_over_another_root_is_found(tmp_path: Path) -> None:
    written(tmp_path, one, one)
    (tmp_path / "checkpoint").write_text(sign_checkpoint(Checkpoint(SIGNER.origin, 2, bytes(32)), SIGNER))
    assert "do not have the root" in found(tmp_path)[0][1]


def test_a_log_put_back_or_rewritten_is_found_by_a_checkpoint_seen_elsewhere(tmp_path: Path) -> None:
    written(tmp_path / "log", one, one)
    shutil.copytree(tmp_path / "log", tmp_path / "old")
    seen = written(tmp_path / "log", one)
    written(tmp_path / "log", one)
    assert found(tmp_path / "log", seen=[seen]) == []
    assert "3 were seen" in found(tmp_path / "old", seen=[seen])[0][1]
    written(tmp_path / "old", lambda index: [entry(index, reason="another")], one)
    assert found(tmp_path / "old") == []
    assert "history was rewritten" in found(tmp_path / "old", seen=[seen])[0][1]
    with pytest.raises(ValueError, match="not signed"):
        verify_log(tmp_path / "log", KEYS, seen=[seen.replace(SIGNER.key_id, "x").replace("— ", "— x")])


def test_uncommitted_entries_are_a_warning_and_an_older_checkpoint_therefore_is_one(tmp_path: Path) -> None:
    old = written(tmp_path, one)
    written(tmp_path, one)
    (tmp_path / "checkpoint").write_text(old)
    assert "beyond the checkpoint" in warned(verify_log(tmp_path, KEYS))[0]
    with Log.open(tmp_path, SIGNER, disk=FastDisk()) as log:
        assert log.recovery is not None
    assert "was cut off by a recovery" in warned(verify_log(tmp_path, KEYS))[0]


def timed(*stamps: tuple[str, str, int, str]) -> list[EntryBuilder]:
    """Builders of records with (boot, time, monotonic seconds, kind)."""

    def builder(boot: str, time: str, seconds: int, kind: str) -> EntryBuilder:
        return lambda index: [
            entry(index, boot_id=boot, time=f"2026-11-22T{time}.000000Z", monotonic_ns=seconds * 10**9, kind=kind)
        ]

    return [builder(*stamp) for stamp in stamps]


@pytest.mark.parametrize(
    ("stamps", "warnings"),
    [
        ([("a", "10:00:00", 5, "x"), ("a", "10:00:10", 15, "x"), ("b", "10:05:00", 1, "x")], []),
        ([("a", "10:00:00", 5, "x"), ("b", "09:59:00", 1, "x")], ["behind the record before"]),
        ([("a", "10:00:00", 5, "x"), ("a", "09:59:59", 5, "x")], ["behind the record before"]),
        ([("a", "10:00:00", 5, "x"), ("a", "11:00:00", 6, "x")], ["stepped by +3599.000"]),
        ([("a", "10:00:00", 5, "x"), ("a", "10:00:00", 4, "x")], ["monotonic clock runs backwards"]),
        ([("a", "10:00:00", 5, "x"), ("a", "09:00:00", 6, "clock-step"), ("a", "09:00:01", 7, "x")], []),
    ],
)
def test_time_that_runs_backwards_unsaid_is_a_warning(
    stamps: list[tuple[str, str, int, str]], warnings: list[str], tmp_path: Path
) -> None:
    written(tmp_path, *timed(*stamps))
    said = warned(verify_log(tmp_path, KEYS))
    assert bool(said) == bool(warnings)
    assert all(any(expected in what for what in said) for expected in warnings)


def test_the_number_of_problems_that_are_listed_is_bounded(tmp_path: Path) -> None:
    written(tmp_path, *[raw(b"x")] * 1100)
    problems = found(tmp_path)
    assert len(problems) == 1001
    assert "more than 1000" in problems[-1][1]


def test_a_record_reads_the_same_to_writer_and_verifier() -> None:
    assert json.loads(entry(0))["record"]["time"] == record(0).time


@pytest.fixture(scope="module")
def longer_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough bundles for several jobs, so that processes are started."""
    directory = tmp_path_factory.mktemp("longer") / "log"
    with Log.open(directory, SIGNER, disk=FastDisk()) as log:
        while log.size < 40 * 256 + 7:
            log.append([with_permit, one] * 200)
    return directory


def test_several_processes_and_a_sample_come_to_the_same_verdict(longer_log: Path) -> None:
    alone = verify_log(longer_log, KEYS)
    assert (alone.ok, alone.signatures) == (True, alone.records)
    together = verify_log(longer_log, KEYS, options=Options(workers=2, sampled=True))
    assert 0 < together.signatures < alone.signatures // 16
    assert replace(together, signatures=alone.signatures) == alone


def test_what_spans_two_jobs_is_seen(longer_log: Path, tmp_path: Path) -> None:
    """A permit at the start of a job belongs to the decision at the end of the job before."""
    directory = tmp_path / "log"
    decision = entry(4095, outcome="denied")
    written(directory, *[one] * 4095, raw(decision, permit(4095, decision)), *[one] * 5000)
    assert found(directory, options=Options(workers=2)) == [
        (4096, "it is a permit for a decision whose outcome is 'denied'")
    ]


def test_a_checkpoint_seen_within_a_bundle_is_compared_in_any_job(longer_log: Path, tmp_path: Path) -> None:
    directory = tmp_path / "log"
    texts = []
    with Log.open(directory, SIGNER, disk=FastDisk()) as log:
        for _ in range(10):
            texts.append(log.append([one] * 999).checkpoint_text)
    assert found(directory, seen=texts, options=Options(workers=2)) == []
    forged = sign_checkpoint(Checkpoint(SIGNER.origin, 8991, bytes(32)), SIGNER)
    assert "rewritten" in found(directory, seen=[forged], options=Options(workers=2))[0][1]


@pytest.mark.parametrize("workers", [1, 2])
def test_damage_in_a_late_job_is_found_and_everything_before_it_counted(
    longer_log: Path, tmp_path: Path, workers: int
) -> None:
    directory = tmp_path / "log"
    shutil.copytree(longer_log, directory)
    (directory / "tile" / "entries" / "035").unlink()
    problems = found(directory, options=Options(workers=workers))
    assert problems[0] == (8960, "entries 8960 to 9215 are missing")


def test_silence_is_told_where_a_heartbeat_was_promised(tmp_path: Path) -> None:
    started = entry(0, kind="gateway.started", details={"heartbeat_seconds": 60})
    late: dict[str, Any] = {"time": "2026-11-22T21:10:00.000000Z", "monotonic_ns": 600 * 10**9}
    written(tmp_path, raw(started, entry(1, **late)))
    assert warned(verify_log(tmp_path, KEYS)) == ["silence of 600 s before it, with a heartbeat due every 60 s"]
    assert warned(verify_log(tmp_path, KEYS, options=Options(heartbeat_seconds=600))) == []


def receipt_of(host: Any, signed: Mapping[str, Any] = MappingProxyType({}), **changes: Any) -> bytes:
    """A receipt record as a gateway writes it; `changes` to its body come after the signature, `signed` before."""
    key, certificate = host
    body = {"migration_id": "m-0", "jti": "j", "source": SOURCE, "destination": DESTINATION, "vm": VM_ID}
    body |= {"role": "source", "outcome": "completed", "ended": "2026-11-22T21:00:00.000000Z", **signed}
    signature = key.sign(json.dumps(body).encode(), ec.ECDSA(hashes.SHA256()))
    text = json.dumps(body | changes)
    details = {
        "role": body["role"],
        "jti": "j",
        "body": text,
        "body_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "signature": base64.b64encode(signature).decode(),
        "chain": [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()],
    }
    return entry(0, kind="migration.receipt", outcome="completed", details=details)


def host_certificate(
    name: str = SOURCE, until: datetime = datetime(2027, 1, 1, tzinfo=UTC)
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "host")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(until)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


@pytest.mark.parametrize(
    ("host", "changes", "what"),
    [
        ({}, {}, None),
        ({}, {"downtime_ms": 0}, "signature is wrong"),
        ({}, {"outcome": "failed"}, "another outcome"),
        ({}, {"vm": "other"}, "another vm"),
        ({}, {"role": ["source"]}, "neither source nor destination"),
        ({"name": DESTINATION}, {}, "signed by another host"),
        ({"until": datetime(2026, 11, 21, tzinfo=UTC)}, {}, "not valid when"),
    ],
)
def test_a_receipt_must_say_what_its_record_says_and_be_the_hosts(
    host: dict[str, Any], changes: dict[str, Any], what: str | None, tmp_path: Path
) -> None:
    written(tmp_path, raw(receipt_of(host_certificate(**host), **changes)))
    problems = [problem for _, problem in found(tmp_path)]
    assert (problems == []) if what is None else any(what in problem for problem in problems), problems


def test_no_receipt_is_of_a_host_that_had_neither_part(tmp_path: Path) -> None:
    """It names a member of the body where the signer stands, as role; the record says the same of it."""
    signed = {"role": "witness", "witness": "spiffe://bank.example/host/stranger"}
    written(tmp_path, raw(receipt_of(host_certificate("spiffe://bank.example/host/stranger"), signed)))
    assert [problem for _, problem in found(tmp_path)] == ["its receipt's role is neither source nor destination"]


def test_receipts_must_chain_to_the_authorities_that_are_given(tmp_path: Path) -> None:
    host, other = host_certificate(), host_certificate()
    written(tmp_path, raw(receipt_of(host)))
    good, bad = (one[1].public_bytes(Encoding.PEM) for one in (host, other))
    assert found(tmp_path, options=Options(authorities=good)) == []
    assert "not issued by" in found(tmp_path, options=Options(authorities=bad))[0][1]
    with pytest.raises(ValueError, match=r"."):
        verify_log(tmp_path, KEYS, options=Options(authorities=b"none"))


def test_witnesses_that_are_given_must_have_cosigned(tmp_path: Path) -> None:
    text = written(tmp_path, one)
    ours = Cosigner("witness.example/w", Ed25519PrivateKey.from_private_bytes(bytes(32)))
    other = Cosigner("witness.example/x", Ed25519PrivateKey.from_private_bytes(bytes(32)))
    (tmp_path / "checkpoint").write_text(text + ours.cosign(read_note(text), 1_790_000_000))
    assert verify_log(tmp_path, KEYS, options=Options(witnesses=[ours.key.vkey])).cosignatures == [
        ("witness.example/w", 1_790_000_000)
    ]
    assert "no cosignature" in found(tmp_path, options=Options(witnesses=[other.key.vkey]))[0][1]
    line = ours.cosign(read_note(text), 1_790_000_000)
    blob = bytearray(base64.b64decode(line.split()[-1]))
    for position in range(4, len(blob)):
        blob[position] ^= 1
        wrong = " ".join([*line.split()[:-1], base64.b64encode(blob).decode()])
        (tmp_path / "checkpoint").write_text(text + wrong + "\n")
        assert found(tmp_path, options=Options(witnesses=[ours.key.vkey])) != []
        blob[position] ^= 1
