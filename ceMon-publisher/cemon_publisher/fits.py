"""What of a site fits together: images and nodes, times of an element."""

from __future__ import annotations

from vmjob.ads.site_ad import ANYBODY, Element, Nodes, SiteAd, SiteImage


def runs(image: SiteImage, nodes: Nodes) -> bool:
    """Can a guest of the image run on one of these nodes now? What is not known is no obstacle."""
    return bool(nodes.online and image.arch == nodes.arch
                and (not nodes.max_memory or image.memory <= nodes.max_memory)
                and (not nodes.max_cpus or image.cpus <= nodes.max_cpus))


def running(ad: SiteAd) -> list[SiteImage]:
    """The images that some node there can run now."""
    return [image for image in ad.images if any(runs(image, one) for one in ad.nodes)]


def vos(ad: SiteAd) -> tuple[str, ...]:
    """Who is spoken of: where all may come, those too of whom anything is said by name."""
    named = [vo for image in ad.images for vo in image.vos] + list(ad.unlisted) if ANYBODY in ad.vos else []
    return tuple(dict.fromkeys((*ad.vos, *named)))


def walltime(ad: SiteAd, element: Element) -> int:
    """The longest that a guest runs there, seconds; 0: no limit."""
    return min((one for one in (ad.max_walltime, element.max_walltime) if one), default=0)
