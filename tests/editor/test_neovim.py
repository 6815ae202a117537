"""docs/policy-guide.md: Neovim with Cedar's language server on a bundle with a slip. `make editor`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLIP = """@id("pci-sleeps")
@reason("PCI VMs are not moved.")
forbid (
  principal,
  action in [Sealane::Action::"MigrateVm", Sealane::Action::"OpenLibvirt"],
  resource
) when {
  resource.tag.contains("pci")
};
"""


@pytest.mark.real
def test_an_author_sees_the_slip_the_names_that_fit_and_sealanes_own_finding(tmp_path: Path) -> None:
    server = os.environ.get("CEDAR_LANGUAGE_SERVER") or shutil.which("cedar-language-server")
    assert server, "name the language server in CEDAR_LANGUAGE_SERVER: docs/policy-guide.md tells how to build it"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "cedar-language-server").symlink_to(Path(server).resolve())
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    subprocess.run(["sealane", "policy", "new", "policies"], cwd=tmp_path, env=environment, check=True, timeout=60)
    bundle = tmp_path / "policies"
    (bundle / "policies" / "night.cedar").write_text(SLIP, encoding="utf-8")
    before = sorted(bundle.rglob("*"))
    seen = subprocess.run(
        ["nvim", "--headless", "-u", ROOT / "deploy" / "editor" / "neovim.lua", bundle / "policies" / "night.cedar",
         "-S", Path(__file__).with_name("ask.lua")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    assert re.search(r"^diagnostic 8:3 .*attribute `tag` on entity type `Sealane::Vm` not found", seen, re.MULTILINE)
    assert set(re.findall(r"^completion (\w+)", seen, re.MULTILINE)) >= {"name", "zone", "classification", "tags"}
    assert re.search(r"^quickfix policies/night.cedar:8:12 .*schema", seen, re.MULTILINE), seen
    assert sorted(bundle.rglob("*")) == before, "an editor that leaves files behind makes it no bundle"
