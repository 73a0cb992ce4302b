"""Metrics for the node exporter's textfile collector (Prometheus' text format 0.0.4); names as promtool wants them.

==========================================  =========================  ================================================
metric                                      labels                     of the site ad
==========================================  =========================  ================================================
vmjob_site_info                             site, version, country     1
vmjob_site_updated_timestamp_seconds        site                       created: alert on its age, as a file stays
vmjob_site_expires_timestamp_seconds        site                       expires
vmjob_site_nodes                            site, kind, accel, state   nodes; state is online or offline
vmjob_site_guests_running                   site, kind, accel          nodes.running
vmjob_site_guests_free                      site, kind, accel          nodes.free
vmjob_site_cpus_occupied                    site, kind, accel          nodes.occupied
vmjob_site_guest_memory_limit_bytes         site, kind, accel          nodes.max_memory
vmjob_site_guest_cpus_limit                 site, kind, accel          nodes.max_cpus
vmjob_site_images                           site, vo                   how many a VO's jobs may run; vo="*": all VOs'
vmjob_site_image_expires_timestamp_seconds  site, image, digest, list  images.expires, where they do
vmjob_site_image_size_bytes                 site, image, digest, list  images.size
==========================================  =========================  ================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vmjob.ads.site_ad import Nodes, SiteAd, SiteImage, covers

Sample = tuple[Mapping[str, str], float]


def render(ad: SiteAd) -> str:
    """All gauges: each says what is, nothing is counted up."""
    site = {"site": ad.name}
    lines: list[str] = []

    def gauge(name: str, what: str, samples: Iterable[Sample]) -> None:
        rows = [_sample(f"vmjob_site_{name}", {**site, **labels}, value) for labels, value in samples]
        if rows:
            lines.extend((f"# HELP vmjob_site_{name} {what}", f"# TYPE vmjob_site_{name} gauge", *rows))

    gauge("info", "What is published of this site.", [({"version": ad.version, "country": ad.country}, 1)])
    gauge("updated_timestamp_seconds", "When this was found out.", [({}, ad.created)])
    gauge("expires_timestamp_seconds", "From when on this says nothing any more.", [({}, ad.expires)])
    gauge("nodes", "Worker nodes that have vmjob; online: they take virtual machines now.",
          [({**_kind(one), "state": state}, count) for one in ad.nodes
           for state, count in (("online", one.online), ("offline", one.total - one.online))])
    for name, what, values in (
            ("guests_running", "Virtual machines that run now.", [one.running for one in ad.nodes]),
            ("guests_free", "How many more of the default size could start.", [one.free for one in ad.nodes]),
            ("cpus_occupied", "CPUs that are claimed, by virtual machines and by other jobs.",
             [one.occupied for one in ad.nodes]),
            ("guest_memory_limit_bytes", "The most that one virtual machine gets.",
             [one.max_memory for one in ad.nodes]),
            ("guest_cpus_limit", "The most that one virtual machine gets.", [one.max_cpus for one in ad.nodes])):
        gauge(name, what, [(_kind(one), value) for one, value in zip(ad.nodes, values)])
    gauge("images", "Images that jobs of a VO may run.",
          [({"vo": vo}, sum(covers(one.vos, vo) for one in ad.images)) for vo in ad.vos])
    gauge("image_expires_timestamp_seconds", "When the endorsement of an image ends.",
          [(_image(one), one.expires) for one in ad.images if one.expires])
    gauge("image_size_bytes", "Bytes of an image that travel.",
          [(_image(one), one.size) for one in ad.images if one.size])
    return "\n".join(lines) + "\n"


def _kind(one: Nodes) -> dict[str, str]:
    return {"kind": one.name, "accel": one.accel}


def _image(one: SiteImage) -> dict[str, str]:
    return {"image": one.name, "digest": one.digest, "list": one.list}


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    return f"{name}{{{','.join(f'{key}={_quoted(text)}' for key, text in labels.items())}}} {value}"


def _quoted(text: str) -> str:
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'
