"""`sealane audit prove` and the verification of what it wrote: from a folder, and through a gateway's tiles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from audit.log import Log
from audit.tile_tree import FolderTiles
from tests.gateway.cli.conftest import CannedGateway, Sealane, last_object, only_error_line
from tests.gateway.cli.test_record_folder import SIGNER, record_at

SIZE = 300


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log") / "log"
    with Log.open(folder, SIGNER) as log:
        log.append([lambda first: [record_at(index) for index in range(first, first + SIZE)]])
    return folder


def test_entries_are_proven_and_told(log: Path, sealane: Sealane, tmp_path: Path) -> None:
    out = tmp_path / "some.proof"
    assert sealane("audit", "prove", "7", "270", "--log", log, "--out", out).exit_code == 0
    assert out.stat().st_mode & 0o777 == 0o600
    result = sealane("audit", "verify", out, "--key", SIGNER.vkey)
    assert result.exit_code == 0, result.output
    assert "VERIFIED" in result.stdout
    assert "whether there are others like them is not said" in result.stdout
    document = last_object(sealane("audit", "verify", out, "--key", SIGNER.vkey, "--json"))
    assert (document["matching"], document["complete"]) == ([7, 270], False)


def test_all_that_match_in_a_range_are_proven(log: Path, sealane: Sealane, tmp_path: Path) -> None:
    out = tmp_path / "bob.proof"
    words = ["audit", "prove", "--query", "who:bob outcome:denied", "--from", "100", "--log", log, "--out", out]
    assert sealane(*words).exit_code == 0
    document = last_object(sealane("audit", "verify", out, "--key", SIGNER.vkey, "--json"))
    assert document["complete"] is True
    found = last_object(sealane("audit", "query", "who:bob outcome:denied index:>=100", "--log", log, "--json"))
    assert document["matching"] == [one["index"] for one in found["records"]]
    lines = out.read_bytes().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if b"bob" in line and b"denied" in line and i > 0)
    out.write_bytes(b"".join(lines[:place] + lines[place + 1 :]))
    result = sealane("audit", "verify", out, "--key", SIGNER.vkey)
    assert result.exit_code == 1
    assert "left out" in result.stdout


def test_hidden_entries_are_said_to_be_the_exporters_word(log: Path, sealane: Sealane, tmp_path: Path) -> None:
    out = tmp_path / "bob.proof"
    sealane("audit", "prove", "--query", "who:bob", "--to", "20", "--hide", "--log", log, "--out", out)
    assert b"alice" not in out.read_bytes()
    document = last_object(sealane("audit", "verify", out, "--key", SIGNER.vkey, "--json"))
    assert (document["outcome"], document["complete"], document["hidden"]) == ("verified", False, 10)
    assert any("word of the exporter" in line for line in document["proven"])


def test_a_gateways_tiles_give_the_same_proof(
    log: Path, logged_in: CannedGateway, sealane: Sealane, tmp_path: Path
) -> None:
    source = FolderTiles(log)
    framed = {
        name: b"".join(len(one).to_bytes(2, "big") + one for one in source.bundle(number, width))
        for name, number, width in (("000", 0, 256), ("001.p/44", 1, 44))
    }
    tiles = {
        name: b"".join(source.tile(0, number, width)) for name, number, width in (("000", 0, 256), ("001.p/44", 1, 44))
    }
    for name, entries in framed.items():
        logged_in.answer("GET", f"/v1/log/tile/entries/{name}", (200, entries))
        logged_in.answer("GET", f"/v1/log/tile/0/{name}", (200, tiles[name]))
    logged_in.answer("GET", "/v1/log/tile/1/000.p/1", (200, b"".join(source.tile(1, 0, 1))))
    logged_in.answer("GET", "/v1/log/checkpoint", (200, (log / "checkpoint").read_bytes()))
    by_gateway, by_folder = tmp_path / "a.proof", tmp_path / "b.proof"
    for words in (["7", "270"], ["--from", "250", "--to", "260"]):
        result = sealane("audit", "prove", *words, "--out", by_gateway)
        assert result.exit_code == 0, result.output
        assert sealane("audit", "prove", *words, "--log", log, "--out", by_folder).exit_code == 0
        assert by_gateway.read_bytes() == by_folder.read_bytes()
        by_gateway.unlink()
        by_folder.unlink()


def test_what_is_for_people_goes_along_untrusted(log: Path, sealane: Sealane, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("certificates")
    out = tmp_path / "x.proof"
    words = ["audit", "prove", "1", "--log", log, "--out", out, "--key", SIGNER.vkey]
    assert sealane(*words, "--certificates", tmp_path / "ca.pem").exit_code == 0
    reference = json.loads(out.read_bytes().splitlines()[0])["reference"]
    assert (reference["keys"], reference["certificates"]) == ([SIGNER.vkey], "certificates")
    assert sealane("audit", "verify", out, "--key", "other+00000000+AQ==").exit_code == 2


@pytest.mark.parametrize(
    "words", ["", "1 --from 2", "--hide --from 1", "300", "--from 5 --to 5", "--query hots:a", "--from 0 --to 999"]
)
def test_what_makes_no_sense_is_refused_and_leaves_no_file(
    log: Path, sealane: Sealane, tmp_path: Path, words: str
) -> None:
    out = tmp_path / "x.proof"
    result = sealane("audit", "prove", *words.split(), "--log", log, "--out", out)
    assert result.exit_code == 2, result.output
    assert only_error_line(result)
    assert not out.exists()


def test_a_file_is_never_overwritten(log: Path, sealane: Sealane, tmp_path: Path) -> None:
    out = tmp_path / "x.proof"
    out.write_text("precious")
    assert sealane("audit", "prove", "1", "--log", log, "--out", out).exit_code == 2
    assert out.read_text() == "precious"


def test_a_damaged_log_gives_no_proof(log: Path, sealane: Sealane, tmp_path: Path) -> None:
    copy = tmp_path / "log"
    copy.mkdir()
    (copy / "checkpoint").write_bytes((log / "checkpoint").read_bytes())
    result = sealane("audit", "prove", "1", "--log", copy, "--out", tmp_path / "x.proof")
    assert result.exit_code == 1
    assert "audit verify" in only_error_line(result)
    assert not (tmp_path / "x.proof").exists()
