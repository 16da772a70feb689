"""Models by name: a small catalogue that needs no hub, hub ids, and local folders."""
