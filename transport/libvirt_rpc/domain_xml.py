"""What a domain's XML may ask of the host that it arrives on.

Prepare carries the domain's XML, and Finish a cookie with the XML that is to stay; libvirtd at the destination acts on
both as root. A source host that was taken over must not gain its destinations by them: so the VM must be the
permit's, and what reaches beyond the guest (other programs, scripts, host files, host devices, another security
label) passes only where the destination's own configuration names it.

Two sieves, one behind the other: a list of the sections and devices that pass at all (`domain_devices`), and a look at
every element and attribute, wherever it stands, that could be a path on the host.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree

from transport.libvirt_rpc.domain_devices import why_refused
from transport.libvirt_rpc.errors import CallRefused
from transport.libvirt_rpc.framing import ErrorCode

_MAX_DEPTH: Final = 32
_MAX_ELEMENTS: Final = 20_000
# Elements whose text is a path on the host, wherever in a domain they stand.
_PATH_ELEMENTS: Final = frozenset(
    {"emulator", "loader", "nvram", "kernel", "initrd", "dtb", "table", "path", "backend"}
)
_ENTROPY: Final = frozenset({"/dev/random", "/dev/urandom", "/dev/hwrng"})
# Attributes that are a path on the host if they begin with "/".
_PATH_ATTRIBUTES: Final = frozenset({"file", "dev", "dir", "path", "socket", "template", "rendernode", "tty", "evdev"})
# Elements that only name things inside the guest, or on another machine, whatever their attributes are called.
_INSIDE_GUEST: Final = frozenset({"target", "boot", "alias", "address", "host"})
_QEMU_NAMESPACE: Final = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_REFUSED: Final = {
    "script": "runs a program of its own on the destination as root",
    "downscript": "runs a program of its own on the destination as root",
    "hostdev": "is a device of the host",
    "baselabel": "is a security label of its own",
    "binary": "names a program of the host",
}
# What a domain consists of; anything else is refused. <devices> is looked into, <metadata> is not read by libvirt.
_SECTIONS: Final = frozenset(
    {
        "name",
        "uuid",
        "genid",
        "title",
        "description",
        "metadata",
        "memory",
        "maxMemory",
        "currentMemory",
        "memoryBacking",
        "memtune",
        "blkiotune",
        "numatune",
        "cputune",
        "vcpu",
        "vcpus",
        "iothreads",
        "iothreadids",
        "defaultiothread",
        "resource",
        "sysinfo",
        "os",
        "features",
        "cpu",
        "clock",
        "pm",
        "perf",
        "keywrap",
        "on_poweroff",
        "on_reboot",
        "on_crash",
        "on_lockfailure",
        "seclabel",
        "devices",
    }
)


@dataclass(frozen=True, slots=True)
class DomainRules:
    """What an arriving domain may name on this host: from the destination's configuration, never from the peer.

    `paths`: files and devices at or below these. `emulators`: programs that may be the domain's QEMU. `networks`:
    networks of libvirt's and bridges that it may be plugged into.
    """

    paths: tuple[str, ...]
    emulators: tuple[str, ...]
    networks: tuple[str, ...] = ()
    allow_network_disks: bool = False
    allow_qemu_namespace: bool = False

    def allow_path(self, path: str) -> bool:
        """Whether a file or device of this name may be used; an emulator is another matter."""
        folders = [allowed.rstrip("/") for allowed in self.paths]
        return posixpath.normpath(path) == path and any(path == at or path.startswith(f"{at}/") for at in folders)


@dataclass(frozen=True, slots=True)
class DomainIdentity:
    uuid: str
    name: str


def check_domain(text: str, rules: DomainRules) -> DomainIdentity:
    """The VM that `text` defines. `CallRefused` names what must not pass, for the operator who sees it in virsh."""
    return _check_domain(_parse(text, "domain"), rules)


def identify_domain(text: str) -> DomainIdentity:
    """The VM that `text` defines, for the source, whose host its XML cannot harm. `CallRefused` if it names none."""
    root = _parse(text, "domain")
    return DomainIdentity(_only(root, "uuid"), _only(root, "name"))


def check_cookie(cookie: bytes, vm: DomainIdentity, rules: DomainRules) -> None:
    """A migration cookie must be of `vm`; a whole domain within it is checked like any other."""
    if not cookie:
        return
    try:
        text = cookie.removesuffix(b"\0").decode()
    except UnicodeDecodeError:
        raise _refused("its migration cookie is not text") from None
    root = _parse(text, "qemu-migration")
    if _only(root, "uuid") != vm.uuid or _only(root, "name") != vm.name:
        raise _refused("its migration cookie is of another VM")
    for inner in root.iter("domain"):
        if _check_domain(inner, rules) != vm:
            raise _refused("the XML that is to stay on the destination is of another VM")


def _check_domain(root: ElementTree.Element, rules: DomainRules) -> DomainIdentity:
    if root.get("type") not in ("kvm", "qemu"):
        raise _refused(f"its type is {root.get('type')!a}, not kvm or qemu")
    identity = DomainIdentity(_only(root, "uuid"), _only(root, "name"))
    for section in root:
        if section.tag not in _SECTIONS and not section.tag.startswith("{"):
            raise _refused(f"its <{section.tag}> is no part of a domain that Sealane knows")
        for device in section if section.tag == "devices" else ():
            if not device.tag.startswith("{") and (why := why_refused(device, rules)) is not None:
                raise _refused(why)
    for element in _walk(root, 0):
        _check_element(element, rules)
        for label in element.findall("seclabel"):
            _check_label(label, of=element.tag)
    return identity


def _walk(element: ElementTree.Element, depth: int) -> Iterator[ElementTree.Element]:
    """Every element but what stands below <metadata>, which libvirt keeps and does not read."""
    if depth > _MAX_DEPTH:
        raise _refused("its XML is too deep")
    yield element
    if element.tag != "metadata":
        for child in element:
            yield from _walk(child, depth + 1)


def _check_label(label: ElementTree.Element, of: str) -> None:
    """The guest's own label must be dynamic. One of a disk may only say that its owner is left alone: libvirt, as root,
    gives a file the label that stands there, whatever the type."""
    if of != "domain":
        if of != "source" or label.get("model") != "dac" or label.get("relabel") != "no" or len(label):
            raise _refused("a <seclabel> of one device names another label than the guest's own")
        return  # every disk of oVirt's has it: QEMU may open then what it could open anyway
    if label.get("type") != "dynamic":
        raise _refused(f"its <seclabel> is {label.get('type')!a}: only dynamic labels keep it confined")
    if label.get("relabel", "yes") != "yes":
        raise _refused("its <seclabel> is not to relabel what it names")


def _check_element(element: ElementTree.Element, rules: DomainRules) -> None:
    tag = element.tag
    if tag.startswith("{"):
        if not rules.allow_qemu_namespace or not tag.startswith(_QEMU_NAMESPACE):
            raise _refused(
                "it has elements of QEMU's own namespace (qemu:commandline and the like), which can run anything; "
                "hypervisor.allow_qemu_namespace of the destination's relay would let them pass"
            )
        return
    if tag in _REFUSED:
        raise _refused(f"its <{tag}> {_REFUSED[tag]}")
    if tag in _PATH_ELEMENTS and (path := _content(element)):
        _check_path(tag, path, rules)
    for name, value in element.attrib.items():
        if tag in _INSIDE_GUEST and name != "socket":
            continue
        # "dev" is a device's name in places. The others are paths always, and QEMU starts in the root folder: a
        # relative one would name a file of the host as well.
        if name in _PATH_ATTRIBUTES and value and (name != "dev" or "/" in value):
            _check_path(f"{tag} {name}", value, rules)


def _check_path(what: str, path: str, rules: DomainRules) -> None:
    if what == "emulator":
        if path not in rules.emulators:
            raise _refused(f"its emulator {path!a} is not in hypervisor.emulators of the destination's relay")
        return
    if what == "backend" and path in _ENTROPY:
        return
    if not rules.allow_path(path):
        raise _refused(f"its {what} {path!a} is outside hypervisor.domain_paths of the destination's relay")


def _only(root: ElementTree.Element, tag: str) -> str:
    """The text of the one child of this name: with two, we and libvirt might each read another."""
    found = root.findall(tag)
    text = _content(found[0]) if len(found) == 1 else ""
    if not text:
        raise _refused(f"it must have exactly one <{tag}>")
    return text


def _content(element: ElementTree.Element) -> str:
    """All the text in it, that of elements within included: libvirt reads `/usr/<x>../etc</x>` as one path."""
    return "".join(element.itertext()).strip()


def _parse(text: str, root_tag: str) -> ElementTree.Element:
    # A document type could define entities that we and libvirt read differently, or that grow without bound; a
    # declaration could name another encoding. libvirt itself writes neither.
    if "<!DOCTYPE" in text or "<!ENTITY" in text or "<?" in text:
        raise _refused("its XML has a declaration, a document type or a processing instruction")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - no entities: see above
    except ElementTree.ParseError:
        raise _refused("its XML is not well formed") from None
    if root.tag != root_tag:
        raise _refused(f"its XML is not a <{root_tag}>")
    if sum(1 for _ in root.iter()) > _MAX_ELEMENTS:
        raise _refused("its XML has too many elements")
    if any(name.startswith("{") for element in _walk(root, 0) for name in element.attrib):
        # libvirt looks at an attribute's own name only and takes the first: `x:file` is `file` to it, and hidden to us.
        raise _refused("its XML has an attribute of a namespace")
    return root


def _refused(why: str) -> CallRefused:
    return CallRefused(f"Sealane does not let this domain pass: {why}", ErrorCode.ACCESS_DENIED)
