"""How fast, side by side in one run: ``python -m bench`` (or ``make bench``). Development only, never shipped."""
