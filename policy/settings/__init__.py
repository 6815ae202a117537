"""Files that people write: decoded strictly into a frozen tree, and refused in words that say what is allowed.

The rule that this package owns: whoever meets a refused file is told the key, what stands there, and what may stand
there with its unit. The same words make docs/configuration.md, so that neither goes stale.
"""

from policy.settings.reading import SettingRefused, convert_settings, decode_settings

__all__ = ["SettingRefused", "convert_settings", "decode_settings"]
