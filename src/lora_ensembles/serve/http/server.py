"""The app on a port, until a signal ends it: no new connections, and every request that was accepted is
answered.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from ...errors import ConfigError
from .reload import Reload

KEEP_ALIVE = 75  # seconds that an idle connection stays open: longer than clients keep theirs, so that none
# asks on a connection in the moment in which it is closed


class _Server(uvicorn.Server):
    """uvicorn's server, which ends a program that was told to end as one that is done; a second signal ends
    it at once, and SIGHUP reloads.
    """

    def __init__(self, config: uvicorn.Config, reload: Reload):
        super().__init__(config)
        self._reload = reload

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        handlers: dict[int, Callable[..., object]] = dict.fromkeys(
            (signal.SIGTERM, signal.SIGINT), self.handle_exit
        )
        if hasattr(signal, "SIGHUP"):
            handlers[signal.SIGHUP] = lambda *_: self._reload.start()
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: object) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A socket that connections are made to; port 0 takes a free one.

    Raises:
        ConfigError: the address is taken, or not this machine's.
    """
    made: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        if made is not None:
            made.close()
        raise ConfigError(
            f"{host}:{port}: no connections can be taken there: {error.strerror or error}; "
            "choose another host or port"
        ) from None
    return made


def run(app: FastAPI, listener: socket.socket, reload: Reload) -> None:
    """Serve until SIGTERM or SIGINT; then answer what was accepted, and return."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE,
    )
    _Server(config, reload).run(sockets=[listener])
