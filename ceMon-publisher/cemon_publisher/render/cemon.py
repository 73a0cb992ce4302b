"""CEMon's ads, as OSG's ReSS collected them: one for each compute element × VO × kind of nodes.

The names are those of GLUE 1.3 (render/glue1.py), of CE, VOView, Cluster and SubCluster together, and of the site. What
may repeat is text with commas in OLD_CLASSAD, for stringListMember(), and a list in NEW_CLASSAD, for Member(). Each
ad tells of its own VO and nodes alone: the images that this VO may run on these nodes, and memory and CPUs that a guest
gets of one. Beside them stands what ReSS added, by which Condor-G matches and others tell the ads apart: Name, MyType,
TargetType, Requirements, isClassadValid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Union

from cemon_publisher import fits
from cemon_publisher.ldif import clean
from cemon_publisher.render import glue1
from vmjob.ads.site_ad import SiteAd, covers
from vmjob.core.classads import Value, listing, literal, words
from vmjob.core.machinetext import is_number

Attributes = Mapping[str, Union[Value, tuple[str, ...]]]
# of what GLUE 1.3 lets repeat, what we have
_MANY = frozenset({"GlueCEAccessControlBaseRule", "GlueCECapability", "GlueForeignKey", "GlueChunkKey", glue1.TAGS})
_NUMBERS = ("CPUs", "Jobs", "JobSlots", "Time", "SMPSize", "RAMSize", "Port", "VersionMajor", "VersionMinor")
_TRUTHS = {"TRUE": True, "FALSE": False}


def files(ad: SiteAd) -> dict[str, str]:
    """Both dialects."""
    found = list(ads(ad))
    return {"OLD_CLASSAD": "\n".join(map(_old, found)), "NEW_CLASSAD": "\n".join(map(_new, found))}


def render(ad: SiteAd) -> str:
    """Both, to look at."""
    return "".join(f"// {name}\n{text}\n" for name, text in files(ad).items())


def old(ad: SiteAd) -> str:
    """OLD_CLASSAD."""
    return "\n".join(map(_old, ads(ad)))


def new(ad: SiteAd) -> str:
    """NEW_CLASSAD."""
    return "\n".join(map(_new, ads(ad)))


def ads(ad: SiteAd) -> Iterator[Attributes]:
    """Their attributes; a tuple is what may repeat."""
    for element in ad.elements:
        for vo in fits.vos(ad):
            images = tuple(one for one in ad.images if covers(one.vos, vo))
            for nodes in ad.nodes:
                yield _joined(replace(ad, elements=(element,), vos=(vo,), nodes=(nodes,), images=images,
                                      unlisted=(vo,) if covers(ad.unlisted, vo) else ()))


def _joined(ad: SiteAd) -> Attributes:
    """Of a site with one element, VO and kind of nodes: all entries in one."""
    made: dict[str, Union[Value, tuple[str, ...]]] = {
        "MyType": "Machine", "TargetType": "Job", "isClassadValid": 1, "GlueSiteName": clean(ad.name),
        "GlueSiteUniqueID": clean(ad.name)}
    for key, value in (("Description", ad.description), ("Web", ad.web), ("UserSupportContact", ad.contact)):
        if value:
            made[f"GlueSite{key}"] = clean(value)
    many: dict[str, list[str]] = {}
    for one in glue1.entries(ad):
        for name, values in one.attributes:
            if name in _MANY:
                many[name] = [*many.get(name, []), *values]
            elif name != "objectClass":
                made[name] = _typed(name, values[0])
    made.update({name: tuple(dict.fromkeys(values)) for name, values in many.items()})
    made["GlueCEPolicyMaxObtainableWallClockTime"] = made["GlueCEPolicyMaxWallClockTime"]
    made["Name"] = "{GlueCEUniqueID}.{GlueVOViewLocalID}.{GlueSubClusterUniqueID}".format(**made)
    return dict(sorted(made.items()))


def _typed(name: str, value: str) -> Value:
    if value in _TRUTHS:
        return _TRUTHS[value]
    return int(value) if name.endswith(_NUMBERS) and is_number(value) else value


def _old(attributes: Attributes) -> str:
    return _written({name: words(value) if isinstance(value, tuple) else literal(value)
                     for name, value in attributes.items()})


def _new(attributes: Attributes) -> str:
    return _written({name: listing(value) if isinstance(value, tuple) else literal(value)
                     for name, value in attributes.items()})


def _written(expressions: Mapping[str, str]) -> str:
    """As CEMon writes them, in brackets both; an empty line between two."""
    lines = [f"\t{name} = {value};\n" for name, value in {**expressions, "Requirements":
                                                          "TARGET.JobUniverse == 9"}.items()]
    return f"[\n{''.join(lines)}]\n"
