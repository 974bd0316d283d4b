"""What may honestly be said about a run's privacy, in words for a person."""

from __future__ import annotations

_COVERED = (
    "ε at δ covers each training example of a device (adding or removing one), all rounds "
    "together, against everyone who sees the device's updates, the server included. It does not "
    "hide that a device took part, nor what many of its examples have in common."
)
_PUBLIC_COUNTS = (
    "The number of examples that a device plans and weights with is public: declared, or rounded "
    "down to a power of two."
)
_SHARED_COUNTS = "Devices sent their true number of examples, which ε does not cover."
_NOT_COVERED = (
    "Proxy, gate and test data in the cloud, local evaluation, and predictions are not covered."
)
_SEEDED = (
    "NOT PRIVATE: noise and sampling were drawn from a seed, so whoever knows it can take the "
    "noise away; ε is what the same run would have spent with secret draws."
)
_NO_DP = (
    "NOT PRIVATE: devices trained without differential privacy, so single examples can show in "
    "their updates."
)


def epsilon_covers(*, dp: bool = True, private: bool = True, share_counts: bool = False) -> str:
    """Return what the ε of a run covers and what it does not.

    Args:
        dp: whether devices trained with DP-SGD at all.
        private: whether its draws came from the operating system (`Draws.private`).
        share_counts: whether devices sent their true number of examples.
    """
    if not dp:
        return _NO_DP
    counts = _SHARED_COUNTS if share_counts else _PUBLIC_COUNTS
    sentences = [_COVERED, counts, _NOT_COVERED]
    return " ".join(sentences if private else [_SEEDED, *sentences])
