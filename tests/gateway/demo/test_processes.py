"""The demo's commands and services, with small programs in the place of `sealane`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from gateway.demo.errors import ProcessFailed
from gateway.demo.processes import Commands


@dataclass(frozen=True, slots=True)
class Python(Commands):
    """Runs its first argument as a Python program."""

    def line(self, arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-c", *arguments]


READY = 'import signal; print(\'{"ready": true, "listen": "127.0.0.1:7"}\', flush=True); signal.pause()'


async def test_the_object_on_the_last_line_is_the_answer(tmp_path: Path) -> None:
    program = "import sys; print('a word first'); print('{\"outcome\": \"denied\"}'); sys.exit(1)"
    assert await Python(tmp_path).run(program) == (1, {"outcome": "denied"})


@pytest.mark.parametrize("said", ["", "not JSON", "[]", "5"])
async def test_a_command_without_an_object_fails_with_its_words(tmp_path: Path, said: str) -> None:
    program = f"import sys; print({said!r}); print('what went wrong', file=sys.stderr)"
    with pytest.raises(ProcessFailed, match="exit code 0") as failed:
        await Python(tmp_path).run(program)
    assert "what went wrong" in failed.value.tail


async def test_nobodys_settings_play_a_part(tmp_path: Path) -> None:
    program = "import json, os; print(json.dumps({'home': os.environ['HOME']}))"
    assert await Python(tmp_path).run(program) == (0, {"home": str(tmp_path)})


async def test_a_service_runs_while_it_is_needed_and_no_longer(tmp_path: Path) -> None:
    async with Python(tmp_path).serve("x", READY) as service:
        assert service.listen == "127.0.0.1:7"
        assert service.process.poll() is None
    assert service.process.returncode is not None


async def test_a_service_that_ends_at_once_fails_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match="exit code 2") as failed:
        async with Python(tmp_path).serve("x", "import sys; print('port taken', file=sys.stderr); sys.exit(2)"):
            pass
    assert failed.value.tail == "port taken"


async def test_a_service_that_says_something_else_is_not_ready(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match="instead of being ready"):
        async with Python(tmp_path).serve("x", "import signal; print('hello', flush=True); signal.pause()"):
            pass


async def test_a_cancelled_demo_still_ends_its_services(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with Python(tmp_path).serve("x", READY) as service:
            scope.cancel()
            await trio.sleep_forever()
    assert service.process.returncode is not None
