"""A QEMU whose guest is hostile, and guests for it."""
