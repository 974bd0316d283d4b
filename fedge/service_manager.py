"""What systemd is told about this process (``sd_notify(3)``); nobody is told without systemd."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping

_SEND_TIMEOUT_S = 1.0


class ServiceManager:
    """Sends notifications; where there is nobody to send to, does nothing.

    Args:
        address: path of the manager's datagram socket, ``@`` first for an abstract one; empty
            for none.
        watchdog_s: how long the manager waits for a sign of life; None: it does not watch.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self._address = address
        self.watchdog_s = watchdog_s if address else None

    @staticmethod
    def from_environment(environ: MutableMapping[str, str] = os.environ) -> ServiceManager:
        """Return what started this process, and hide it from this process's children."""
        address = environ.pop("NOTIFY_SOCKET", "")
        watchdog = environ.pop("WATCHDOG_USEC", "")
        pid = environ.pop("WATCHDOG_PID", "")
        is_ours = watchdog.isdecimal() and int(watchdog) > 0 and pid in ("", str(os.getpid()))
        return ServiceManager(address, int(watchdog) / 1e6 if is_ours else None)

    @property
    def is_there(self) -> bool:
        """Whether somebody is told."""
        return bool(self._address)

    def ready(self) -> None:
        """Say that this process does its work now."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Say that this process is ending."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Say that this process works; left out for too long it is killed and started again."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Say in one line how this process is; ``systemctl status`` shows it."""
        self._send("STATUS=" + " ".join(text.split()))

    def _send(self, message: str) -> None:
        """Send one datagram; a manager that does not listen must not stop the work."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
        ):
            sender.settimeout(_SEND_TIMEOUT_S)
            sender.sendto(message.encode(), address)
