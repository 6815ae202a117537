"""Breaking glass: one person asks with a ticket, another approves, the first moves one VM to one host until time is up.

The rule that it owns: what is granted is what the log says. A step counts once its record is durable, state is derived
from those records alone, and no clock that goes back makes a grant last longer. docs/break-glass.md is for operators.
"""
