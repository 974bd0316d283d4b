"""What can go wrong between a device and the SuperLink, in words that say what to do."""

from __future__ import annotations

import ssl
import time
from email.utils import parsedate_to_datetime

import httpx

from fedge.errors import TransportError


class RunNotRunning(TransportError):
    """The run that a message belongs to has ended; its reply is of no use to anyone."""


class Refused(TransportError):
    """An answer of the SuperLink that is not a success, with Flower's code or the HTTP status."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


def explain_unauthorized(response: httpx.Response) -> str:
    """Say why a signed request was refused: Flower's answer does not."""
    skew_s = _clock_skew_s(response)
    if skew_s is not None and abs(skew_s) > 4:
        way = "ahead of" if skew_s > 0 else "behind"
        return (
            f"refused (HTTP 401): this device's clock is {abs(skew_s):.0f} s {way} the server's, "
            "and Flower allows 5 s ahead and 305 s behind: synchronise both with a time server"
        )
    return (
        "refused (HTTP 401): the SuperLink does not know this node; it was restarted without its "
        "database, or the node was removed there"
    )


def _clock_skew_s(response: httpx.Response) -> float | None:
    """Return this clock less the server's, in seconds, as far as its Date header tells."""
    try:
        return time.time() - parsedate_to_datetime(response.headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return None


def explain_unreachable(error: Exception, address: str, doing: str) -> str:
    """Say what to look at when there was no answer at all."""
    text = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        hint = "its certificate is not signed by node.tls.ca, or is for another name"
    elif "SSL" in text or isinstance(error, ssl.SSLError):
        hint = "one side speaks TLS and the other does not: set node.tls.ca on both or neither"
    else:
        hint = "check that it is running and that node.superlink is its address"
    return f"SuperLink {address} cannot be reached, {doing} ({text}): {hint}"


def explain_not_activated(code: int) -> str:
    """Say why a SuperLink refuses to take a node online."""
    return (
        f"refused (code {code}). Either this node was killed less than a minute ago and is still "
        "thought to be online, which passes by itself, or the SuperLink has node authentication "
        "on and does not know this key: register state_dir/node.key.pub there with `flwr "
        "supernode register`"
    )
