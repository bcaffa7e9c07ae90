"""Drawing for many at once: requests of different tasks share every pass of the network."""
