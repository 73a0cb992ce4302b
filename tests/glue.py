"""Site ads that try a BDII's patience, for the tests of texts and of the real thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cemon_publisher.example import EXAMPLE

from vmjob.ads.site_ad import SiteAd

HOSTILE = (
    "dn: o=grid", "x\ndn: GLUE2GroupID=grid,o=glue\nchangetype: delete\n", "Smith, John + Co = \"a\"; <b> #\\c",
    " leading and trailing ", "#first", ":colon", "<file:///etc/passwd", "nul\0here", "Zażółć gęślą jaźń 中文 🐧",
    "\u202egnp.exe", "%0adn:%3A", "(cn=*)", "london", "dn", "a" * 255, "\ttab\r\nreturn", "half \ud800 a letter", "-",
)


def hostile_site(text: str) -> SiteAd:
    """The example with ``text`` wherever strangers, or an admin, can write some."""
    return replace(
        EXAMPLE, description=text, contact=text, country=text, web=f"https://x.cdn:80/{text}", version=text,
        elements=tuple(replace(one, host=f"{text[:40]}-cdn", queue=text, batch=text, batch_version=text,
                               url=f"https://x.cdn:{number + 80}/") for number, one in enumerate(EXAMPLE.elements)),
        nodes=tuple(replace(one, name=f"{one.name} {text}", reason=text, os=text, os_version=text)
                    for one in EXAMPLE.nodes),
        images=tuple(replace(one, name=f"{text} {number}", description=text, identifier=text, version=text,
                             endorser=text, list=text, os=text, os_version=text, uri=f"https://h.cdn:1/{text}")
                     for number, one in enumerate(EXAMPLE.images)))


def hostile_sites(texts: Sequence[str] = HOSTILE) -> list[SiteAd]:
    """As many sites as there are texts, each with its own."""
    return [replace(hostile_site(text), name=f"SITE-{number}") for number, text in enumerate(texts)]


def many(count: int) -> SiteAd:
    """The example with so many images."""
    own = EXAMPLE.images
    return replace(EXAMPLE, images=tuple(
        replace(own[number % len(own)], name=f"image-{number}", digest=f"sha256:{number:064x}",
                identifier=f"{own[0].identifier}-{number}") for number in range(count)))
