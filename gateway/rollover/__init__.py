"""Keys are rolled over while everything runs: new beside old, then new in force, then old gone.

The rule that it owns: no step is taken before all who need to know of it do, and where the files lie says which step
was taken last, so that a gateway that was stopped between two steps goes on from there. See docs/key-rollover.md.
"""
