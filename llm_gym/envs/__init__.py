"""The token MDP: one transition function over arrays, with a vector and a single face."""
