"""What every fedge process shares."""

__version__ = "0.1.0"
