"""The one command people run, `sealane`.

Rule it owns: what comes from a server, a log or a file is shown as harmless text, every error is one
line that says what happened, who must act and what to do next, and exit codes mean the same everywhere
(0 done, 1 denied or failed, 2 usage or configuration, 3 unreachable). Modules import what they need
inside the command, so that `sealane relay` runs on a host without the `[gateway]` extra.
"""
