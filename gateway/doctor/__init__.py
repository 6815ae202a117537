"""`sealane doctor`: is this host fit to run a relay or a gateway? Looks at what is, changes nothing, names each remedy.

Runs on a hypervisor without the [gateway] extra. What cannot be looked at is said as such, never taken for healthy.
"""
