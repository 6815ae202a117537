"""Which devices an arriving domain may have: those that stay within the guest, its own files and the named networks.

A list of what passes, because libvirt learns new devices with each release, and many of them reach into the host: a
network card can be one of the host's PCI devices, a disk a volume of another pool, a character device a connection to
any socket, a shared memory that of another guest. What is not listed here is refused by its name.

Paths are `domain_xml`'s, which checks them wherever they stand; this module says which kinds there may be at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol
from xml.etree import ElementTree

Element = ElementTree.Element
Checker = Callable[[Element, "DeviceRules"], "str | None"]


class DeviceRules(Protocol):
    """See `domain_xml.DomainRules`."""

    @property
    def networks(self) -> tuple[str, ...]: ...
    @property
    def allow_network_disks(self) -> bool: ...


def why_refused(device: Element, rules: DeviceRules) -> str | None:
    """Why this child of <devices> must not pass; None where it may."""
    checker = _DEVICES.get(device.tag)
    if checker is None:
        return f"its <{device.tag}> is no device that Sealane lets pass: it may reach beyond the guest"
    return checker(device, rules)


def _harmless(_device: Element, _rules: DeviceRules) -> str | None:
    return None


def _of(attribute: str, *values: str | None) -> Checker:
    """The attribute must be one of `values`; None among them allows that it is missing."""

    def check(device: Element, _rules: DeviceRules) -> str | None:
        found = device.get(attribute)
        if found in values:
            return None
        return f"its <{device.tag}> has {attribute} {found!a}, which may reach beyond the guest"

    return check


def _disk(device: Element, rules: DeviceRules) -> str | None:
    kinds = {"file", "block"} | ({"network"} if rules.allow_network_disks else set())
    for image in (device, *device.iter("backingStore"), *device.iter("mirror"), *device.iter("dataStore")):
        kind = image.get("type")
        if image.tag == "backingStore" and kind is None and len(image) == 0:
            continue  # the end of a chain
        if kind not in kinds:
            hint = "; hypervisor.allow_network_disks would let it pass" if kind == "network" else ""
            return f"its <{image.tag}> is of type {kind!a}, not a file or block device{hint}"
        for source in image.findall("source"):
            named = source.get("file" if kind == "file" else "dev")
            # QEMU starts in the host's root folder: a relative name is a path, too.
            if named and kind != "network" and not named.startswith("/"):
                return f"its disk {named!a} is not an absolute path"
    return None


def _interface(device: Element, rules: DeviceRules) -> str | None:
    kind = device.get("type")
    if kind not in ("network", "bridge"):
        return f"its <interface> is of type {kind!a}: only networks and bridges of the host's own are let pass"
    for source in device.findall("source"):
        for name in (source.get("network"), source.get("bridge")):
            if name is not None and name not in rules.networks:
                return f"its network {name!a} is not in hypervisor.networks of the destination's relay"
    if any(backend.attrib for backend in device.findall("backend")):
        return "the <backend> of its <interface> names devices of the host"
    return None


def _character(device: Element, _rules: DeviceRules) -> str | None:
    kind = device.get("type")
    if kind not in ("pty", "null", "file", "unix", "spicevmc", "spiceport", "qemu-vdagent"):
        return f"its <{device.tag}> is of type {kind!a}, which may reach beyond the guest"
    if kind == "unix" and any(source.get("mode") != "bind" for source in device.findall("source")):
        # Connecting could be to libvirtd, or to the monitor of another guest.
        return f"its <{device.tag}> connects to a socket: only listening is let pass"
    if kind == "file" and any(not source.get("path", "").startswith("/") for source in device.findall("source")):
        return f"its <{device.tag}> has no absolute path"
    return None


def _graphics(device: Element, _rules: DeviceRules) -> str | None:
    if device.get("type") not in ("vnc", "spice"):
        return f"its <graphics> is of type {device.get('type')!a}"
    named = [device.get("socket"), *(listen.get("socket") for listen in device.findall("listen"))]
    return "its <graphics> has a socket that is no absolute path" if any(s and s[:1] != "/" for s in named) else None


def _rng(device: Element, _rules: DeviceRules) -> str | None:
    for backend in device.findall("backend"):
        if backend.get("model") not in ("random", "builtin"):
            return f"its <rng> takes entropy from {backend.get('model')!a}"
    return None


def _tpm(device: Element, _rules: DeviceRules) -> str | None:
    for backend in device.findall("backend"):
        if backend.get("type") != "emulator":
            return f"its <tpm> is {backend.get('type')!a}, not emulated"
        if backend.find("source") is not None:
            return "its <tpm> names where its state is: that must stay libvirt's own place"
    return None


def _video(device: Element, _rules: DeviceRules) -> str | None:
    if any(driver.get("name") not in (None, "qemu") for driver in device.findall("driver")):
        return "its <video> is drawn by another program"
    return None


_DEVICES: Final[dict[str, Checker]] = {
    "emulator": _harmless,  # its path is compared
    "disk": _disk,
    "interface": _interface,
    "serial": _character,
    "parallel": _character,
    "console": _character,
    "channel": _character,
    "graphics": _graphics,
    "rng": _rng,
    "tpm": _tpm,
    "video": _video,
    "input": _of("type", "mouse", "tablet", "keyboard"),
    "audio": _of("type", "none", "spice"),
    "redirdev": _of("type", "spicevmc"),
    "smartcard": _of("type", "spicevmc"),
    "memory": _of("model", "dimm", "virtio-mem"),
    **dict.fromkeys(
        ("controller", "hub", "iommu", "memballoon", "nvram", "panic", "redirfilter", "sound", "vsock", "watchdog"),
        _harmless,
    ),
}
