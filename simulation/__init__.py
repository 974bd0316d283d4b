"""Many clients on one machine, through the server's own code."""
