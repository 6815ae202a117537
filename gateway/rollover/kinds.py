"""What can be rolled over, and what each step means for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from gateway.errors import Conflict, OperatorError
from gateway.rollover.places import Stage
from gateway.rollover.progress import Progress


class NotNow(Conflict):
    """The step does not follow the last one, or hosts are not ready for it."""

    code = "rollover_not_now"
    next_step = "look: sealane certs rollover status"


class StepFailed(OperatorError):
    code = "rollover_failed"
    next_step = "look at the files beside the key, then take the step again"


class Kind(Protocol):
    """One key, or CA, with its steps. `ready_…` change nothing; the steps raise `CertificateError` or OSError."""

    @property
    def stage(self) -> Stage: ...

    @property
    def breaks(self) -> str:
        """What becomes of hosts that a switch or a retirement leaves behind."""

    def facts(self) -> dict[str, Any]:
        """For records and answers: names of the keys, nothing secret."""

    def check_begin(self) -> None:
        """Whether what is prepared can follow. Raises `CertificateError`, NotNow."""

    def ready_to_switch(self) -> Progress: ...

    def ready_to_retire(self) -> Progress: ...

    async def begin(self) -> None: ...

    async def switch(self) -> None: ...

    async def retire(self) -> str:
        """What the operator is to do with what is left."""


@dataclass(frozen=True, slots=True)
class State:
    """Of one kind, for who looks. `progress`: towards the step that follows, None where no host has a part in it."""

    what: str
    stage: Stage
    progress: Progress | None
    facts: dict[str, Any]
    next_step: str

    def document(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "stage": self.stage.value,
            "progress": None if self.progress is None else self.progress.document(),
            "facts": self.facts,
            "next_step": self.next_step,
        }
