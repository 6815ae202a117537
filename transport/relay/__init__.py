"""The relay: one trio process per hypervisor host that carries streams whose permit it has verified.

Rule that this package owns: durable before visible. What a peer or a hypervisor may act on has been written and
fsynced first, and recovery after a crash runs the same code as the ordinary end (`handover`).
"""
