"""libvirt's RPC, as far as a migration speaks it: framing, the migration's own procedures, and a filter (sans-IO).

The rule that this package owns: through a relay's `libvirt` port nothing passes but the enumerated procedures of one
migration of the one permitted VM, each decoded strictly and checked. libvirt's full RPC is root on the destination.
Numbers and layouts are those of libvirt's public protocol definition; docs/libvirt.md lists what passes and why.
"""
