"""What is shipped beside the code: units, profiles, module, hook and the page on installing, read by their tools."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import gateway.config as gateway_configuration
from gateway.cli.settings import read_client_file
from policy.inventory import Inventory
from transport.relay.config import load_relay_config

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
INSTALL = (ROOT / "docs" / "install.md").read_text()


def run(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", **more}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def block(name: str) -> str:
    """The block of the page that is marked as `toml NAME`."""
    found = re.search(rf"```toml {name}\n(.*?)```", INSTALL, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.real
@pytest.mark.parametrize(("unit", "exposure"), [("sealane-relay.service", 3.0), ("sealane-gateway.service", 1.5)])
def test_a_unit_is_as_hard_as_the_page_says(unit: str, exposure: float) -> None:
    done = run("systemd-analyze", "security", "--offline=true", "--no-pager", str(DEPLOY / "systemd" / unit))
    found = re.search(r"Overall exposure level for \S+ ([0-9.]+)", done.stdout)
    assert found is not None, done.stderr
    assert float(found[1]) <= exposure
    assert f"{found[1]})" in INSTALL


@pytest.mark.real
@pytest.mark.parametrize("name", ["sealane-relay", "libvirt-qemu.d-sealane"])
def test_apparmor_understands_the_profiles(name: str, tmp_path: Path) -> None:
    path = DEPLOY / "apparmor" / name
    if name.startswith("libvirt"):  # an addition: it is included in a profile
        text = f'abi <abi/3.0>,\ninclude <tunables/global>\nprofile guest {{\ninclude "{path}"\n}}\n'
        path = tmp_path / "profile"
        path.write_text(text)
    done = run("apparmor_parser", "--skip-kernel-load", "--skip-cache", str(path))
    assert done.returncode == 0, done.stderr


@pytest.mark.real
def test_selinux_understands_the_module(tmp_path: Path) -> None:
    module, package = str(tmp_path / "sealane.mod"), str(tmp_path / "sealane.pp")
    done = run("checkmodule", "-M", "-m", "-o", module, str(DEPLOY / "selinux" / "sealane.te"))
    assert done.returncode == 0, done.stderr
    done = run("semodule_package", "-o", package, "-m", module)
    assert done.returncode == 0, done.stderr


def test_sysctl_lines_are_settings() -> None:
    lines = (DEPLOY / "sysctl.d" / "60-sealane.conf").read_text().splitlines()
    settings = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z_.]+ = [0-9]+", line) for line in settings)


def test_the_pages_configurations_are_understood(tmp_path: Path) -> None:
    relay = tmp_path / "relay.toml"
    relay.write_text(block("relay"))
    assert load_relay_config(relay).relay.listen == "10.7.0.11:7443"
    config = gateway_configuration.parse(block("gateway").encode(), tmp_path / "gateway.toml")
    assert config.log.origin == "bank.example/audit"
    assert [issuer.login is not None for issuer in config.identity.issuers] == [True]  # or nobody could sign in
    client = tmp_path / "client.toml"
    client.write_text(block("client"))
    assert read_client_file(client).gateway == "https://gateway.bank.example:8443"
    inventory = Inventory.parse(block("inventory").encode())
    assert set(inventory.vms) == {"6f1c2a52-4c0e-4a57-9d3c-0b8f6f0f7a11"}


DOMAIN = "<domain><name>web</name><uuid>6f1c2a52-4c0e-4a57-9d3c-0b8f6f0f7a11</uuid></domain>"


@pytest.mark.parametrize(
    ("operation", "refuses", "relay", "code", "says"),
    [
        ("migrate", False, "false", 0, "incoming migration of 6f1c2a52"),
        ("migrate", True, "true", 0, "incoming migration of 6f1c2a52"),
        ("migrate", True, "false", 1, "refused"),
        ("restore", True, "false", 0, "restore of 6f1c2a52"),
        ("prepare", True, "false", 0, ""),
    ],
)
def test_the_hook_tells_and_refuses_only_what_it_says(
    tmp_path: Path, operation: str, refuses: bool, relay: str, code: int, says: str
) -> None:
    refuse = tmp_path / "refuse"
    if refuses:
        refuse.touch()
    done = subprocess.run(
        [str(DEPLOY / "libvirt" / "qemu-hook"), "web'; touch /tmp/x", operation, "begin", "-"],
        input=DOMAIN,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={
            "PATH": "/usr/bin:/bin",
            "SEALANE_REFUSE": str(refuse),
            "SEALANE_RELAY_RUNS": relay,
            "SEALANE_HOOK_LOG": "echo",
        },
    )
    assert done.returncode == code, done.stderr
    assert ("through its relay only" in done.stderr) == (code == 1)
    assert says in done.stdout
