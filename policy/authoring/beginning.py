"""A bundle to begin with, complete and tested, for an author to put their own groups and zones in."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from policy.bundle import decode_manifest
from policy.bundle_files import MANIFEST, read_bundle_files

STARTER: Final = Path(__file__).parents[1] / "examples" / "starter"


def begin(name: str) -> dict[str, str]:
    """Its files by path. Raises BundleRefused for a name that no bundle may have."""
    manifest = f'name = "{name}"\nversion = 1\n'
    decode_manifest(manifest)  # a name with quotes or line feeds in it ends here
    return {**read_bundle_files(STARTER), MANIFEST: manifest}
