"""Whoever pins one key of a log knows all that followed it or went before, by what both keys signed."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.checkpoint import LogSigner
from audit.log import Log
from audit.log_keys import KEYS_FILE, LOG_KEY_CONTEXT, read_successors, successor_line
from audit.verify import verify_log
from audit.verify_keys import MAX_BYTES, joined_keys
from tests.audit.disks import FastDisk
from tests.audit.samples import entry, raw

ORIGIN = "corp.example/audit"


def signer(origin: str = ORIGIN) -> LogSigner:
    return LogSigner(origin, Ed25519PrivateKey.generate())


FIRST, SECOND, THIRD = signer(), signer(), signer()


def test_the_chain_is_known_from_any_of_its_keys(tmp_path: Path) -> None:
    assert joined_keys(tmp_path, [FIRST.vkey]).every == (FIRST.vkey,)
    (tmp_path / KEYS_FILE).write_text(successor_line(SECOND, THIRD) + successor_line(FIRST, SECOND))
    for pinned in (FIRST, SECOND, THIRD):
        assert set(joined_keys(tmp_path, [pinned.vkey]).every) == {FIRST.vkey, SECOND.vkey, THIRD.vkey}
    heirs = {FIRST: {FIRST, SECOND, THIRD}, SECOND: {SECOND, THIRD}, THIRD: {THIRD}}
    for pinned, counting in heirs.items():
        assert set(joined_keys(tmp_path, [pinned.vkey]).heirs) == {each.vkey for each in counting}
    stranger = signer().vkey
    assert joined_keys(tmp_path, [stranger]).every == (stranger,)
    assert read_successors(tmp_path).count(b"\n") == 2


def test_lines_of_strangers_say_nothing_and_are_not_taken_along(tmp_path: Path) -> None:
    good = successor_line(FIRST, SECOND)
    (tmp_path / KEYS_FILE).write_text(successor_line(signer(), signer()) + good + successor_line(THIRD, signer()))
    joined = joined_keys(tmp_path, [SECOND.vkey])
    assert set(joined.every) == {FIRST.vkey, SECOND.vkey}
    assert joined.lines == good.encode()


def with_signature_of(who: LogSigner, old: LogSigner, new: LogSigner, name: str) -> str:
    """The line of a change, with one of its signatures made by somebody else over the same words."""
    message = LOG_KEY_CONTEXT + f"{old.vkey}\n{new.vkey}\n".encode()
    line = json.loads(successor_line(old, new)) | {name: base64.b64encode(who.sign(message)).decode()}
    return json.dumps(line) + "\n"


def test_neither_key_can_speak_for_the_other(tmp_path: Path) -> None:
    """A thief of no key of the log names one of his own as its successor, or the log's key as his old one's."""
    thief, good = signer(), successor_line(FIRST, SECOND)
    for line, why in (
        (with_signature_of(thief, FIRST, thief, "old_signature"), "not signed by its old key"),
        (with_signature_of(thief, thief, FIRST, "new_signature"), "not signed by its new key"),
        (good.replace(SECOND.vkey, thief.vkey), "not signed"),
        (good.replace('"old":', '"odd":'), "malformed"),
        ("[]\n", "malformed"),
        (good[:-3] + "\n", "Unterminated"),
    ):
        (tmp_path / KEYS_FILE).write_text(line)
        with pytest.raises(ValueError, match=why):
            joined_keys(tmp_path, [FIRST.vkey])


def test_a_key_of_another_log_is_not_taken_for_one_of_this(tmp_path: Path) -> None:
    (tmp_path / KEYS_FILE).write_text(successor_line(FIRST, signer("other.example/audit")))
    assert joined_keys(tmp_path, [FIRST.vkey]).every == (FIRST.vkey,)


def test_a_file_of_any_size_is_not_read(tmp_path: Path) -> None:
    (tmp_path / KEYS_FILE).write_bytes(b"x" * (MAX_BYTES + 1))
    with pytest.raises(ValueError, match="large"):
        joined_keys(tmp_path, [FIRST.vkey])


def history_of(directory: Path, *signers: LogSigner) -> Path:
    """A log with an entry by each, one after the other."""
    for signer in signers:
        with Log.open(directory, signer, disk=FastDisk()) as log:
            log.append([raw(entry(log.size, signer, origin=ORIGIN))])
    return directory


def test_a_former_key_that_was_stolen_makes_no_history_for_whoever_pins_its_successor(tmp_path: Path) -> None:
    """The thief has the log's folder, too, and what both keys once signed; and may name a successor of his own."""
    thief = LogSigner(ORIGIN, signer().private_key, former=FIRST)
    genuine = successor_line(FIRST, SECOND)
    cases = {
        "as itself": ((FIRST,), genuine),
        "as a successor of his": (
            (thief, LogSigner(ORIGIN, thief.private_key)),
            genuine + successor_line(FIRST, thief),
        ),
    }
    for what, (signers, lines) in cases.items():
        forged = history_of(tmp_path / what, *signers)
        (forged / KEYS_FILE).write_text(lines)
        verdict = verify_log(forged, [SECOND.vkey])
        assert not verdict.ok
        assert "by a former key of the log" in verdict.problems[0].what


def test_a_key_that_is_pinned_counts_until_the_next_one_signs_and_the_next_one_after_it(tmp_path: Path) -> None:
    log = history_of(tmp_path / "log", FIRST)
    (log / KEYS_FILE).write_text(successor_line(FIRST, SECOND))  # and the gateway was not started again yet
    assert verify_log(log, [FIRST.vkey]).ok
    history_of(log, LogSigner(ORIGIN, SECOND.private_key, former=FIRST), SECOND)
    for pinned in (FIRST, SECOND):
        assert verify_log(log, [pinned.vkey]).problems == []
