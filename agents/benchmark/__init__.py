"""Which agent is better: a matrix of agents, environments and seeds, run cell by cell, and what came of it."""
