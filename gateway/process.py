"""The gateway as a process: signals, the ready line, exit codes."""

from __future__ import annotations

import json
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
import trio

import gateway.config as configuration
from gateway.config import GatewayConfig
from gateway.errors import ConfigRefused, GatewayError, StartRefused
from gateway.logging import configure_logging
from gateway.service import Gateway, serve
from transport.relay import systemd

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_CONFIGURATION: Final = 2

log = structlog.get_logger("gateway.process")


def run_gateway(config_path: Path) -> int:
    """The process: 0 after SIGTERM or SIGINT, 2 for what the operator must correct, 1 for anything else."""
    configure_logging(sys.stderr)
    try:
        config = configuration.load(config_path)
        trio.run(_main, config)
    except (ConfigRefused, StartRefused) as error:
        print(f"sealane gateway: {error.detail}; the {error.who_must_act} must act; {error.next_step}", file=sys.stderr)
        return EXIT_CONFIGURATION
    except GatewayError as error:
        log.error("gateway ended", error=error.detail)
        return EXIT_FAILED
    return EXIT_DONE


async def _main(config: GatewayConfig) -> None:
    refused: list[GatewayError] = []
    try:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                running: Gateway = await nursery.start(partial(serve, config))
                print(json.dumps({"ready": True, "listen": running.listen}), flush=True)
                systemd.notify("READY=1")
                nursery.start_soon(_obey, signals, running)
                async with trio.open_nursery() as alive:
                    alive.start_soon(systemd.keep_alive)
                    await running.wait_stopping()
                    alive.cancel_scope.cancel()
    except* GatewayError as errors:
        refused += [error for error in _leaves(errors) if isinstance(error, GatewayError)]
    if refused:
        raise refused[0]


async def _obey(signals: Any, running: Gateway) -> None:
    async for received in signals:
        if received == signal.SIGHUP:
            await running.reload()
        else:
            running.stop()
            return


def _leaves(errors: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in errors.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


run = run_gateway
