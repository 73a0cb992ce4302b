"""``make dist``: what is released. One list of contents (contents.py) makes two trees, and these are packed as .deb and
as .rpm; wheel and sdist come from the build backend. The same commit gives the same bytes."""
