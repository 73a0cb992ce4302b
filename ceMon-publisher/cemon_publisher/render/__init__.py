"""The renderings of a site ad. Each is a module with a pure function::

    def render(ad: SiteAd) -> str: ...              # the whole text, as vmjob-publish prints it

One that is a folder of files (arc-rte) also has::

    def files(ad: SiteAd) -> dict[str, str]: ...    # text by path in that folder, such as "APPS/VM/STAR-1.0"

``--out`` writes those then, and ``render`` is the same as one text, to look at. Files that begin with ``#!`` are
executable. Modules are imported when they are asked for: one that is broken is no reason for others to fail.

What they are given (vmjob.ads.site_ad) was checked by the model: no control characters in any text, names at most 255
characters long; any other character may be there, also quotes, backslashes, ``<``, ``dn:`` and letters of all the
world. A text that a format cannot carry is escaped; nothing raises because of it.
"""

from __future__ import annotations

from importlib import import_module

from vmjob.ads.site_ad import SiteAd

# what vmjob-publish calls them → module here, and what they are
RENDERINGS = {
    "glue1": ("glue1", "GLUE 1.3, LDIF for a BDII"),
    "glue2": ("glue2", "GLUE 2.0, LDIF for a BDII"),
    "classad": ("classad", "attributes of a compute element's schedd ad, HTCondor configuration"),
    "cemon": ("cemon", "CEMon's ads as ReSS reads them, a folder with OLD_CLASSAD and NEW_CLASSAD"),
    "arc-rte": ("arc_rte", "ARC's run-time environments, a folder of scripts"),
    "json": ("json", "the site ad itself (vmjob schema site-ad)"),
    "prometheus": ("prometheus", "metrics for the node exporter's textfile collector"),
}
FOLDERS = frozenset({"arc-rte", "cemon"})


def render(name: str, ad: SiteAd) -> str:
    """The text of one of RENDERINGS."""
    text: str = import_module(f"{__name__}.{RENDERINGS[name][0]}").render(ad)
    return text


def files(name: str, ad: SiteAd) -> dict[str, str]:
    """The files of one of FOLDERS, by path."""
    made: dict[str, str] = import_module(f"{__name__}.{RENDERINGS[name][0]}").files(ad)
    return made
