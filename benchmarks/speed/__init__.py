"""How fast the pipeline is, and how close to this machine's limits."""
