"""What a job needs, as the requirement expressions that others match by: the question that sites.matching answers, in
the words that a compute element's own rendering has (ceMon-publisher/)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vmjob.ads import site_ad
from vmjob.ads.site_ad import ANYBODY, KVM, tag_of_digest, tag_of_name
from vmjob.core.classads import literal
from vmjob.core.model import Network
from vmjob.sites.matching import Needs

JDL, CLASSAD, OLD, CE = "jdl", "classad", "old", "ce"
DIALECTS = {
    JDL: "Requirements of a JDL file, for brokers that read GLUE 1.3 from a BDII",
    CLASSAD: "requirements of an HTCondor job, for ReSS' ads in the dialect NEW_CLASSAD",
    OLD: "the same for the dialect OLD_CLASSAD",
    CE: "constraint for the schedd ads of compute elements (condor_status -schedd -constraint)",
}
_MIB = 2**20


@dataclass(frozen=True)
class _Words:
    """How a dialect says it: ``one`` attribute; that a word is in one that has ``many``."""

    one: Callable[[str], str]
    many: Callable[[str, str], str]


_GLUE = {
    JDL: _Words("other.{}".format, 'Member({0}, other.{1})'.format),
    CLASSAD: _Words("TARGET.{}".format, 'member({0}, TARGET.{1})'.format),
    OLD: _Words("TARGET.{}".format, 'stringListIMember({0}, TARGET.{1})'.format),
}


def expression(needs: Needs, dialect: str) -> str:
    """One of DIALECTS, on one line. What ``needs`` does not say is not asked for; the image is asked for by its digest,
    by its name where that is not known."""
    return " && ".join(_ce(needs) if dialect == CE else _glue(needs, _GLUE[dialect]))


def evaluate(requirement: str, ad: str) -> bool:
    """Is ``requirement`` true where ``ad`` (the text of one, in either syntax) is on the other side, so where TARGET,
    other, and names with neither mean its attributes? Undefined is not true. Needs the package classad2. Raises
    ValueError for what is no ClassAd."""
    import classad2

    try:
        there = classad2.parseOne(ad)
        return classad2.ExprTree(requirement).eval(classad2.ClassAd(), there) is True
    except (SyntaxError, ValueError, classad2.ClassAdException) as wrong:
        raise ValueError(f"no ClassAd: {str(wrong) or ad[:60]}") from wrong


def _glue(needs: Needs, say: _Words) -> list[str]:
    image = say.many(literal(_tag(needs)), "GlueHostApplicationSoftwareRunTimeEnvironment")
    if needs.way and needs.vo:  # it may be brought
        image = f'({image} || {say.many(literal(f"{site_ad.UNLISTED}={needs.vo}"), "GlueCECapability")})'
    found = [image, f'{say.one("GlueCEStateStatus")} == "Production"',
             f'{say.one("GlueHostArchitecturePlatformType")} == {literal(needs.arch)}']
    if needs.vo:
        rule = "GlueCEAccessControlBaseRule"
        found.append(f'({say.many(literal(f"VO:{needs.vo}"), rule)} || {say.many(literal("ALL"), rule)})')
    most = (("GlueHostMainMemoryRAMSize", _up(needs.memory, _MIB)), ("GlueHostArchitectureSMPSize", needs.cpus),
            ("GlueCEPolicyMaxWallClockTime", _up(max(needs.walltime, needs.slot_walltime), 60)))
    found += [f"{say.one(name)} >= {least}" for name, least in most if least]
    if needs.network == Network.NAT.value:
        found.append(f'{say.one("GlueHostNetworkAdapterOutboundIP")} =!= false')
    if needs.kvm:
        found.append(say.many(literal(f"{site_ad.ACCEL}={KVM}"), "GlueCECapability"))
    return found


def _ce(needs: Needs) -> list[str]:
    def among(word: str, name: str) -> str:
        return f"stringListMember({literal(word)}, {name})"

    def whose(name: str) -> str:
        return f"({among(needs.vo, name)} || {among(ANYBODY, name)})"

    image = among(_tag(needs), site_ad.IMAGES)
    if needs.way and needs.vo:
        image = f"({image} || {whose(site_ad.UNLISTED)})"
    found = [f"{site_ad.HAS} =?= true", image, *([whose(site_ad.VOS)] if needs.vo else [])]
    found += [f"{name} >= {least}" for name, least in (
        (site_ad.MAX_MEMORY, _up(needs.memory, _MIB)), (site_ad.MAX_CPUS, needs.cpus)) if least]
    if needs.walltime:
        found.append(f"({site_ad.MAX_WALLTIME} ?: {needs.walltime}) >= {needs.walltime}")
    if needs.network != Network.NONE.value:
        found.append(f"({among(needs.network, site_ad.NETWORKS)} || {among(Network.NAT.value, site_ad.NETWORKS)})"
                     if needs.network != Network.NAT.value else among(needs.network, site_ad.NETWORKS))
    return found + ([f'{site_ad.ACCEL} == "{KVM}"'] if needs.kvm else [])


def _tag(needs: Needs) -> str:
    return tag_of_digest(needs.digest) if needs.digest else tag_of_name(needs.image)


def _up(amount: int, unit: int) -> int:
    return -(-amount // unit)
