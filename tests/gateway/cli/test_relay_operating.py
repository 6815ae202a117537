"""Commands on a relay's host: why its control socket says nothing, in words."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from gateway.cli import relay_operating
from tests.gateway.cli.conftest import Sealane, only_error_line


@pytest.mark.parametrize("command", [("relay", "status"), ("evacuation", "status")])
def test_no_socket_there(sealane: Sealane, tmp_path: Path, command: tuple[str, ...]) -> None:
    result = sealane(*command, "--socket", tmp_path / "control.sock")
    assert result.exit_code == 3
    assert "control.sock: No such file or directory; the operator must act" in only_error_line(result)


@pytest.mark.parametrize(
    ("answer", "words"),
    [(b"hello\n", "what it says is no answer of a relay"), (None, "no answer within 0 s")],
)
def test_something_else_there(
    sealane: Sealane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, words: str
) -> None:
    path, over = tmp_path / "s", threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            if answer is not None:
                connection.sendall(answer)
            over.wait(60)

    if answer is None:
        monkeypatch.setattr(relay_operating, "_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        served = threading.Thread(target=serve)
        served.start()
        result = sealane("relay", "status", "--socket", path)
        over.set()
        served.join()
    assert result.exit_code == 3
    assert words in only_error_line(result)
