"""The tasks that ship with fedge."""
