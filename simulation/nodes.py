"""Which Flower node each client of a simulation is."""

from __future__ import annotations

SERVER_NODE_ID = 1
FIRST_NODE_ID = 1000


def node_of(client: int) -> int:
    """Return the node id of a client, counted from 0."""
    return FIRST_NODE_ID + client


def client_of(node: int) -> int:
    """Return the client behind a node id."""
    return node - FIRST_NODE_ID
