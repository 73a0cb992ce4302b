"""``make chaos``: runs of real guests under kills, signals, want and overload, and each tells one outcome that was."""
