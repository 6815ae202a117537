"""Who may move which VM where: facts, Cedar decisions, the identities they rest on and the permit that carries them.

The rule it owns: allow only if Cedar says allow, nothing went wrong on the way, and every entity was known.
This package imports nothing here, so that a relay can take `policy.permit` without Cedar; specified in
docs/architecture.md and, for the permit, docs/wire-protocol.md.
"""
