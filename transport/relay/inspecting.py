"""Preflight at a relay: the gateway asks about one VM, as its source or its destination; the answer touches nothing."""

from __future__ import annotations

from typing import Final

import trio

from transport.hypervisors import libvirt_preflight, qmp_preflight
from transport.hypervisors.errors import HypervisorError, HypervisorUnreachable
from transport.hypervisors.preflight_facts import Inspection, Machine
from transport.hypervisors.virsh import Virsh
from transport.relay.config import RelayConfig
from transport.relay.libvirt_orders import libvirt_uri
from transport.relay.vm_paths import path_of

SECONDS: Final = 8.0  # less than the gateway waits


async def inspect_source(config: RelayConfig, vm: str) -> Inspection:
    """The VM as its hypervisor here tells it."""
    try:
        with trio.fail_after(SECONDS):
            return Inspection(machine=await _machine(config, vm))
    except (HypervisorError, trio.TooSlowError) as error:
        return Inspection(trouble=_words(error))


async def inspect_destination(config: RelayConfig, vm: str, wanted: Machine) -> Inspection:
    """What this host has for it: the QEMU that waits for it, or what libvirt says to each thing that it needs."""
    try:
        with trio.fail_after(SECONDS):
            if wanted.kind == "qmp":
                return Inspection(machine=await _waiting_qemu(config, vm))
            if not (uri := libvirt_uri(config)):
                return Inspection(trouble="the VM is libvirt's at its source, and this relay knows no libvirt")
            virsh = Virsh(uri, config.placement.virsh, seconds=SECONDS / 2)
            rules = config.hypervisor.domain_rules if config.hypervisor.kind == "libvirt" else None
            return Inspection(checks=await libvirt_preflight.destination_checks(vm, wanted, virsh, rules))
    except (HypervisorError, trio.TooSlowError) as error:
        return Inspection(trouble=_words(error))


async def _machine(config: RelayConfig, vm: str) -> Machine:
    section = config.hypervisor
    if section.kind == "qmp":
        socket = path_of(section.qmp_socket, vm)
        if socket.is_socket() or not libvirt_uri(config):
            return await qmp_preflight.machine_of(vm, socket)
    if not (uri := libvirt_uri(config)):
        raise HypervisorUnreachable("this relay only carries sockets: it can ask no hypervisor about the VM")
    return await libvirt_preflight.machine_of(vm, Virsh(uri, config.placement.virsh))


async def _waiting_qemu(config: RelayConfig, vm: str) -> Machine:
    if config.hypervisor.kind != "qmp":
        raise HypervisorUnreachable("this relay only carries sockets: it knows no QEMU that waits")
    return await qmp_preflight.machine_of(vm, path_of(config.hypervisor.qmp_socket, vm))


def _words(error: Exception) -> str:
    if isinstance(error, trio.TooSlowError):
        return f"the hypervisor did not answer within {SECONDS:g} s"
    return str(error)[:1024]
