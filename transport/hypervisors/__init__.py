"""Drivers of hypervisors: what a relay asks of the program that runs the guest.

The rule that this package owns: every question has a deadline, every answer is checked, and what was not
confirmed counts as not known. Drivers know nothing of permits, lanes or spools. QMP is specified in QEMU's
`docs/interop/qmp-spec`, the migration commands in its `qapi/migration.json`.
"""
