"""Names of users and groups; the number where there is no name."""

from __future__ import annotations


def user_name(uid: int, unknown: str = "") -> str:
    """``unknown``: what stands before the number of one without a name."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"{unknown}{uid}"


def group_name(gid: int) -> str:
    """Its name, or its number."""
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
