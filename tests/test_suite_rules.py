"""The rules of tests/conftest.py, tried on small suites of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.harness import wait_until

pytest_plugins = ["pytester"]
RULES = Path(__file__).with_name("conftest.py").read_text(encoding="utf-8")
SETTINGS = """[pytest]
markers =
    real: needs a real component
    whole: runs for seconds
    fetched(goal): needs what it fetches
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(RULES)
    pytester.makeini(SETTINGS)
    return pytester


def test_a_skipped_real_test_fails_the_session(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        import pytest

        @pytest.mark.real
        @pytest.mark.skipif(True, reason="no QEMU here")
        def test_marked(): pass

        @pytest.mark.real
        def test_inside(): pytest.skip("no haproxy here")

        @pytest.fixture
        def component(): pytest.skip("no socat here")

        @pytest.mark.real
        def test_fixture(component): pass
        """
    )
    result = suite.runpytest_inprocess("-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    outcomes = result.parseoutcomes()
    assert "passed" not in outcomes
    assert "skipped" not in outcomes
    result.stdout.fnmatch_lines(["*no QEMU here*"])


def test_a_skip_that_hides_no_component_is_still_a_skip(suite: pytest.Pytester) -> None:
    suite.makepyfile("import pytest\ndef test_it(): pytest.skip('not on this file system')")
    result = suite.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(skipped=1)
    assert result.ret == pytest.ExitCode.OK


def test_a_module_that_skips_itself_fails_the_session(suite: pytest.Pytester) -> None:
    suite.makepyfile("import pytest\npytest.importorskip('no_such_module_at_all')")
    result = suite.runpytest_inprocess("-p", "no:cacheprovider")
    assert result.ret != pytest.ExitCode.OK
    result.assert_outcomes(errors=1)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_what_needs_a_component_that_was_not_fetched_is_left_out_and_counted(
    suite: pytest.Pytester, workers: str
) -> None:
    suite.makepyfile(
        """
        import pytest

        @pytest.mark.real
        @pytest.mark.fetched("nova")
        def test_marked(): pass

        def test_not_marked(): pass
        """
    )
    words = ("-p", "no:cacheprovider", "-n", workers)
    result = suite.runpytest_inprocess(*words)
    assert result.parseoutcomes()["passed"] == 1
    result.stdout.fnmatch_lines(["LEFT OUT 1: `make nova`*"])
    (suite.path / ".nova").mkdir()
    (suite.path / ".nova" / "lock").touch()
    result = suite.runpytest_inprocess(*words)
    result.assert_outcomes(passed=2)
    result.stdout.no_fnmatch_line("LEFT OUT*")


def test_modules_that_last_longest_come_first_and_stay_in_one_piece(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_a="def test_1(): pass\ndef test_2(): pass",
        test_b="import pytest\n@pytest.mark.whole\ndef test_1(): pass\ndef test_2(): pass",
        test_c="import pytest\ndef test_1(): pass\n@pytest.mark.real\n@pytest.mark.whole\ndef test_2(): pass",
        test_d="import pytest\npytestmark = pytest.mark.real\ndef test_1(): pass",
    )
    result = suite.runpytest_inprocess("-p", "no:cacheprovider", "--collect-only", "-q")
    order = [
        "c.py::test_1",
        "c.py::test_2",
        "d.py::test_1",
        "b.py::test_1",
        "b.py::test_2",
        "a.py::test_1",
        "a.py::test_2",
    ]
    assert [line.removeprefix("test_") for line in result.outlines if "::" in line] == order


def test_a_test_that_hangs_fails_and_what_it_started_is_ended(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_DEADLINE_SECONDS", "1")
    suite.makepyfile(CHILD)
    result = suite.runpytest_subprocess("-p", "no:cacheprovider", timeout=60)
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines(["*hangs: not over after 1 s*"] * 2)
    require_ended(int((suite.path / "child").read_text()))


def test_a_suite_that_is_ended_ends_what_its_tests_started(suite: pytest.Pytester) -> None:
    suite.makepyfile(CHILD)
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(suite.path)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        wait_until((suite.path / "child").exists, "its test's child", 60)
        running.terminate()
        running.wait(60)
    require_ended(int((suite.path / "child").read_text()))


def test_a_suite_that_is_ended_goes_on_with_no_other_test_also_when_tasks_were_at_work(suite: pytest.Pytester) -> None:
    """trio puts the interrupt into a group of errors, which is that of a test and not of whoever wants an end."""
    suite.makepyfile(
        """
        import pathlib, trio

        def test_waits():
            async def wait():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep_forever)
                    pathlib.Path(__file__).with_name("begun").touch()
                    await trio.sleep_forever()
            trio.run(wait)

        def test_is_next(): pathlib.Path(__file__).with_name("next").touch()
        """
    )
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(suite.path)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        wait_until((suite.path / "begun").exists, "the test", 60)
        running.terminate()
        assert running.wait(60) == pytest.ExitCode.INTERRUPTED
    assert not (suite.path / "next").exists()


# What a test with a component of its own does, whose component says nothing.
CHILD = """
    import os, pathlib, subprocess, sys, pytest, trio

    @pytest.fixture
    def child():
        program = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            name = pathlib.Path(__file__).with_name("child")
            name.with_suffix(".new").write_text(str(child.pid))
            name.with_suffix(".new").rename(name)
            yield child
            child.kill()

    def test_hangs(child): child.stdout.read()

    def test_hangs_in_trio(): trio.run(trio.sleep_forever)

    def test_is_next(): trio.run(trio.sleep, 0)
    """


def require_ended(pid: int) -> None:
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), f"the end of process {pid}", 30)


def test_what_bytes_that_do_not_decode_raise_is_spelt_once_in_a_package() -> None:
    """By hand one forgets RecursionError, and whoever sends `[[[[…` ends the program."""
    root = Path(__file__).parents[1]
    by_hand = re.compile(r"except[^:]*msgspec\.(DecodeError|MsgspecError)")
    modules = [
        path for name in ("gateway", "transport", "policy", "audit", "certs") for path in (root / name).rglob("*.py")
    ]
    assert len(modules) > 400
    assert [str(path) for path in modules if by_hand.search(path.read_text(encoding="utf-8"))] == []


def test_a_bug_in_a_command_is_no_exit_code_to_any_test() -> None:
    """Typer's runner makes 1 of it, as of a refusal; `tests/gateway/cli/invoking.py` lets it through."""
    tests = Path(__file__).parent
    runs = [path for path in tests.rglob("*.py") if re.search(r"CliRunner\(\)", path.read_text(encoding="utf-8"))]
    assert runs
    deaf = [path for path in runs if "catch_exceptions=False" not in path.read_text(encoding="utf-8")]
    assert [str(path) for path in deaf if path != Path(__file__)] == []
