"""A relay that moves many VMs at once, in a process of its own: `python -m tests.transport.relay.many_sources CONFIG
ADDRESS` prints `ready HOST:PORT`, reads a permit a line, and what program N sends connects to N.sock beside CONFIG."""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from transport.relay.config import load_relay_config
from transport.relay.host import open_host
from transport.relay.news import News
from transport.relay.service import serve_relay
from transport.relay.source import MigrationOrder, carry_as_source


async def main(config: Path, address: str) -> None:
    host = open_host(load_relay_config(config))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_relay, host, lambda where: print("ready", where, flush=True))
        permits = await trio.to_thread.run_sync(sys.stdin.read)
        for number, permit in enumerate(permits.split()):
            order, path = MigrationOrder(permit, address), config.parent / f"{number}.sock"
            nursery.start_soon(carry_as_source, host, order, tell, trio.Event(), path)


async def tell(news: News) -> None:
    if news.message:
        print(news.state, news.message, flush=True)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2])
