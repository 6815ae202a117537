"""The demo: the whole of Sealane on one machine, with a guest that shows whether its move did it any harm.

The rule that this package owns: each value that the demo reports was observed from outside of the programs
that it shows, by the guest's memory and serial port, by process ids, and by the offline verifier.
"""

# Imports wait until they are needed: `sealane --help` must not pay for them.
# ruff: noqa: PLC0415


def run_demo(json: bool, keep: bool) -> int:
    """Run the demo; returns the exit code, 0 only if all that Sealane promises held. See `gateway.demo.running`."""
    from gateway.demo.running import run

    return run(as_json=json, keep=keep)
