"""ARC's run-time environments: a script for each image, by which A-REX runs a job in it.

``(runtimeenvironment="ENV/VMJOB/star_sl5-3")`` in a job's description makes A-REX source the script with 0 when it
hands the job to the batch system, and call it on the worker node with 1 before and 2 after the job (submit_common.sh of
ARC 6 and 7). arc-rte.sh is what all have in common; before it stand the image's name, digest, VOs and needs. The image
is pinned by its digest, and the policy on the node has the last word.
"""

from __future__ import annotations

import pkgutil
import re
import shlex

from vmjob.ads.site_ad import ANYBODY, SiteAd, SiteImage
from vmjob.core.classads import line

FOLDER = "ENV/VMJOB"
_MIB = 2**20
_PARAMETERS = """\
# param:VMJOB_COMMAND:string:/usr/bin/vmjob:vmjob on the worker nodes
# param:VMJOB_HOME:string:/var/lib/vmjob/store:image store that the worker nodes see
# param:VMJOB_NODE_CACHE:string:/var/lib/vmjob/cache:folder of mode 1777 on the worker nodes, which outlives a job
"""


def files(ad: SiteAd) -> dict[str, str]:
    """The scripts by path below ARC's runtimedir."""
    data = pkgutil.get_data("cemon_publisher.render", "arc-rte.sh") or b""  # from a zip file as well
    body = data.decode().partition("\n")[2]
    made: dict[str, str] = {}
    for image in ad.images:
        path = f"{FOLDER}/{name_of(image)}"
        if path in made:  # two that differ in what a name of ARC's cannot have
            path = f"{path}-{image.digest.rpartition(':')[2]}"
        made[path] = _script(ad, image, body)
    return made


def render(ad: SiteAd) -> str:
    """All of them, to look at."""
    return "".join(f"# ---------------- {path}\n{text}\n" for path, text in files(ad).items())


def name_of(image: SiteImage) -> str:
    """What it is called below ENV/VMJOB; ARC takes what follows the last dash for a version."""
    return _word(image.name) + (f"-{_word(image.version)}" if image.version else "")


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]", "_", text).lstrip(".-") or "_"


def _script(ad: SiteAd, image: SiteImage, body: str) -> str:
    about = " ".join(filter(None, (image.name, image.version)))
    by = f"endorsed by {image.endorser} in the list {image.list}" if image.endorser else "trusted by the site"
    values: dict[str, str] = {
        "name": line(image.name), "digest": line(image.digest), "expires": str(image.expires),
        "vos": "" if ANYBODY in image.vos else "\n".join(map(line, image.vos)), "needs": str(-(-image.memory // _MIB))}
    return "".join([
        f"# description: runs the job in a virtual machine with the image {line(about)}\n", _PARAMETERS,
        f"# {line(image.description)}\n" if image.description else "",
        f"# {line(by)}; made by vmjob-publish arc-rte for {line(ad.name)}\n",
        "# shellcheck disable=SC2154,SC2016\n",
        *(f"vmjob_{key}={shlex.quote(value)}\n" for key, value in values.items()), "\n", body])
