"""Options of ``vmjob image sign``, ``verify`` and ``subscribe``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmjob.cli.options import later

_SIGN = """\
examples:
  vmjob image sign pythia -o images.list --cert usercert.pem --key userkey.pem --title "Images of the VO pheno" \\
      --uri https://images.example.org/images.list --source https://images.example.org/{name}/ --expires 90d
  vmjob image sign --from list.yaml pythia tools --add-to images.list -o images.list
  vmjob image sign --from list.yaml --add-to images.list --withdraw pythia -o images.list

list.yaml holds the same as words of a file: vmjob schema list. A passphrase is asked for by openssl on the terminal.
"""
_VERIFY = """\
examples:
  vmjob image verify images.list
  vmjob image verify pythia                      does any list that is followed here vouch for it?
  vmjob image verify disk.qcow2 --list egi.list  a file, by its SHA-512 in a list without manifests

Exit status: 0 it holds; 217 a list, a signature or bytes that cannot be trusted.
"""
_SUBSCRIBE = """\
examples:
  vmjob image subscribe https://images.example.org/images.list
  vmjob image subscribe https://… --endorser "/DC=org/DC=example/CN=Ada" --ca "/DC=org/DC=example/CN=Example CA"
  vmjob image subscribe --refresh                all lists that are followed; for cron, also with --at
  vmjob image subscribe --at /var/lib/vmjob/lists --refresh
"""


def add_verbs(verb: Callable[..., argparse.ArgumentParser], nouns: Any) -> None:
    """``verb``: makes a parser below ``nouns``, as image_options does."""
    _sign(verb(nouns, "sign", "sign a list of images as their endorser", _SIGN, "sign"))
    _verify(verb(nouns, "verify", "check a signed list, or who vouches for an image", _VERIFY, "verify"))
    _subscribe(verb(nouns, "subscribe", "follow the lists of endorsers", _SUBSCRIBE, "subscribe"))


def _sign(one: argparse.ArgumentParser) -> None:
    one.set_defaults(handler=later("image.sign", "sign"))
    one.add_argument("image", metavar="IMAGE", nargs="*", help="name, digest or path of a manifest.yaml")
    one.add_argument("-o", "--out", metavar="FILE", type=Path, help="the signed list")
    one.add_argument("--from", metavar="LIST.yaml", dest="settings", type=Path,
                     help="what is the same for every version of the list (vmjob schema list)")
    one.add_argument("--cert", metavar="PEM", help="the endorser's certificate; more in the file travel as its chain")
    one.add_argument("--key", metavar="PEM", help="its key")
    one.add_argument("--title", metavar="TEXT", help="name of the list for people")
    one.add_argument("--id", metavar="ID", dest="identifier",
                     help="identifier of the list, the same for ever (default: a new UUID)")
    one.add_argument("--uri", metavar="URL", help="where the list will be")
    one.add_argument("--expires", metavar="TIME", help="how long the list is valid (default: 90d)")
    one.add_argument("--version", metavar="N", help="version of the list (default: one more than --add-to's, or 1)")
    one.add_argument("--source", metavar="ADDRESS", action="append", default=[],
                     help="where the images can be fetched: a folder (ending in /), or with {path} or {sha256} in it; "
                          "{name} is the image's name. May be given several times")
    one.add_argument("--group", metavar="TEXT", help="ad:group of the images, such as their VO's")
    one.add_argument("--add-to", metavar="FILE", type=Path,
                     help="take over the images of this list; those of the same names are renewed")
    one.add_argument("--withdraw", metavar="IMAGE", action="append", default=[],
                     help="digest or name of an image that must not start any more")
    one.add_argument("--test", metavar="FILE", action="append", default=[], type=Path,
                     help="outcome of vmjob image test --out, to be told with the image")
    one.add_argument("--dry-run", action="store_true", help="print what would be signed, and sign nothing")


def _verify(one: argparse.ArgumentParser) -> None:
    one.set_defaults(handler=later("image.verify", "verify"))
    one.add_argument("subject", metavar="LIST|IMAGE", help="a signed list, an image of the store, a manifest or a disk")
    one.add_argument("--list", metavar="FILE", dest="lists", action="append", default=[], type=Path,
                     help="a signed list that may vouch for the image (default: those that are followed)")
    one.add_argument("--authorities", metavar="DIR", type=Path,
                     help="trusted authorities (default: $X509_CERT_DIR or /etc/grid-security/certificates)")


def _subscribe(one: argparse.ArgumentParser) -> None:
    one.set_defaults(handler=later("image.lists", "subscribe"))
    one.add_argument("url", metavar="URL", nargs="?", help="http(s) address or file of a signed list")
    one.add_argument("--endorser", metavar="DN", help="who must have signed it; with --ca nothing is asked")
    one.add_argument("--ca", metavar="DN", help="the authority that must have certified the endorser")
    one.add_argument("--at", metavar="DIR", type=Path,
                     help="keep the lists here, for a site (/var/lib/vmjob/lists); images are not put into the store")
    one.add_argument("--refresh", metavar="ID", nargs="?", const="all", help="fetch the newest of one list, or of all")
    one.add_argument("--list", action="store_true", dest="show", help="show the lists that are followed")
    one.add_argument("--remove", metavar="ID", help="follow a list no longer")
    one.add_argument("--dry-run", action="store_true", help="fetch and check, and change nothing")
