"""The cloud trainer: refines the global model between rounds."""
