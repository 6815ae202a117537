"""The gateway of a site: it authenticates the requester, decides, records and issues the permit.

The one rule that this package owns: no permit leaves before its decision is durable in the log, and any error in
identity, policy or the log is a denial with a reason. `admission.py` tells that story; `service.py` puts the pieces
together. This module imports nothing, so that `sealane relay …` runs without the `[gateway]` extra.
"""
