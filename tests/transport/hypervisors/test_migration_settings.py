"""What QEMUs are told before a migration, without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from transport.hypervisors.migration_settings import (
    MigrationSettings,
    destination_capabilities,
    migration_parameters,
    source_capabilities,
    unix_uri,
)
from transport.hypervisors.moving import Movement

OF_7_2 = ("return-path", "validate-uuid", "events", "multifd", "xbzrle", "auto-converge", "postcopy-ram", "x-colo")


def test_what_would_end_a_migration_in_another_order_is_switched_off_where_it_is_known() -> None:
    wanted = source_capabilities(MigrationSettings(), OF_7_2)
    assert {name for name, state in wanted.items() if state} == {"return-path", "validate-uuid", "events"}
    assert wanted["x-colo"] is False
    assert "background-snapshot" not in wanted


def test_what_is_wished_for_is_asked_of_a_qemu_that_does_not_know_it_so_that_it_refuses() -> None:
    wanted = source_capabilities(MigrationSettings(movement=Movement(post_copy=True, preempt=True)), OF_7_2)
    assert (wanted["postcopy-ram"], wanted["postcopy-preempt"]) == (True, True)


def test_disks_stay_the_sources_until_the_guest_is_started() -> None:
    assert destination_capabilities(MigrationSettings(), OF_7_2)["late-block-activate"] is True
    assert "late-block-activate" not in source_capabilities(MigrationSettings(), OF_7_2)


@pytest.mark.parametrize(
    ("own", "of_permit", "said"), [(0, 0, 0), (0, 500, 500), (200, 500, 200), (900, 500, 500), (200, 0, 200)]
)
def test_post_copy_goes_no_faster_than_its_own_limit_and_the_permits(own: int, of_permit: int, said: int) -> None:
    settings = MigrationSettings(of_permit, movement=Movement(post_copy=True), post_copy_bytes_per_second=own)
    assert migration_parameters(settings)["max-postcopy-bandwidth"] == said


@pytest.mark.parametrize("path", ["relative", "/" + "x" * 107, "/ü", "/a\0b"])
def test_a_path_that_no_socket_can_have_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not an absolute ASCII path"):
        unix_uri(Path(path))
