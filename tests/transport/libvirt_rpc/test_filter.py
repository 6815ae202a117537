"""One migration of one VM, in its order; everything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transport.libvirt_rpc.samples import (
    LIVE,
    OTHER,
    PLACES,
    RULES,
    VM,
    call,
    cookie,
    finish,
    finish_call,
    prepare,
    prepare_call,
    text,
    xml,
)  # fmt: skip
from transport.libvirt_rpc.errors import CallRefused, RpcMalformed
from transport.libvirt_rpc.filter import MigrationFilter, Step
from transport.libvirt_rpc.framing import MessageType, Packet, Status, encode_error
from transport.libvirt_rpc.migration import Domain, Finish, Prepare, PrepareReply
from transport.libvirt_rpc.opening import feature_call
from transport.libvirt_rpc.parameters import Parameter, ParameterType, text_of
from transport.libvirt_rpc.procedures import FEATURES, REFUSED_FLAGS, Feature, MigrateFlag, Procedure
from transport.libvirt_rpc.xdr import XdrWriter

PREPARE, FINISH = Procedure.MIGRATE_PREPARE3_PARAMS, Procedure.MIGRATE_FINISH3_PARAMS


def new() -> MigrationFilter:
    return MigrationFilter(VM, RULES, PLACES)


def prepared() -> MigrationFilter:
    rpc = new()
    rpc.check(prepare_call())
    rpc.note_reply(PREPARE, prepare_call().answer(PrepareReply(b"", None).encode()))
    return rpc


def finished_reply(uuid: str = VM) -> Packet:
    body = Domain("web", uuid, 3).write(XdrWriter()).opaque(b"").data
    return finish_call().answer(bytes(body))


def test_a_migration_passes_in_its_order() -> None:
    rpc = new()
    assert rpc.check(call(Procedure.CONNECT_SUPPORTS_FEATURE, feature_call(Feature.MIGRATION_V3)))
    rpc.check(prepare_call())
    assert rpc.note_reply(PREPARE, prepare_call().answer(PrepareReply(b"", None).encode())) is None
    rpc.check(finish_call())
    finished = rpc.note_reply(FINISH, finished_reply())
    assert finished is not None
    assert (finished.domain.uuid, rpc.step) == (VM, Step.FINISHED)


def test_memory_and_disks_go_to_the_sessions_folder_whatever_the_caller_named() -> None:
    flags = LIVE | MigrateFlag.NON_SHARED_DISK
    named = [
        text("migrate_uri", "unix:///etc/x"),
        text("disks_uri", "tcp://192.0.2.1:1"),
        text("listen_address", "192.0.2.1"),
        Parameter("disks_port", ParameterType.INT, 5),
    ]
    _, body = new().check(prepare_call(prepare(*named, flags=flags)))
    sent = Prepare.decode(body)
    assert text_of(sent.parameters, "migrate_uri") == "unix:///run/s/memory.sock"
    assert text_of(sent.parameters, "disks_uri") == "unix:///run/s/disks.sock"
    assert {p.field for p in sent.parameters} == {"destination_xml", "migrate_uri", "disks_uri"}


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_finish_always_leaves_the_guest_paused(cancelled: bool) -> None:
    _, body = prepared().check(finish_call(finish(cancelled=cancelled)))
    sent = Finish.decode(body)
    assert sent.flags & MigrateFlag.PAUSED
    assert sent.cancelled is cancelled


@pytest.mark.parametrize("procedure", [n for n in range(460) if n not in (60, 303)])
def test_every_other_procedure_is_refused_before_prepare(procedure: int) -> None:
    with pytest.raises(CallRefused, match=f"procedure {procedure} is refused"):
        new().check(call(procedure, b""))


def test_prepare_and_finish_pass_once() -> None:
    rpc = prepared()
    with pytest.raises(CallRefused):
        rpc.check(prepare_call())
    rpc.check(finish_call())
    rpc.note_reply(FINISH, finished_reply())
    for late in (prepare_call(), finish_call(), call(60, feature_call(Feature.MIGRATION_V3))):
        with pytest.raises(CallRefused):
            rpc.check(late)


def test_a_prepare_that_failed_may_be_repeated_but_not_finished() -> None:
    rpc = new()
    rpc.check(prepare_call())
    rpc.note_reply(PREPARE, prepare_call().refusal(9, "no"))
    with pytest.raises(CallRefused):
        rpc.check(finish_call())
    rpc.check(prepare_call())


@pytest.mark.parametrize(
    "value",
    [
        prepare(dom=xml(uuid=OTHER), data=b""),
        prepare(data=cookie(uuid=OTHER)),
        prepare(text("destination_name", "other")),
        prepare(dom=xml(devices="<hostdev/>")),
        *[prepare(flags=LIVE | flag) for flag in REFUSED_FLAGS],
    ],
)
def test_a_prepare_of_another_vm_or_with_too_much_in_it_is_refused(value: Prepare) -> None:
    with pytest.raises(CallRefused):
        new().check(prepare_call(value))


RESUMES = LIVE | MigrateFlag.POSTCOPY | MigrateFlag.POSTCOPY_RESUME


def resuming(name: str = "web") -> MigrationFilter:
    return MigrationFilter(VM, RULES, PLACES, name)


def test_a_resumption_passes_and_its_guest_is_left_running() -> None:
    rpc = resuming()
    _, body = rpc.check(prepare_call(prepare(flags=RESUMES)))
    assert text_of(Prepare.decode(body).parameters, "migrate_uri") == "unix:///run/s/memory.sock"
    rpc.note_reply(PREPARE, prepare_call().answer(PrepareReply(b"", None).encode()))
    _, body = rpc.check(finish_call(finish(flags=RESUMES)))
    assert Finish.decode(body).flags == RESUMES


@pytest.mark.parametrize(
    ("rpc", "flags", "said"),
    [
        (new(), RESUMES, "begins a migration"),
        (resuming(), LIVE, "goes on with post-copy"),
        (resuming(), LIVE | MigrateFlag.POSTCOPY, "goes on with post-copy"),
        (resuming("ledger"), RESUMES, "not named 'web' here"),
        (resuming(), LIVE | MigrateFlag.POSTCOPY_RESUME, "goes with --postcopy"),
        *[
            (resuming(), RESUMES | flag, "with nothing that says how a migration begins")
            for flag in (MigrateFlag.OFFLINE, MigrateFlag.PAUSED, MigrateFlag.NON_SHARED_DISK, MigrateFlag.PARALLEL)
        ],
    ],
)
def test_a_resumption_is_of_this_guest_and_of_a_session_that_does_nothing_else(
    rpc: MigrationFilter, flags: MigrateFlag, said: str
) -> None:
    """libvirt finds its guest by the name that the source says, and ends its job at a Finish of a definition alone."""
    with pytest.raises(CallRefused, match=said):
        rpc.check(prepare_call(prepare(flags=flags)))


def test_a_finish_that_resumes_what_was_begun_is_refused() -> None:
    with pytest.raises(CallRefused, match="another migration"):
        prepared().check(finish_call(finish(flags=RESUMES)))


def test_an_unknown_flag_is_refused() -> None:
    body = bytearray(prepare().encode())
    body[-4:] = (1 << 25).to_bytes(4, "big")
    with pytest.raises(CallRefused, match="unknown"):
        new().check(call(PREPARE, bytes(body)))


@pytest.mark.parametrize(
    "value",
    [
        finish(name="other"),
        finish(flags=LIVE | MigrateFlag.PERSIST_DEST),
        finish(data=cookie(uuid=OTHER)),
        finish(data=cookie(more=xml(devices="<hostdev/>"))),
    ],
)
def test_a_finish_of_another_migration_is_refused(value: Finish) -> None:
    with pytest.raises(CallRefused):
        prepared().check(finish_call(value))


def test_a_finish_that_was_answered_for_another_vm_ends_it() -> None:
    rpc = prepared()
    rpc.check(finish_call())
    with pytest.raises(RpcMalformed):
        rpc.note_reply(FINISH, finished_reply(OTHER))


def test_what_is_no_call_ends_it() -> None:
    for packet in (
        Packet(0x20008086, 303, MessageType.STREAM, 1, Status.OK, b""),
        Packet(0x20008086, 303, MessageType.CALL_WITH_FDS, 1, Status.OK, b""),
        Packet(0x20008086, 303, MessageType.CALL, 1, Status.ERROR, encode_error(1, "")),
    ):
        with pytest.raises(RpcMalformed):
            new().check(packet)


@given(st.sampled_from([60, 303, 306, 12]), st.binary(max_size=300))
def test_any_body_passes_or_is_refused(procedure: int, body: bytes) -> None:
    for rpc in (new(), prepared()):
        try:
            rpc.check(call(procedure, body))
        except (CallRefused, RpcMalformed):
            pass


@given(st.integers(0, 2**31), st.integers(0, 7), st.data())
def test_a_prepare_with_any_bit_turned_passes_or_is_refused(at: int, bit: int, data: st.DataObject) -> None:
    body = bytearray(data.draw(st.sampled_from([prepare(), prepare(text("migrate_uri", "tcp:b"))])).encode())
    body[at % len(body)] ^= 1 << bit
    try:
        _, sent = new().check(call(PREPARE, bytes(body)))
    except (CallRefused, RpcMalformed):
        return
    assert f"<uuid>{VM}</uuid>" in Prepare.decode(sent).xml


def test_features_that_a_front_asks_for_pass() -> None:
    for feature in FEATURES:
        assert new().check(call(60, feature_call(feature)))
