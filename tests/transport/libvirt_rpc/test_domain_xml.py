"""What an arriving domain may name on the host: nothing but what the host's own configuration allows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transport.libvirt_rpc.samples import OTHER, RULES, VM, cookie, xml
from transport.libvirt_rpc.domain_xml import DomainIdentity, check_cookie, check_domain
from transport.libvirt_rpc.errors import CallRefused

WEB = DomainIdentity(VM, "web")
QEMU_NAMESPACE = "type='kvm' xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'"
COMMAND_LINE = "<q:commandline><q:arg value='-device'/></q:commandline>"


def test_an_ordinary_domain_passes() -> None:
    assert check_domain(xml(), RULES) == WEB


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ("<disk type='block' device='disk'><source dev='/dev/sda'/></disk>", "domain_paths"),
        ("<disk type='file'><source file='/var/lib/libvirt/../../../etc/shadow'/></disk>", "domain_paths"),
        ("<disk type='file'><source file='/var/lib/libvirtx/a'/></disk>", "domain_paths"),
        ("<filesystem type='mount'><source dir='/'/><target dir='root'/></filesystem>", "domain_paths"),
        ("<serial type='file'><source path='/etc/cron.d/x'/></serial>", "domain_paths"),
        ("<serial type='pty'><log file='/etc/cron.d/x'/></serial>", "domain_paths"),
        ("<channel type='unix'><source mode='connect' path='/run/docker.sock'/></channel>", "domain_paths"),
        ("<rng model='virtio'><backend model='random'>/etc/shadow</backend></rng>", "domain_paths"),
        ("<memory model='nvdimm'><source><path>/etc/shadow</path></source></memory>", "domain_paths"),
        ("<hostdev mode='subsystem' type='pci'/>", "device of the host"),
        ("<interface type='ethernet'><script path='/bin/true'/></interface>", "as root"),
        ("<interface type='ethernet'><downscript path='/bin/true'/></interface>", "as root"),
        ("<emulator>/usr/bin/qemu-system-x86_64</emulator><x/>", None),
        ("<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>", None),
    ],
)
def test_what_reaches_beyond_the_guest_passes_only_where_allowed(devices: str, words: str | None) -> None:
    if words is None:
        assert check_domain(xml(devices=devices), RULES) == WEB
    else:
        with pytest.raises(CallRefused, match=words):
            check_domain(xml(devices=devices), RULES)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("<seclabel type='none'/>", "seclabel"),
        ("<seclabel type='static' model='dac' relabel='no'><label>0:0</label></seclabel>", "seclabel"),
        ("<os><loader>/root/evil.fd</loader></os>", "loader"),
        ("<os><kernel>/root/vmlinuz</kernel></os>", "kernel"),
        (f"<uuid>{OTHER}</uuid>", "exactly one <uuid>"),
        ("<name>other</name>", "exactly one <name>"),
        ("<a>" * 40 + "</a>" * 40, "too deep"),
    ],
)
def test_a_domain_that_is_not_confined_or_not_one_is_refused(more: str, words: str) -> None:
    with pytest.raises(CallRefused, match=words):
        check_domain(xml(more=more), RULES)


def test_qemus_own_namespace_passes_only_where_the_host_allows_it() -> None:
    text = xml(root=QEMU_NAMESPACE, more=COMMAND_LINE)
    with pytest.raises(CallRefused, match="allow_qemu_namespace"):
        check_domain(text, RULES)
    assert check_domain(text, replace(RULES, allow_qemu_namespace=True)) == WEB


def test_metadata_is_libvirts_to_keep_and_nobodys_to_read() -> None:
    text = xml(more="<metadata><n:x xmlns:n='urn:n' path='/etc'><hostdev/></n:x></metadata>")
    assert check_domain(text, RULES) == WEB


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE domain [<!ENTITY u "x">]>' + xml(),
        "<?xml version='1.0' encoding='utf-16'?>" + xml(),
        xml()[:-3],
        "<network><uuid/></network>",
        xml(root="type='xen'"),
        xml(root="type='lxc'"),
    ],
)
def test_what_libvirt_might_read_otherwise_is_refused(text: str) -> None:
    with pytest.raises(CallRefused):
        check_domain(text, RULES)


def test_another_emulator_is_refused() -> None:
    with pytest.raises(CallRefused, match="emulator"):
        check_domain(xml().replace("/usr/bin/qemu-system-x86_64", "/opt/qemu-system-x86_64"), RULES)


def test_a_cookie_is_of_the_same_vm_and_so_is_the_domain_in_it() -> None:
    check_cookie(b"", WEB, RULES)
    check_cookie(cookie(more=xml()), WEB, RULES)
    for bad in (
        cookie(uuid=OTHER),
        cookie(more=xml(uuid=OTHER)),
        cookie(more=xml(devices="<hostdev/>")),
        b"\xff",
        b"<x/>",
    ):
        with pytest.raises(CallRefused):
            check_cookie(bad, WEB, RULES)


@given(st.text(max_size=200))
def test_any_text_is_a_domain_or_refused(text: str) -> None:
    with pytest.raises(CallRefused):
        check_domain(text, RULES)
