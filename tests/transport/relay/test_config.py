"""A relay that cannot work says so at its start, in one line that names the file or the key and what to do."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
import structlog

from tests.transport.site import Site, write_toml
from transport.errors import ConfigurationError
from transport.relay import host
from transport.relay.config import load_relay_config, split_address
from transport.relay.limits import LimitsSection
from transport.relay.process import EXIT_CONFIGURATION, run_relay
from transport.relay.spool import Spool


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A relay sends its log to stderr, which is a captured and soon closed one here."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture
def file(site: Site) -> Path:
    """A good configuration file."""
    path = site.folder / "relay.toml"
    write_toml(site.relay_config("a"), path)
    return path


def changed(path: Path, section: str, key: str, value: object) -> None:
    sections = msgspec.to_builtins(load_relay_config(path))
    sections[section][key] = value
    write_toml(sections, path)


def test_a_good_file_is_read_and_its_paths_are_relative_to_it(file: Path) -> None:
    changed(file, "identity", "certificate", "host.pem")
    assert load_relay_config(file).identity.certificate == str(file.parent / "host.pem")


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("relay", "listen_on", "x", "listen_on"),
        (
            "limits",
            "drain_seconds",
            0,
            "limits.drain_seconds: is 0; allowed is a number of seconds, above 0, at most 2592000 (30 days)",
        ),
        ("limits", "drain_seconds", "5", "drain_seconds"),
        ("limits", "max_channels", 257, "max_channels"),
        ("identity", "crls", [], "crls"),
        ("gateway", "permit_keys", [], "permit_keys"),
        ("gateway", "url", "http://gateway", "https://"),
        ("gateway", "url", "https://relay:secret@gateway", "https://HOST:PORT"),
        ("relay", "listen", "127.0.0.1", "host:port"),
        ("relay", "listen", "::1:7443", "host:port"),
        ("relay", "listen", "127.0.0.1:99999", "host:port"),
        ("hypervisor", "memory_socket", "/run/one-for-all.sock", "{uuid}"),
        ("hypervisor", "memory_socket", "/run/{uuid}/{uuid}.sock", "{uuid}"),
        ("hypervisor", "memory_socket", "/run/{uuid}/{port}.sock", "{uuid}"),
    ],
)
def test_an_unknown_key_or_a_bad_value_is_refused_with_file_and_key(
    file: Path, section: str, key: str, value: object, said: str
) -> None:
    changed(file, section, key, value)
    with pytest.raises(ConfigurationError) as refused:
        load_relay_config(file)
    assert str(file) in str(refused.value)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_two_ports_with_one_socket_are_refused(file: Path) -> None:
    with file.open("a") as more:
        more.write('\n[ports.a]\nlisten = "/p/{uuid}"\n[ports.b]\nlisten = "/p/x/../{uuid}"\n')
    with pytest.raises(ConfigurationError, match="two have the same listen"):
        load_relay_config(file)


@pytest.mark.parametrize("content", [b"[[[", b"\xff"])
def test_what_is_no_toml_is_said_to_be_none(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"is not TOML"):
        load_relay_config(file)


def test_a_file_that_is_not_there_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"sealane relay enrol. writes it"):
        load_relay_config(tmp_path / "relay.toml")
    with pytest.raises(ConfigurationError, match=r"cannot be read: Is a directory"):
        load_relay_config(tmp_path)


def test_ipv6_addresses_stand_in_brackets() -> None:
    assert split_address("[::1]:7443", "x") == ("::1", 7443)


@pytest.mark.parametrize(
    "text", ["::1:7443", "h:65536", "h:+1", "h:", ":1", "h", f"h:{'9' * 5000}"], ids=lambda text: text[:9]
)
def test_what_is_no_address_is_refused_however_long_it_is(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--to: .* is not host:port"):
        split_address(text, "--to")


def start(file: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a relay that does not start says on stderr, in one line."""
    assert run_relay(file) == EXIT_CONFIGURATION
    said = capsys.readouterr()
    assert said.out == "", "it was never ready"
    (line,) = said.err.strip().splitlines()
    assert line.endswith("; the operator must act; correct it and start again")
    return line


def test_a_key_that_others_may_read_is_refused(file: Path, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    key = site.certs / "hosts" / "a" / "host.key"
    key.chmod(0o640)
    assert "host.key" in start(file, capsys)


def test_a_port_that_is_taken_is_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        changed(file, "relay", "listen", where)
        assert where in start(file, capsys)


def test_a_metrics_port_that_is_taken_is_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        changed(file, "metrics", "listen", where := f"127.0.0.1:{taken.getsockname()[1]}")
        assert f"metrics.listen: {where}: Address already in use" in start(file, capsys)


def test_an_address_of_another_host_is_called_that(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(file, "relay", "listen", "192.0.2.1:7443")
    assert "give an address of this host" in start(file, capsys)


def test_a_state_folder_of_a_relay_that_serves_is_left_to_it(
    file: Path, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second one would take its control socket away, and operators would ask a relay that carries nothing."""
    with Spool(Path(load_relay_config(file).relay.state_dir)).served():
        assert "another relay serves from it" in start(file, capsys)


def test_a_state_folder_that_is_a_file_is_called_that(
    file: Path, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    (site.folder / "state-file").write_text("")
    changed(file, "relay", "state_dir", str(site.folder / "state-file"))
    assert "state-file is a file, not a folder" in start(file, capsys)


def test_a_pinned_key_that_is_none_is_refused(file: Path, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    (site.certs / "gateway" / "permit.pub").write_text("no key")
    assert "pinned" in start(file, capsys)


def test_a_state_folder_too_deep_for_unix_sockets_is_refused(
    file: Path, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(file, "relay", "state_dir", str(site.folder / ("x" * 90)))
    assert "too long" in start(file, capsys)


def test_nor_may_it_be_too_deep_for_the_socket_of_a_recovery_alone(
    file: Path, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = len(str(site.folder / "run" / ("0" * 16) / "memory.sock")) + 1
    changed(file, "relay", "state_dir", str(site.folder / ("x" * (107 - rest))))
    assert "2 characters too long" in start(file, capsys)


@pytest.mark.parametrize("years", [-20, 20])
def test_a_clock_years_off_is_noticed_at_the_start(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    off = host.now() + timedelta(days=365 * years)
    monkeypatch.setattr(host, "now", lambda: off)
    assert "clock" in start(file, capsys)


def test_the_page_for_operators_names_every_bound_with_its_default() -> None:
    page = (Path(__file__).parents[3] / "docs" / "relay.md").read_text()
    bounds = page[page.index("## Bounds and deadlines") :]
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| [^|]+ \| ([0-9.]+|by cores|three windows) \|", bounds, re.MULTILINE))
    defaults = {name: None if " " in value else float(value) for name, value in rows.items()}
    assert defaults == msgspec.to_builtins(LimitsSection())


@pytest.mark.parametrize("listen", ["0.0.0.0:9464", "192.0.2.1:9464", "localhost:9464", "[::]:9464"])
def test_metrics_are_not_served_beyond_the_host(file: Path, listen: str) -> None:
    changed(file, "metrics", "listen", listen)
    with pytest.raises(ConfigurationError, match=r"metrics\.listen"):
        load_relay_config(file)
