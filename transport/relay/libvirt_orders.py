"""`sealane migrate` where libvirt owns the VM: the relay has libvirt move it, through the relay's own front.

The permit that came with the order is held for the moment at which the front hears of just this VM and destination:
then the gateway is not asked a second time. Everything else is as with any other client of libvirt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import structlog
import trio

from policy.errors import PermitRefused
from policy.permit import trust_domain_of, verify_permit
from transport.errors import LocalBroken
from transport.hypervisors.errors import HypervisorError
from transport.hypervisors.moving import How, how_document
from transport.hypervisors.virsh import Virsh
from transport.relay.config import RelayConfig
from transport.relay.front import SOCKET_NAME
from transport.relay.front_destinations import leads_to
from transport.relay.gateway_answers import Migrate
from transport.relay.host import RelayHost
from transport.relay.wish import Wish

log = structlog.get_logger("sealane.relay")
_ABORT_SECONDS: Final = 10.0
_BY_VIRSH: Final = frozenset(
    {
        "auto_converge",
        "xbzrle",
        "multifd_channels",
        "post_copy_after_seconds",
        "converge_within_seconds",
        "at_deadline",
        "bandwidth_bytes_per_second",  # in the permit, and kept by the lanes
    }
)


def libvirt_uri(config: RelayConfig) -> str:
    """How this relay asks libvirt: as configured, else at the socket where it moves guests; "" if it knows none."""
    if config.placement.libvirt_uri or config.hypervisor.kind != "libvirt":
        return config.placement.libvirt_uri
    return f"qemu:///system?socket={config.hypervisor.libvirt_socket}"


def virsh_options(how: How) -> list[str]:
    """The wishes in virsh's words. `LocalBroken` for those that it has none for: nothing is left out in silence."""
    unknown = how_document(how).keys() - _BY_VIRSH
    if unknown or how.at_deadline == "post-copy" or (how.converge_within_seconds and how.at_deadline == "cancel"):
        what = ", ".join(sorted(unknown)) or f"at_deadline {how.at_deadline}"
        raise LocalBroken(f"libvirt moves this VM, and is not asked for: {what}")
    options = ["--auto-converge"] if how.auto_converge else []
    if how.xbzrle:
        options += ["--compressed", "--comp-methods", "xbzrle"]
    if how.multifd_channels:
        options += ["--parallel", "--parallel-connections", str(how.multifd_channels)]
    if how.post_copy_after_seconds is not None:
        options += ["--postcopy", "--timeout", str(max(1, how.post_copy_after_seconds)), "--timeout-postcopy"]
    elif how.converge_within_seconds is not None:
        options += ["--timeout", str(how.converge_within_seconds), "--timeout-suspend"]
    return options


class LibvirtOrders:
    """The orders of one relay that libvirt carries out."""

    def __init__(self, host: RelayHost) -> None:
        self._host = host
        self._held: dict[tuple[str, str], Migrate] = {}

    def take(self, wish: Wish) -> Migrate | None:
        """The order that this client of libvirt carries out, if there is one: handed out once."""
        return self._held.pop((wish.vm, wish.destination), None)

    async def carry_out(self, order: Migrate) -> str | None:
        """Have libvirt move the VM; returns when its command has ended. None if the front took the order, else why not.

        LocalBroken, HypervisorError and OfferRefused if it cannot even be begun.
        """
        config = self._host.config
        try:
            claims = verify_permit(order.permit, self._host.permits.permit_keys).claims
        except PermitRefused as refused:
            raise LocalBroken(f"the permit of this order is refused ({refused.detail})") from None
        destination = claims.destination.rpartition("/")[2]
        if trust_domain_of(claims.destination) != trust_domain_of(self._host.spiffe_id):
            raise LocalBroken("domains of libvirt do not cross to another site: this order is not carried out")
        if not leads_to(config.front, self._host.addresses.book, self._host.spiffe_id, destination):
            raise LocalBroken(
                f"the front of this relay has no {destination}: it is not in the address book; add it to the gateway's "
                "inventory, or to [[front.destinations]]"
            )
        wanted = virsh_options(order.how)
        front = Path(config.front.folder) / destination / SOCKET_NAME
        virsh = Virsh(libvirt_uri(config), config.placement.virsh, order.deadline_seconds)
        key = (claims.vm, destination)
        self._held[key] = order
        try:
            said = await self._migrate(virsh, claims.vm, f"qemu+unix:///system?socket={front}", wanted)
        finally:
            was_taken = self._held.pop(key, None) is not order
        return None if was_taken else f"libvirt did not begin: {said}"

    async def _migrate(self, virsh: Virsh, vm: str, destination: str, wanted: list[str]) -> str:
        """What virsh said; "" if all went well. How the session went, the session itself tells."""
        persistent = vm in (await virsh.ask("list", "--persistent", "--uuid")).split()
        options = ["--persistent", "--undefinesource"] if persistent else []
        try:
            await virsh.ask("migrate", "--live", "--p2p", *options, *wanted, vm, destination, read_only=False)
        except HypervisorError as error:
            return str(error)
        except trio.Cancelled:
            # virsh that is killed leaves its job running.
            with trio.move_on_after(_ABORT_SECONDS, shield=True):
                await self._abort(virsh, vm)
            raise
        return ""

    async def _abort(self, virsh: Virsh, vm: str) -> None:
        try:
            await virsh.ask("domjobabort", vm, read_only=False)
        except HypervisorError as error:
            log.info("no job of libvirt to abort", vm=vm, cause=str(error))
