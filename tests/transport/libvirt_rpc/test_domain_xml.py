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
        ("<filesystem type='mount'><source dir='/'/><target dir='root'/></filesystem>", "filesystem"),
        ("<serial type='file'><source path='/etc/cron.d/x'/></serial>", "domain_paths"),
        ("<serial type='pty'><log file='/etc/cron.d/x'/></serial>", "domain_paths"),
        ("<channel type='unix'><source mode='bind' path='/run/docker.sock'/></channel>", "domain_paths"),
        ("<rng model='virtio'><backend model='random'>/etc/shadow</backend></rng>", "domain_paths"),
        ("<memory model='dimm'><source><path>/etc/shadow</path></source></memory>", "domain_paths"),
        ("<memory model='nvdimm'/>", "nvdimm"),
        ("<hostdev mode='subsystem' type='pci'/>", "no device that Sealane lets pass"),
        ("<interface type='bridge'><script path='/bin/true'/></interface>", "as root"),
        ("<interface type='bridge'><downscript path='/bin/true'/></interface>", "as root"),
        ("<emulator>/usr/bin/qemu-system-x86_64</emulator>", None),
        ("<emulator>/usr/bin/qemu-system-x86_64<x>/../../../tmp/qemu</x></emulator>", "emulator"),
        ("<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>", None),
        # What reaches into the host without a path that begins with "/".
        ("<disk type='file'><source file='etc/shadow'/></disk>", "absolute"),
        (
            "<disk type='file'><source file='/var/lib/libvirt/a'/><backingStore type='file'><source file='etc/shadow'/>"
            "</backingStore></disk>",
            "absolute",
        ),
        ("<disk type='block'><source dev='dev/sda'/></disk>", "absolute"),
        ("<serial type='file'><source path='etc/cron.d/x'/></serial>", "absolute"),
        ("<serial type='pty'><log file='etc/cron.d/x'/></serial>", "domain_paths"),
        ("<disk type='volume'><source pool='other' volume='secret'/></disk>", "'volume'"),
        ("<disk type='nvme'><source type='pci' namespace='1'><address bus='0x01'/></source></disk>", "'nvme'"),
        ("<disk type='network'><source protocol='rbd' name='pool/x'/></disk>", "allow_network_disks"),
        ("<interface type='hostdev'><source><address type='pci' bus='0x00'/></source></interface>", "'hostdev'"),
        ("<interface type='direct'><source dev='eth0' mode='passthrough'/></interface>", "'direct'"),
        ("<interface type='user'/>", "'user'"),
        ("<interface type='bridge'><source bridge='br-management'/></interface>", "hypervisor.networks"),
        ("<interface type='network'><source network='management'/></interface>", "hypervisor.networks"),
        ("<interface type='network'><source network='default'/><backend tap='/dev/x'/></interface>", "backend"),
        (
            "<channel type='unix'><source mode='connect' path='/var/lib/libvirt/qemu/d/monitor.sock'/></channel>",
            "only listening",
        ),
        ("<serial type='tcp'><source mode='bind' host='0.0.0.0' service='1'/></serial>", "'tcp'"),
        ("<serial type='dev'><source path='/var/lib/libvirt/x'/></serial>", "'dev'"),
        ("<shmem name='of-another-guest' role='master'/>", "shmem"),
        ("<filesystem type='mount'><binary path='/var/lib/libvirt/images/x'/></filesystem>", "filesystem"),
        ("<input type='evdev'><source dev='/dev/input/event1'/></input>", "'evdev'"),
        ("<input type='passthrough'><source evdev='/dev/input/event1'/></input>", "'passthrough'"),
        ("<rng model='virtio'><backend model='egd' type='tcp'/></rng>", "'egd'"),
        (
            "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>",
            "'passthrough'",
        ),
        ("<smartcard mode='host'/>", "smartcard"),
        ("<redirdev bus='usb' type='tcp'/>", "redirdev"),
        ("<graphics type='vnc' socket='var/x'/>", "socket"),
        ("<video><driver name='vhostuser'/></video>", "video"),
        ("<lease><lockspace>x</lockspace><target path='/x'/></lease>", "lease"),
        ("<something-of-next-year/>", "something-of-next-year"),
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
        ("<os><kernel>/var/lib/libvirt/<x>../../../etc/shadow</x></kernel></os>", "kernel"),
        ("<sysinfo type='fwcfg'><entry name='opt/x' file='/etc/shadow'/></sysinfo>", "domain_paths"),
        ("<bootloader>/bin/sh</bootloader>", "bootloader"),
        ("<seclabel type='dynamic' model='selinux'><baselabel>u:r:unconfined_t</baselabel></seclabel>", "baselabel"),
        ("<seclabel type='dynamic' model='dac' relabel='no'/>", "relabel"),
        ("<devices><hostdev mode='subsystem' type='usb'/></devices>", "hostdev"),
        (f"<uuid>{OTHER}</uuid>", "exactly one <uuid>"),
        ("<name>other</name>", "exactly one <name>"),
        ("<cpu>" * 40 + "</cpu>" * 40, "too deep"),
    ],
)
def test_a_domain_that_is_not_confined_or_not_one_is_refused(more: str, words: str) -> None:
    with pytest.raises(CallRefused, match=words):
        check_domain(xml(more=more), RULES)


OWNED = "<disk type='block' device='disk'><source dev='/var/lib/libvirt/images/lv'>{}</source>{}</disk>"
LEFT_ALONE = "<seclabel model='dac' relabel='no'/>"


def test_a_disk_whose_owner_libvirt_is_to_leave_alone_passes() -> None:
    """Each disk of oVirt's says so, its backing files as well: vdsm owns them, and QEMU is confined as ever."""
    backing = f"<backingStore type='block'><source dev='/var/lib/libvirt/images/b'>{LEFT_ALONE}</source></backingStore>"
    assert check_domain(xml(devices=OWNED.format(LEFT_ALONE, backing)), RULES) == WEB
    assert check_domain(xml(devices=OWNED.format("<seclabel type='none' model='dac' relabel='no'/>", "")), RULES) == WEB


@pytest.mark.parametrize(
    "devices",
    [
        OWNED.format("<seclabel model='dac' relabel='yes'><label>root:root</label></seclabel>", ""),
        OWNED.format("<seclabel model='dac' relabel='no'><label>root:root</label></seclabel>", ""),
        OWNED.format("<seclabel model='selinux' relabel='no'/>", ""),
        OWNED.format("<seclabel relabel='no'/>", ""),
        OWNED.format("<seclabel type='dynamic' model='dac'><label>0:0</label></seclabel>", ""),
        OWNED.format("<seclabel type='dynamic' model='selinux' relabel='yes'><label>a:b:c:s0</label></seclabel>", ""),
        OWNED.format("", LEFT_ALONE),
        LEFT_ALONE,
    ],
)
def test_no_other_label_of_a_device_passes(devices: str) -> None:
    with pytest.raises(CallRefused, match="seclabel"):
        check_domain(xml(devices=devices), RULES)


def test_the_guests_own_label_is_not_left_out() -> None:
    with pytest.raises(CallRefused, match="seclabel"):
        check_domain(xml(more=LEFT_ALONE), RULES)


def test_what_virt_manager_makes_passes() -> None:
    devices = """
      <disk type='block' device='disk'><driver name='qemu' type='qcow2' cache='none'/>
        <source dev='/var/lib/libvirt/images/lv' index='1'/><backingStore type='file' index='2'><format type='raw'/>
        <source file='/var/lib/libvirt/images/base.img'/><backingStore/></backingStore>
        <target dev='vdb' bus='virtio'/><address type='pci' domain='0x0000' bus='0x04'/></disk>
      <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
      <controller type='usb' index='0' model='qemu-xhci' ports='15'/>
      <controller type='pci' index='0' model='pcie-root'/>
      <interface type='network'><mac address='52:54:00:00:00:01'/><source network='default' bridge='default'/>
        <target dev='vnet0'/><model type='virtio'/><link state='up'/></interface>
      <serial type='pty'><source path='/dev/pts/3'/><target type='isa-serial' port='0'/></serial>
      <channel type='unix'><source mode='bind'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
      <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
      <input type='tablet' bus='usb'/><input type='keyboard' bus='ps2'/>
      <graphics type='spice' port='5900' autoport='yes' listen='127.0.0.1'><listen type='address' address='127.0.0.1'/>
        <image compression='off'/></graphics>
      <sound model='ich9'/><audio id='1' type='spice'/><video><model type='virtio' heads='1' primary='yes'/></video>
      <redirdev bus='usb' type='spicevmc'/><watchdog model='itco' action='reset'/><memballoon model='virtio'/>
      <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm><vsock model='virtio'><cid auto='yes'/></vsock>
      <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng><panic model='isa'/>"""
    more = """
      <metadata><l:os xmlns:l='urn:l' id='x'/></metadata><memory unit='KiB'>2097152</memory>
      <currentMemory unit='KiB'>2097152</currentMemory><vcpu placement='static'>2</vcpu>
      <resource><partition>/machine</partition></resource>
      <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
      <nvram template='/var/lib/libvirt/vars'>/var/lib/libvirt/v</nvram>
      <boot dev='hd'/></os><features><acpi/><apic/></features><cpu mode='custom'><model>EPYC</model></cpu>
      <clock offset='utc'/><on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
      <pm><suspend-to-mem enabled='no'/></pm>
      <seclabel type='dynamic' model='apparmor' relabel='yes'><label>libvirt-1</label></seclabel>"""
    assert check_domain(xml(devices=devices, more=more), RULES) == WEB


def test_a_folder_in_the_configuration_is_one_with_and_without_a_slash() -> None:
    rules = replace(RULES, paths=("/var/lib/libvirt", "/dev/pts/"))
    assert check_domain(xml(), rules) == WEB
    with pytest.raises(CallRefused, match="domain_paths"):
        check_domain(xml(devices="<disk type='file'><source file='/var/lib/libvirt-other/a'/></disk>"), rules)


@pytest.mark.parametrize(
    "device",
    [
        "<disk type='file'><source xmlns:x='urn:x' x:file='/etc/shadow'/></disk>",
        "<disk type='file'><source xmlns:x='urn:x' x:file='/etc/shadow' file='/var/lib/libvirt/a'/></disk>",
        "<disk type='file'><source xmlns:x='urn:x' file='/var/lib/libvirt/a' x:file='/etc/shadow'/></disk>",
        "<interface xmlns:x='urn:x' x:type='direct' type='network'><source network='default'/></interface>",
    ],
)
@pytest.mark.parametrize("is_allowed", [False, True])
def test_an_attribute_of_a_namespace_hides_nothing(device: str, is_allowed: bool) -> None:
    rules = replace(RULES, allow_qemu_namespace=is_allowed)
    with pytest.raises(CallRefused, match="attribute of a namespace"):
        check_domain(xml(devices=device), rules)
    with pytest.raises(CallRefused, match="attribute of a namespace"):
        check_cookie(cookie(more=xml(devices=device)), WEB, rules)


def test_only_qemus_namespace_can_be_allowed() -> None:
    text = xml(devices="<x:disk xmlns:x='urn:x'/>")
    with pytest.raises(CallRefused, match="namespace"):
        check_domain(text, replace(RULES, allow_qemu_namespace=True))


def test_a_disk_of_a_storage_network_names_no_socket_of_the_host() -> None:
    host = "<host transport='unix' socket='/run/other.sock'/>"
    text = xml(devices=f"<disk type='network'><source protocol='nbd' name='x'>{host}</source></disk>")
    with pytest.raises(CallRefused, match="domain_paths"):
        check_domain(text, replace(RULES, allow_network_disks=True))


def test_disks_of_a_storage_network_pass_where_the_host_allows_them() -> None:
    text = xml(devices="<disk type='network'><source protocol='rbd' name='vms/web'/></disk>")
    assert check_domain(text, replace(RULES, allow_network_disks=True)) == WEB


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
