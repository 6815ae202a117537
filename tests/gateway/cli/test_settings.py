"""client.toml and the options over it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.errors import BadConfiguration
from gateway.cli.settings import canonical_url, resolve


def write(home: Path, text: str) -> Path:
    path = home / ".config" / "sealane" / "client.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_file_gives_what_no_option_gives_and_its_paths_are_relative_to_it(tmp_path: Path) -> None:
    path = write(
        tmp_path, 'gateway = "https://gw.example:8443/"\nca = "ca.pem"\ntoken_file = "/t"\ntimeout_seconds = 5'
    )
    settings = resolve(None, None, None, tmp_path)
    assert settings.gateway == "https://gw.example:8443"
    assert settings.ca == path.parent / "ca.pem"
    assert (settings.token_file, settings.timeout_seconds) == (Path("/t"), 5)


def test_options_win_over_the_file(tmp_path: Path) -> None:
    write(tmp_path, 'gateway = "https://old"\nca = "old.pem"')
    settings = resolve("https://new", Path("new.pem"), Path("token"), tmp_path)
    assert (settings.gateway, settings.ca, settings.token_file) == ("https://new", Path("new.pem"), Path("token"))


def test_without_a_file_the_token_has_its_place(tmp_path: Path) -> None:
    settings = resolve("https://gw", None, None, tmp_path)
    assert settings.token_file == tmp_path / ".config/sealane/token.json"
    assert settings.ca is None


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('gatway = "https://gw"', "gatway"),
        ("ca = 7", "ca"),
        ("timeout_seconds = 0", "timeout_seconds"),
        ("timeout_seconds = true", "timeout_seconds"),
        ("gateway = ", "Invalid value"),
    ],
)
def test_an_unknown_key_or_bad_value_is_refused_with_file_and_key(tmp_path: Path, text: str, names: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(BadConfiguration) as caught:
        resolve("https://gw", None, None, tmp_path)
    assert str(path) in caught.value.what
    assert names in caught.value.what


def test_no_gateway_at_all_says_how_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match="no gateway") as caught:
        resolve(None, None, None, tmp_path)
    assert "--gateway" in caught.value.next_step


@pytest.mark.parametrize(
    "url",
    [
        "http://gw",  # a token in the clear
        "gw:8443",
        "https://",
        "https://user:secret@gw",
        "https://gw/path",
        "https://gw?x=1",
        "https://gw#f",
        "https://gw:99999",
        "https://[::1",
        "https://g w",
        "https://gw\n.evil",
        "ftp://gw",
        "",
    ],
)
def test_anything_but_an_https_address_is_refused(url: str) -> None:
    with pytest.raises(BadConfiguration):
        canonical_url(url, "--gateway")


@pytest.mark.parametrize(
    ("url", "canonical"),
    [("https://GW.Example/", "https://gw.example"), ("https://[::1]:8443", "https://[::1]:8443")],
)
def test_addresses_have_one_spelling(url: str, canonical: str) -> None:
    assert canonical_url(url, "--gateway") == canonical
    assert canonical_url(canonical, "--gateway") == canonical


@given(st.text() | st.text(alphabet="htps:/[]@.1aé%\\").map("https://".__add__))
def test_any_text_is_a_canonical_address_or_refused(text: str) -> None:
    try:
        url = canonical_url(text, "--gateway")
    except BadConfiguration:
        return
    assert url.startswith("https://")
    assert canonical_url(url, "--gateway") == url
