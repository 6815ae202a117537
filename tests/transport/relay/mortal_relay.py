"""A real relay in a process of its own that dies by SIGKILL at a chosen moment of its spool.

    python -m tests.transport.relay.mortal_relay CONFIG MOMENT [PERMIT ADDRESS [HOW]]

CONFIG is a relay's TOML file, MOMENT `before:STATE`, `after:STATE` or `never`; before it and a comma there may be
others, as `stop-before:STATE`, at which it stops (SIGSTOP) until somebody lets it go on. With PERMIT (a file) and
ADDRESS it also begins that migration, as HOW (JSON) says. Prints `ready HOST:PORT`, and each news as `news STATE
MESSAGE`.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from transport.hypervisors.moving import How
from transport.relay import spool
from transport.relay.config import load_relay_config
from transport.relay.host import open_host
from transport.relay.news import News
from transport.relay.service import serve_relay
from transport.relay.source import MigrationOrder, carry_as_source


def die_at(moments: str) -> None:
    signals = {
        each.removeprefix("stop-"): signal.SIGSTOP if each.startswith("stop-") else signal.SIGKILL
        for each in moments.split(",")
    }
    durable = spool._append_line

    def reach(moment: str) -> None:
        if moment in signals:
            os.kill(os.getpid(), signals[moment])

    def append_line(path: Path, entry: dict[str, Any]) -> None:
        reach(f"before:{entry['state']}")
        durable(path, entry)
        reach(f"after:{entry['state']}")

    spool._append_line = append_line


async def tell(news: News) -> None:
    print("news", news.state, news.message, flush=True)


async def main(config: str, permit: str = "", address: str = "", how: str = "{}") -> None:
    host = open_host(load_relay_config(Path(config)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_relay, host, lambda where: print("ready", where, flush=True))
        if permit:
            order = MigrationOrder(Path(permit).read_text(), address, how=msgspec.json.decode(how, type=How))
            nursery.start_soon(carry_as_source, host, order, tell, trio.Event())


if __name__ == "__main__":
    die_at(sys.argv[2])
    trio.run(partial(main, sys.argv[1], *sys.argv[3:]))
