"""What can go wrong between a relay and a hypervisor, split by who must act.

HypervisorError
├── HypervisorUnreachable   operator: no socket, nobody listens, no right to it, or its monitor is taken
├── HypervisorGone          operator: it ended (or hung up) while it was needed
├── HypervisorTimeout       operator: it is there, but did not answer before the deadline
├── HypervisorGarbled       operator: what answers does not speak QMP
├── HypervisorRefused       operator: it understood the command and would not do it
├── WrongVm                 operator: another virtual machine is behind the socket
├── MigrationFailed         operator: the hypervisor gave the migration up
└── MigrationCancelled      requester: somebody cancelled the migration
"""

from typing import ClassVar, Final, Literal

_MAX_WORDS: Final = 1000
WhoMustAct = Literal["requester", "operator", "peer", "us"]


class HypervisorError(Exception):
    """Root of this tree. `detail` says what was seen, `next_step` what to do about it.

    A hypervisor's own words are in it, and a guest may have taken that over: short, and nothing that rules a terminal.
    """

    who_must_act: ClassVar[WhoMustAct] = "operator"
    next_step: ClassVar[str] = "Look into the log of the hypervisor."

    def __init__(self, detail: str) -> None:
        self.detail = "".join(each if each.isprintable() else " " for each in detail[:_MAX_WORDS])
        super().__init__(self.detail)


class HypervisorUnreachable(HypervisorError):
    """No conversation could be started."""

    next_step = "Check that the VM runs and that [hypervisor] qmp_socket names a monitor the relay may open."


class HypervisorGone(HypervisorError):
    """The conversation ended from the other side. The process may or may not be gone: see `wait_gone`."""

    next_step = "Look into the log of the hypervisor: it ended or closed its monitor."


class HypervisorTimeout(HypervisorError):
    """No answer before the deadline. Whether the command took effect is not known."""

    next_step = "Check whether the hypervisor hangs, or whether another program holds its monitor."


class HypervisorGarbled(HypervisorError):
    """The other side does not speak QMP, or not as its specification says. The connection is of no more use."""

    next_step = "Check that [hypervisor] qmp_socket names a QMP monitor and no other socket."


class HypervisorRefused(HypervisorError):
    """The hypervisor answered a command with an error."""

    next_step = "See what the hypervisor says against it; nothing was changed by the refused command."

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(f"{command}: {description}")
        self.command = command
        self.error_class = error_class
        self.description = description


class WrongVm(HypervisorError):
    """The VM behind the socket is not the one that was named."""

    next_step = "Correct [hypervisor] qmp_socket, or start the VM with the -uuid that the inventory names."

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"expected VM {expected}, found {found}")
        self.expected = expected
        self.found = found


class MigrationFailed(HypervisorError):
    """The migration ended without success; before the handover the guest still runs at the source."""

    next_step = "See the reason that the hypervisor gives; the guest still runs at the source."


class MigrationCancelled(HypervisorError):
    """The migration was cancelled; the guest still runs at the source."""

    who_must_act = "requester"
    next_step = "Ask for the migration again if it is still wanted."
