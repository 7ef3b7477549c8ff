"""Another user of the machine, who tries to run code through every port that a command listens at.

A program: its arguments are ports; its output is JSON, by port all that could be got from it.
"""

import asyncio
import contextlib
import json
import os
import sys
import urllib.request
from typing import Any

import distributed
from distributed.comm import connect
from distributed.protocol.pickle import dumps

_NOBODY = 65534
_SECONDS = 3
_PAGES = ("", "status", "sitemap.json", "info/main/workers.html", "metrics", "health", "json/counts.json")


async def run_code(port: int, protocol: str, operation: str) -> str:
    """Say as whom code ran in the process that listens; operations are those of workers and schedulers."""
    security = distributed.Security.temporary() if protocol == "tls" else distributed.Security()
    args = security.get_connection_args("client") | {"require_encryption": False}
    comm = await connect(f"{protocol}://127.0.0.1:{port}", _SECONDS, **args)
    message: dict[str, Any] = {"op": operation, "function": dumps(os.getuid), "args": dumps(())}
    await comm.write(message | {"kwargs": dumps({}), "wait": True, "reply": True})
    answer = await comm.read()
    return f"{protocol} {operation} as {answer['result']}" if answer["status"] == "OK" else ""


def read_page(port: int, page: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=_SECONDS) as answer:
        return f"{answer.status} {answer.url}"


async def tried(port: int) -> list[str]:
    attempts = [
        *(run_code(port, protocol, do) for protocol in ("tcp", "tls") for do in ("run", "run_function")),
        *(asyncio.to_thread(read_page, port, page) for page in _PAGES),
    ]
    found = []
    for attempt in attempts:
        # However it ends, it is no way in.
        with contextlib.suppress(Exception):
            found.append(await asyncio.wait_for(attempt, _SECONDS))
    return [one for one in found if one]


async def main(ports: list[int]) -> dict[int, list[str]]:
    return dict(zip(ports, await asyncio.gather(*map(tried, ports)), strict=True))


if __name__ == "__main__":
    os.setgroups([])
    os.setgid(_NOBODY)
    os.setuid(_NOBODY)
    print(json.dumps(asyncio.run(main([int(port) for port in sys.argv[1:]]))))
