"""Typed parameters: an enumerated set, each with its type, once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transport.libvirt_rpc.samples import text
from transport.libvirt_rpc.errors import CallRefused, RpcMalformed
from transport.libvirt_rpc.parameters import Parameter, ParameterType, read_parameters, with_text, write_parameters
from transport.libvirt_rpc.xdr import XdrReader, XdrWriter


def read(parameters: list[Parameter]) -> list[Parameter]:
    writer = XdrWriter()
    write_parameters(writer, parameters)
    reader = XdrReader(bytes(writer.data))
    found = read_parameters(reader)
    reader.end()
    return found


GOOD = [
    text("destination_name", "web"),
    text("migrate_uri", "tcp://10.0.0.1:49152"),
    text("migrate_disks", "vda"),
    text("migrate_disks", "vdb"),
    Parameter("bandwidth", ParameterType.ULLONG, 2**63),
    Parameter("parallel.connections", ParameterType.INT, 4),
]


def test_what_was_written_is_read() -> None:
    assert read(GOOD) == GOOD


@pytest.mark.parametrize(
    "bad",
    [
        text("persistent_xml", "<domain/>"),
        text("tls.destination", "b"),
        text("bandwidth", "5"),
        text("destination_name", "we\nb"),
        text("destination_name", "../b"),
        text("migrate_disks", "v d a"),
        Parameter("destination_name", ParameterType.INT, 1),
        Parameter("parallel.connections", ParameterType.INT, 0),
        Parameter("parallel.connections", ParameterType.INT, 256),
        Parameter("disks_port", ParameterType.INT, -1),
    ],
)
def test_what_is_not_listed_or_impossible_is_refused_by_name(bad: Parameter) -> None:
    with pytest.raises(CallRefused, match=bad.field.replace(".", r"\.")):
        read([bad])


def test_a_parameter_given_twice_is_refused() -> None:
    with pytest.raises(CallRefused, match="twice"):
        read([text("migrate_uri", "tcp:a"), text("migrate_uri", "tcp:b")])


def test_more_than_64_parameters_are_refused() -> None:
    with pytest.raises(RpcMalformed):
        read([text("migrate_disks", "vda")] * 65)


@given(st.binary(max_size=120))
def test_any_bytes_are_parameters_or_refused(data: bytes) -> None:
    try:
        read_parameters(XdrReader(data))
    except (RpcMalformed, CallRefused):
        pass


def test_a_replaced_text_stands_once() -> None:
    assert with_text(GOOD, "migrate_uri", "unix:///s")[-1] == text("migrate_uri", "unix:///s")
    assert len(with_text(GOOD, "migrate_uri", "unix:///s")) == len(GOOD)
    assert with_text(GOOD, "migrate_uri", None) == [p for p in GOOD if p.field != "migrate_uri"]
