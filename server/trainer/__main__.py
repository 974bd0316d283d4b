"""``python -m server.trainer`` is ``fedge-trainer``."""

from server.trainer.cli import main

if __name__ == "__main__":
    main()
