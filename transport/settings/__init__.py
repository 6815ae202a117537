"""Configuration files: TOML decoded strictly into a frozen tree, and refused in words that say what is allowed.

The rule that this package owns: whoever meets a refused file is told the key, what stands there, and what may stand
there with its unit. The same words make docs/configuration.md, so that neither goes stale.
"""

from transport.settings.reading import SettingRefused, decode_settings

__all__ = ["SettingRefused", "decode_settings"]
