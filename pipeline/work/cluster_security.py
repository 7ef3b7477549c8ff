"""Keeps other users of a machine or network out of the Dask clusters that harcache starts itself.

Whoever can connect to a Dask process can have it run any code, also on 127.0.0.1, where every user of the
machine can connect. So all processes share a key that lives as long as the command and speak TLS with it,
the dashboard has an address that cannot be guessed, and scratch files lie where nobody else can put any.
"""

import hmac
import os
import secrets
import stat
import tempfile
from pathlib import Path
from typing import Any

import dask
from distributed import Scheduler, Security, Worker
from tornado.httputil import HTTPServerRequest
from tornado.routing import Matcher, Rule, RuleRouter

from harcache.pipeline.base.layers import require

__all__ = ["PROTOCOL", "DarkWorker", "GuardedScheduler", "new_security", "new_token", "scratch_folder"]

PROTOCOL = "tls://"


def new_security() -> Security:
    """Return the certificates that Dask's configuration names, else a fresh key that stays in memory."""
    if dask.config.get("distributed.comm.tls.ca-file", None):
        return Security(require_encryption=True)
    require("cryptography")
    return Security.temporary()


def new_token() -> str:
    """Return 128 random bits, as a part of a URL."""
    return secrets.token_urlsafe(16)


class GuardedScheduler(Scheduler):
    """A scheduler whose dashboard answers below ``/token`` alone; without a token it has none.

    Dask's own prefix is no secret: a redirection from ``/`` tells it, and so does its ``sitemap.json``.
    """

    def __init__(self, *args: Any, token: str | None, **options: Any) -> None:
        self._token = token
        super().__init__(*args, dashboard=token is not None, http_prefix=f"/{token or ''}", **options)

    def start_http_server(self, *args: Any, **options: Any) -> None:
        """Start Dask's HTTP server, with a guard before it, or none."""
        if self._token:
            super().start_http_server(*args, **options)
            self.http_server.request_callback = RuleRouter([Rule(_Below(self._token), self.http_application)])


class DarkWorker(Worker):
    """A worker without the HTTP server that Dask gives each: nobody looks at it."""

    def start_http_server(self, *args: Any, **options: Any) -> None:
        """Start nothing."""


class _Below(Matcher):
    """Requests whose path begins with a secret, compared in the same time whatever they begin with."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        first = request.path.removeprefix("/").partition("/")[0]
        return {} if hmac.compare_digest(first.encode(errors="replace"), self._token) else None


def scratch_folder() -> str:
    """Return a folder for Dask's scratch files that only this user can change.

    Dask would take ``/tmp/dask-scratch-space`` as anybody laid it there, and puts it first on the path that
    modules are imported from. The folder that the user's Dask configuration names is taken as it is.
    """
    if configured := dask.config.get("temporary-directory", None):
        return str(configured)
    own = Path(tempfile.gettempdir()) / f"harcache-{os.getuid()}"
    try:
        own.mkdir(mode=0o700, exist_ok=True)
        found = own.lstat()
    except OSError:
        return tempfile.mkdtemp(prefix="harcache-")
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077 and found.st_uid == os.getuid()
    return str(own) if private else tempfile.mkdtemp(prefix="harcache-")
