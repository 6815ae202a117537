"""A witness cosigns one history of each log, whatever it is sent and whenever it dies."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from audit.checkpoint import Checkpoint, LogSigner, open_checkpoint, read_note, sign_checkpoint
from audit.cosignature import Cosigner, cosignatures, cosigners_of, read_answer
from audit.errors import LogDamaged, LogLocked, WitnessRefused
from audit.log import Log
from audit.witness import Witness, read_request, write_request
from tests.audit.disks import FastDisk, FaultyDisk, Loss, PowerCut
from tests.audit.samples import ORIGIN, OTHER_SIGNER, SIGNER, raw

NAME, NOW = "witness.example/w1", 1_764_100_000
COSIGNERS = [
    Cosigner(NAME, Ed25519PrivateKey.from_private_bytes(bytes(32))),
    Cosigner(NAME, MLDSA44PrivateKey.from_seed_bytes(bytes(32))),
]
KEYS = [one.key for one in COSIGNERS]
LOGS = {ORIGIN: [SIGNER.verifier], "other.example/log": [LogSigner("other.example/log", SIGNER.private_key).verifier]}


class History:
    """A log, with a checkpoint of each of its sizes."""

    def __init__(self, directory: Path, entries: list[bytes]) -> None:
        self.log = Log.open(directory, SIGNER, disk=FastDisk())
        self.checkpoints = [self.log.checkpoint_text]
        for entry in entries:
            self.checkpoints.append(self.log.append([raw(entry)]).checkpoint_text)

    def request(self, old: int, new: int) -> bytes:
        path = self.log.consistency_path(old, new) if old else []
        return write_request(old, path, self.checkpoints[new])


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    return History(tmp_path_factory.mktemp("history") / "log", [b"entry %d" % number for number in range(20)])


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> History:
    """The same key, another history from entry 5 on: a second gateway with one key, or a log put back."""
    entries = [b"entry %d" % number if number < 5 else b"other" for number in range(20)]
    return History(tmp_path_factory.mktemp("fork") / "log", entries)


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    it = Witness(tmp_path / "state", COSIGNERS, LOGS, FastDisk())
    yield it
    it.close()


def refusal(witness: Witness, body: bytes) -> tuple[int, int | None]:
    with pytest.raises(WitnessRefused) as caught:
        witness.add_checkpoint(body, NOW)
    return caught.value.status, caught.value.size


def test_it_cosigns_a_log_as_it_grows_and_again_without_growth(witness: Witness, history: History) -> None:
    for old, new in ((0, 0), (0, 3), (3, 3), (3, 8), (8, 20), (20, 20)):
        lines = witness.add_checkpoint(history.request(old, new), NOW + new)
        text = history.checkpoints[new]
        found = read_answer(read_note(text), lines, KEYS)
        assert [(one.name, one.time) for one in found] == [(NAME, NOW + new)] * 2
        assert cosigners_of(cosignatures(text + lines, KEYS)) == {NAME}


def test_what_it_cosigned_last_can_be_read_with_all_signatures(witness: Witness, history: History) -> None:
    origin_hash = hashlib.sha256(ORIGIN.encode()).hexdigest()
    assert witness.latest(origin_hash) is None
    assert witness.latest("../lock") is None
    witness.add_checkpoint(history.request(0, 9), NOW)
    text = witness.latest(origin_hash)
    assert text is not None
    assert open_checkpoint(text, [SIGNER.verifier]).size == 9
    assert len(cosignatures(text, KEYS)) == 2


def test_another_old_size_than_its_own_is_a_conflict_that_tells_its_own(witness: Witness, history: History) -> None:
    assert refusal(witness, history.request(3, 8)) == (409, 0)
    witness.add_checkpoint(history.request(0, 8), NOW)
    assert refusal(witness, history.request(3, 9)) == (409, 8)
    assert refusal(witness, history.request(0, 5)) == (409, 8)  # rolled back
    assert refusal(witness, history.request(5, 5)) == (409, 8)
    witness.add_checkpoint(history.request(8, 9), NOW)


def test_a_fork_is_refused_and_kept_as_evidence(
    witness: Witness, history: History, fork: History, tmp_path: Path
) -> None:
    witness.add_checkpoint(history.request(0, 8), NOW)
    assert refusal(witness, fork.request(8, 8)) == (422, None)
    assert refusal(witness, fork.request(8, 12)) == (422, None)
    witness.add_checkpoint(history.request(8, 12), NOW)
    assert refusal(witness, fork.request(12, 20)) == (422, None)
    kept = {path.name.split("-")[0]: path.read_text() for path in (tmp_path / "state" / "evidence").iterdir()}
    assert kept["fork"] == fork.checkpoints[8]
    assert open_checkpoint(kept["unproven"], [SIGNER.verifier]).size in {12, 20}


@pytest.mark.parametrize(("size", "kept"), [(12, 1), (8, 0)])
def test_wrong_proofs_of_strangers_are_one_file_for_a_checkpoint_and_never_a_fork(
    witness: Witness, history: History, tmp_path: Path, size: int, kept: int
) -> None:
    witness.add_checkpoint(history.request(0, 8), NOW)
    note = read_note(history.checkpoints[size])
    for number in range(5):
        text = f"{note.body}\n{COSIGNERS[0].cosign(note, 1 + number)}" + history.checkpoints[size].split("\n\n")[1]
        assert refusal(witness, write_request(8, [bytes(32)], text)) == (422, None)
    found = [path.name.split("-")[0] for path in (tmp_path / "state" / "evidence").iterdir()]
    assert found == ["unproven"] * kept


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda body: body.replace(ORIGIN.encode(), b"unknown.example/log"), 404),
        (lambda body: body.replace(b"old 0", b"old 00"), 400),
        (lambda body: body.replace(b"old 0", b"old -1"), 400),
        (lambda body: body.replace(b"old 0", b"old 9"), 400),
        (lambda body: body.replace(b"old 0\n", b"old 0\n" + b"A" * 43 + b"=\n"), 422),
        (lambda body: body.replace(b"old 0\n", b"old 0\n" + b"A" * 43 + b"B\n"), 400),
        (lambda body: body.replace(b"old 0\n", b"old 0\n" + (b"A" * 43 + b"=\n") * 64), 400),
        (lambda body: body.replace(b"\n8\n", b"\n7\n"), 403),
        (lambda body: body.replace(b"\n\n", b"\n"), 400),
        (lambda body: body[:-1], 400),
        (lambda body: body + b" " * 40_000, 400),
        (lambda body: b"\xff" + body, 400),
        (lambda _body: b"", 400),
    ],
)
def test_a_malformed_or_unsigned_request_is_refused_by_the_status_of_the_specification(
    witness: Witness, history: History, change: object, status: int
) -> None:
    assert refusal(witness, change(history.request(0, 8)))[0] == status  # type: ignore[operator]
    witness.add_checkpoint(history.request(0, 8), NOW)


def test_a_checkpoint_by_another_key_or_of_another_log_is_not_cosigned(witness: Witness) -> None:
    root = bytes(32)
    by_other_key = sign_checkpoint(Checkpoint(ORIGIN, 8, root), OTHER_SIGNER)
    assert refusal(witness, write_request(0, [], by_other_key))[0] == 403
    # Pinned for the other log: the same key pair must not speak for this one under its name.
    other = LogSigner("other.example/log", SIGNER.private_key)
    stolen = sign_checkpoint(Checkpoint("other.example/log", 8, root), other).replace(
        "other.example/log\n8", f"{ORIGIN}\n8"
    )
    assert refusal(witness, write_request(0, [], stolen))[0] == 403


def test_an_empty_tree_has_one_root(witness: Witness) -> None:
    wrong = sign_checkpoint(Checkpoint(ORIGIN, 0, bytes(32)), SIGNER)
    assert refusal(witness, write_request(0, [], wrong))[0] == 422


@given(st.binary(max_size=200))
def test_no_bytes_make_more_than_a_refusal(body: bytes) -> None:
    for request in (body, b"old 0\n\n" + body):
        try:
            read_request(request)
        except WitnessRefused as refused:
            if refused.status != 400:
                raise


@pytest.mark.parametrize("loss", [Loss.NOTHING, Loss.ALL])
def test_a_power_cut_at_any_step_never_takes_back_what_was_answered(
    loss: Loss, history: History, fork: History, tmp_path: Path
) -> None:
    for stop_at in range(4, 36):
        state = tmp_path / str(stop_at)
        Witness(state, COSIGNERS, LOGS, FastDisk()).close()
        disk = FaultyDisk(stop_at)
        answered = until_the_power_is_cut(state, disk, history)
        disk.lose(loss)
        again = Witness(state, COSIGNERS, LOGS, FastDisk())
        status, size = refusal(again, fork.request(1, 20))
        assert status == 409
        assert size is not None
        assert size >= answered
        again.close()


def until_the_power_is_cut(state: Path, disk: FaultyDisk, history: History) -> int:
    """The size of the last checkpoint that was answered."""
    answered = 0
    witness = Witness(state, COSIGNERS[:1], LOGS, disk)
    try:
        for old, new in ((0, 3), (3, 8), (8, 12), (12, 13), (13, 15)):
            witness.add_checkpoint(history.request(old, new), NOW)
            answered = new
    except PowerCut:
        pass
    finally:
        witness.close()
    return answered


def test_a_disk_that_fails_means_no_cosignature(history: History, tmp_path: Path) -> None:
    disk = FaultyDisk(12, error=OSError(errno.ENOSPC, "full"))
    witness = Witness(tmp_path / "state", COSIGNERS, LOGS, disk)
    with pytest.raises(OSError, match="full"):
        for old, new in ((0, 3), (3, 8), (8, 12)):
            witness.add_checkpoint(history.request(old, new), NOW)
    witness.close()


def test_two_processes_are_not_one_witness(witness: Witness, tmp_path: Path) -> None:
    with pytest.raises(LogLocked):
        Witness(tmp_path / "state", COSIGNERS, LOGS)


def test_a_state_that_it_did_not_sign_is_refused_at_the_start(history: History, tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = Witness(state, COSIGNERS, LOGS)
    first.add_checkpoint(history.request(0, 8), NOW)
    first.close()
    (file,) = [path for path in state.iterdir() if len(path.name) == 64]
    good = file.read_text()
    for bad in (history.checkpoints[3], good.replace("\n8\n", "\n7\n"), "", "\udcff"):
        file.write_text(bad, errors="surrogateescape")
        with pytest.raises(LogDamaged, match="restore it"):
            Witness(state, COSIGNERS, LOGS)
    file.write_text(good)
    Witness(state, COSIGNERS, LOGS).close()
