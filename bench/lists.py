"""A signed list of 100,000 images: from the message to one of its images, signature, chain and all."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from bench.common import ROOT, Bench, Goal, Row, alternate, execute, tool

_IMAGES = 100_000
_VERIFY = """\
import sys, time
from pathlib import Path
from vmjob.image import trust
start = time.perf_counter()
found = trust.verify_list(Path(sys.argv[1]), Path(sys.argv[2]), time.time())
image = found.listing.by_digest(sys.argv[3]) if sys.argv[3] else found.listing.by_sha512(sys.argv[4])
assert image and image.title == "last"
print(time.perf_counter() - start)
"""


def measure(bench: Bench) -> list[Row]:
    rows = []
    with bench.folder() as work:
        authority(work)
        for name, own in (("as the EGI AppDB lists them", False), ("with their manifests", True)):
            digest, sha512 = signed_list(work, own)

            def ours(digest: str = digest, sha512: str = sha512) -> float:
                done = execute([sys.executable, "-c", _VERIFY, work / "list", work / "ca", digest, sha512],
                               env=bench.environment(), cwd=ROOT)
                return float(done.stdout)

            def openssl() -> float:
                start = time.perf_counter()
                execute([tool("openssl"), "cms", "-verify", "-in", work / "list", "-CApath", work / "ca", "-purpose",
                         "any", "-out", work / "text"])
                json.loads((work / "text").read_bytes())
                return time.perf_counter() - start

            seconds, peer = alternate(bench.rounds, ours, openssl)
            size = (work / "list").stat().st_size / 1e6
            rows.append(Row(f"verify and read a list of {_IMAGES:,} images {name} ({size:.0f} MB)", seconds, peer, "s",
                            Goal("ours", "<=", 2.0), "openssl cms -verify, json.loads"))
    return rows


def authority(work: Path) -> None:
    """A hashed folder ``ca`` with one authority; of Ada, whom it certified, ``cert`` and ``key``."""
    (work / "ca").mkdir()
    request = ["-newkey", "rsa:2048", "-nodes", "-keyout"]
    execute([tool("openssl"), "req", "-x509", *request, work / "ca.key", "-out", work / "ca/ca.pem", "-subj",
             "/DC=org/CN=CA", "-days", "2"])
    execute([tool("openssl"), "req", *request, work / "key", "-out", work / "csr", "-subj", "/DC=org/CN=Ada"])
    execute([tool("openssl"), "x509", "-req", "-in", work / "csr", "-CA", work / "ca/ca.pem", "-CAkey",
             work / "ca.key", "-CAcreateserial", "-out", work / "cert", "-days", "2"])
    execute([tool("openssl"), "rehash", work / "ca"])


def signed_list(work: Path, own: bool, count: int = _IMAGES) -> tuple[str, str]:
    """Write the signed ``list``; digest (of lists with manifests) and SHA-512 of its last image."""
    from vmjob.core.model import Boot, ImageFile, Manifest
    from vmjob.image.trust import imagelist, sign
    from vmjob.image.trust.endorsement import Endorser

    now, images, digest, sha512 = time.time(), [], "", ""
    heading = sign.Heading("bench", "1", now, now + 86400, "bench", "https://example.org/images.list")
    for number in range(count):
        sha512 = hashlib.sha512(str(number).encode()).hexdigest()
        files = tuple(ImageFile(role, role, form, 123456789, sha512[:64]) for role, form in (
            ("kernel", "bzimage"), ("initrd", "cpio"), ("disk", "qcow2")))
        made = Manifest("last" if number == count - 1 else f"image-{number}", files, (Boot.JOB, Boot.SYSTEM),
                        sources=(f"https://images.example.org/{number}/",), made_from=("debian=12",))
        entry: dict[str, Any] = sign.entry(made, sha512, heading, group="bench")
        if not own:
            del entry[imagelist.MANIFEST]
        images.append(entry)
        digest = made.digest if own else ""
    text = imagelist.render(sign.document(heading, Endorser("/DC=org/CN=Ada", "/DC=org/CN=CA"), images))
    (work / "plain").write_bytes(text)
    execute([tool("openssl"), "cms", "-sign", "-in", work / "plain", "-signer", work / "cert", "-inkey", work / "key",
             "-md", "sha256", "-outform", "SMIME", "-out", work / "list"])
    return digest, sha512
