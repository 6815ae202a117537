"""The calls of nova, vdsm (oVirt), CloudStack and cockpit, made through libvirt's own client library.

The calls, not the products: flags and parameters are those of their sources (nova's guest.py and driver.py of its
libvirt driver; vdsm's virt/migration.py; CloudStack's MigrateKVMAsync.java; libvirtApi/domain.js of cockpit-machines,
which goes through libvirt-dbus to the same function).
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from gateway.demo.guest import count_passes
from tests.transport.libvirt.hosts import Guest, Pair, make_disk

pytestmark = [pytest.mark.real, pytest.mark.whole]

AT = "127.77.0.2"  # the loopback address of host b on host a
OWN = "10.77.0.2"  # host b's own address, which is all that CloudStack names; a rule on host a leads it to the other
LEAD = (
    "add table ip sealane",
    "add chain ip sealane output { type nat hook output priority -100 ; }",
    f"add rule ip sealane output ip daddr {OWN} tcp dport 16509 dnat to {AT}",
)

# argv: name of the domain, how ("uri3" or "migrate3"), URI, flags by name, parameters.
CALL = """
import json, sys, libvirt
name, how, uri, flags, params = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), json.loads(sys.argv[5])
libvirt.registerErrorHandler(lambda *_: None, None)
number = 0
for flag in flags:
    number |= getattr(libvirt, "VIR_MIGRATE_" + flag)
here = libvirt.open("qemu:///system")
domain = here.lookupByName(name)
for key in ("destination_xml", "persistent_xml"):
    if key in params:
        params[key] = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE)
try:
    if how == "uri3":
        domain.migrateToURI3(uri, params, number)
    else:
        there = libvirt.open(uri)
        assert there.getLibVersion() >= 1002003
        assert domain.migrate3(there, params, number).UUIDString() == domain.UUIDString()
        there.close()
except libvirt.libvirtError as error:
    sys.exit(error.get_error_message())
"""
NOVA = ("LIVE", "PEER2PEER", "UNDEFINE_SOURCE", "PERSIST_DEST")
VDSM = ("LIVE", "PEER2PEER", "ABORT_ON_ERROR", "AUTO_CONVERGE", "PERSIST_DEST")
CLOUDSTACK = ("LIVE", "COMPRESSED", "AUTO_CONVERGE")
COCKPIT = ("PEER2PEER", "LIVE", "PERSIST_DEST", "UNDEFINE_SOURCE")
# As vdsm has every disk and image: libvirt is to leave its owner alone.
OVIRT_IMAGE = (
    "<disk type='file' device='cdrom'><driver name='qemu' type='raw' error_policy='report'/><readonly/>"
    "<source file='/var/lib/libvirt/NAME.img' startupPolicy='optional'><seclabel model='dac' relabel='no'/></source>"
    "<target dev='hdc' bus='ide'/></disk>"
)
XML = "its own"  # in place of which the call takes the domain's
CALLS: dict[str, tuple[str, str, tuple[str, ...], dict[str, Any]]] = {
    "nova": (
        "uri3", f"qemu+tcp://{AT}/system", NOVA,
        {"bandwidth": 0, "destination_xml": XML, "persistent_xml": XML, "migrate_uri": f"tcp://{AT}"},
    ),
    "nova, block migration": (
        "uri3", f"qemu+tcp://{AT}/system", (*NOVA, "NON_SHARED_INC"),
        {"bandwidth": 0, "destination_xml": XML, "persistent_xml": XML, "migrate_uri": f"tcp://{AT}",
         "migrate_disks": ["vda"]},
    ),
    "vdsm without its own TLS": (
        "uri3", f"qemu+tcp://{AT}/system", (*VDSM, "PARALLEL"),
        {"bandwidth": 1000, "migrate_uri": f"tcp://{AT}", "graphics_uri": "vnc://192.0.2.7", "destination_xml": XML,
         "parallel.connections": 2},
    ),
    "CloudStack": (
        "migrate3", f"qemu+tcp://{OWN}/system", CLOUDSTACK,
        {"destination_name": "NAME", "destination_xml": XML, "migrate_uri": f"tcp:{OWN}", "bandwidth": 1000},
    ),
    "CloudStack, with storage": (
        "migrate3", f"qemu+tcp://{OWN}/system", (*CLOUDSTACK, "NON_SHARED_DISK"),
        {"destination_name": "NAME", "destination_xml": XML, "migrate_uri": f"tcp:{OWN}", "bandwidth": 1000,
         "migrate_disks": ["vda"]},
    ),
    "cockpit": ("uri3", "FRONT", COCKPIT, {}),
    "cockpit, copying storage": ("uri3", "FRONT", (*COCKPIT, "NON_SHARED_DISK"), {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def led(pair: Pair) -> Pair:
    subprocess.run(pair.a.inside("nft", "; ".join(LEAD)), check=True, timeout=20)
    return pair


def call(pair: Pair, guest: Guest, of: str) -> tuple[int, str]:
    how, uri, flags, parameters = CALLS[of]
    named = {key: guest.name if value == "NAME" else value for key, value in parameters.items()}
    target = pair.a.front_uri if uri == "FRONT" else uri
    words = [guest.name, how, target, json.dumps(flags), json.dumps(named)]
    done = subprocess.run(  # Debian's Python has the bindings
        pair.a.inside("/usr/bin/python3", "-c", CALL, *words), capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("of", CALLS)
def test_it_moves_its_guest_by_the_call_that_it_makes(led: Pair, of: str) -> None:
    pair = led
    flags = CALLS[of][2]
    disk = f"d{len(pair.guests)}"
    copies = not {"NON_SHARED_INC", "NON_SHARED_DISK"}.isdisjoint(flags)
    if copies:
        make_disk(pair.b, disk, None)
    devices = make_disk(pair.a, disk, b"disk") if copies else ""
    if of.startswith("vdsm"):
        for host in pair.hosts:
            make_disk(host, disk, b"image")
        devices = OVIRT_IMAGE.replace("NAME", disk)
    guest = pair.guest(pair.a, devices=devices, persistent=True)
    code, said = call(pair, guest, of)
    assert code == 0, said
    pair.wait_runs_only(guest, pair.b)
    count_passes(guest.printed(pair.a) + guest.printed(pair.b))
    if copies:
        assert (pair.b.base / "lib" / f"{disk}.img").read_bytes() == b"disk" * (1 << 20)
    listed = pair.b.virsh("list", "--persistent", "--name")[1].split()
    assert (guest.name in listed) == ("PERSIST_DEST" in flags)
    known = pair.a.virsh("list", "--all", "--name")[1].split()
    assert (guest.name in known) == ("UNDEFINE_SOURCE" not in flags)
    for host in pair.hosts:
        host.virsh("destroy", guest.name)
        host.virsh("undefine", guest.name)


@pytest.mark.parametrize("of", ["nova", "CloudStack"])
def test_what_the_policy_refuses_is_in_the_error_that_it_gets(led: Pair, of: str) -> None:
    pair = led
    guest = pair.guest(pair.a)
    pair.deny("denied by policy zone-of-production: VMs of zone production stay in it (record 17)")
    try:
        code, said = call(pair, guest, of)
    finally:
        pair.allow()
    assert code != 0
    assert "denied by policy zone-of-production" in said
    assert pair.running(guest) == ["a"]
    pair.a.virsh("destroy", guest.name)
