"""Every error fedge raises, as one tree.

    FedgeError
    ├── ConfigError        a key, value or file that a person wrote
    ├── TaskError          a model or data set that cannot be learnt as it is
    ├── UpdateRejected     one client's update; the round goes on without it
    ├── AggregationError   the round cannot be aggregated
    ├── PrivacyError       what would have spent privacy is stopped
    │   └── BudgetExhausted
    ├── TransportError     another process or machine could not be reached or understood
    │   ├── DeadlineExceeded
    │   └── ProtocolMismatch
    ├── TrainingPaused     a device's training waits for cooler, idle or other hours
    ├── OutOfMemory        training needs more memory than its process may have
    ├── RefineError        a refinement that failed; the aggregate stands
    ├── StoreError         a device's database that cannot be opened, read or written
    ├── InvalidSample      a sample that must not be kept
    ├── PayloadRejected    one MQTT message that is dropped; the next ones are read
    ├── UnknownSample      a sample that is not (or no longer) stored
    ├── CheckpointError    a checkpoint that cannot be written or read
    ├── ModelError         a model file, plan or version that must not be used
    └── InvalidInput       an input that the served model cannot take

Errors of libraries (gRPC, Flower, SQLite, TOML) are mapped to these once, in the module that
owns the boundary.
"""

from __future__ import annotations


class FedgeError(Exception):
    """Base of every error that fedge raises on purpose; its text tells a person what to do."""


class ConfigError(FedgeError):
    """A configuration that cannot be used."""

    def __init__(self, message: str, *, key: str | None = None) -> None:
        super().__init__(f"{key}: {message}" if key else message)
        self.key = key


class TaskError(FedgeError):
    """A task whose model or data cannot be used as they are."""


class UpdateRejected(FedgeError):
    """One client's update that was refused; counted by reason, never fatal to the round.

    Attributes:
        reason: short key to count by, such as ``shape`` or ``not-finite``.
        client, round, tensor: where it was found; None where not known (yet).
        expected, got: what should have been there and what was.
    """

    def __init__(
        self,
        reason: str,
        *,
        expected: object = None,
        got: object = None,
        tensor: str | None = None,
        client: int | None = None,
        round: int | None = None,
    ) -> None:
        self.reason = reason
        self.expected = expected
        self.got = got
        self.tensor = tensor
        self.client = client
        self.round = round
        super().__init__(self._text())

    def _text(self) -> str:
        where = [
            f"{name} {value}"
            for name, value in (
                ("client", self.client),
                ("round", self.round),
                ("tensor", self.tensor),
            )
            if value is not None
        ]
        text = f"update rejected ({self.reason})"
        if where:
            text += " from " + ", ".join(where)
        if self.expected is not None or self.got is not None:
            text += f": expected {self.expected}, got {self.got}"
        return text

    def located(self, *, client: int, round: int) -> UpdateRejected:
        """Return the same refusal with the client and round it belongs to."""
        return UpdateRejected(
            self.reason,
            expected=self.expected,
            got=self.got,
            tensor=self.tensor,
            client=client,
            round=round,
        )


class AggregationError(FedgeError):
    """A round whose updates cannot be turned into an aggregate."""


class PrivacyError(FedgeError):
    """A privacy rule that would have been broken."""


class TrainingPaused(FedgeError):
    """Training that is to wait until the device has cooled, is idle, or its hours have come."""


class OutOfMemory(FedgeError):
    """Training that needs more memory than its process may have."""


class BudgetExhausted(PrivacyError):
    """No privacy budget is left for what was asked.

    Attributes:
        spent: ε already spent, all rounds together.
        needed: ε that the refused work would have brought the total to.
        budget: ε that the device allows in all.
    """

    def __init__(self, *, spent: float, needed: float, budget: float) -> None:
        super().__init__(
            f"privacy budget: this work would bring ε to {needed:.3f} and the device allows "
            f"{budget:.3f} in all ({spent:.3f} is spent); raise privacy.epsilon on the device "
            "or leave it out of further rounds"
        )
        self.spent = spent
        self.needed = needed
        self.budget = budget


class TransportError(FedgeError):
    """Another process or machine that could not be reached or understood."""


class DeadlineExceeded(TransportError):
    """An answer that did not come in time."""


class ProtocolMismatch(TransportError):
    """A message of another protocol version."""


class RefineError(FedgeError):
    """A refinement that failed; the aggregate stands."""


class StoreError(FedgeError):
    """A device's database that cannot be opened, read or written."""


class InvalidSample(FedgeError):
    """A sample that must not be kept."""


class PayloadRejected(FedgeError):
    """One MQTT message that is not what was agreed on; counted by reason and dropped.

    Attributes:
        reason: short key to count by, such as ``shape``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"payload {message}")
        self.reason = reason


class UnknownSample(FedgeError):
    """A sample that is not, or no longer, stored."""


class CheckpointError(FedgeError):
    """A checkpoint that cannot be written or read back whole."""


class ModelError(FedgeError):
    """A model file, plan or published version that must not be used."""


class InvalidInput(FedgeError):
    """An input that the served model cannot take; says what it takes."""
