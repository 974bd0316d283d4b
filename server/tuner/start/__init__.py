"""What a run keeps from its start, chosen before it by ``fedge-server tune-start``."""
