"""``python -m edge_client``: the same as ``fedge-edge``."""

from edge_client.cli import main

if __name__ == "__main__":
    main()
