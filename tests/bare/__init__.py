"""Bare Debian systems to install and run things in: throw-away roots, entered as a machine of their own."""

from tests.bare.root import Bare, bare, kept, why_not

__all__ = ["Bare", "bare", "kept", "why_not"]
