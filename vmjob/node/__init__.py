"""Letting virtual machines into a node: what is changed for it, and how that is undone."""
