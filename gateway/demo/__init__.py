"""The demo: the whole of Sealane on one machine, with a guest that shows whether its move did it any harm.

The rule that this package owns: each value that the demo reports was observed from outside of the programs
that it shows, by the guest's memory and serial port, by process ids, and by the offline verifier.
"""
