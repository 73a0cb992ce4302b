"""For whom a run is accounted: what the compute element's environment tells of user, VO and job."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from vmjob.policy.identity import job_ad

log = logging.getLogger("vmjob.accounting")

_PROXY = 2**18  # bytes of an X.509 proxy, at most
# The list of a VO's groups and roles in a VOMS attribute certificate (object 1.3.6.1.4.1.8005.100.100.4).
_FQANS = re.compile(rb"\x06\x0a\x2b\x06\x01\x04\x01\xbe\x45\x64\x64\x04(.{1,4096})", re.S)
_FQAN = re.compile(rb"\x04(.)(/[!-~]+)", re.S)


@dataclass(frozen=True)
class Payer:
    """As in UsageRecord."""

    global_user: str = ""
    fqan: str = ""
    vo: str = ""
    said_by: str = ""
    vouched: bool = False
    account: str = ""
    ce_job: str = ""


def payer(environ: Mapping[str, str]) -> Payer:
    """From the job's ad of HTCondor: the token that it was submitted with, which the schedd has checked, else its X.509
    proxy, whose VO nobody has; else from the proxy in X509_USER_PROXY (ARC, EGI), which is the user's own word. What a
    batch system charges is SLURM_JOB_ACCOUNT, PBS_ACCOUNT or HTCondor's AcctGroup; the job's name is at ARC
    GRID_GLOBAL_JOBURL or GRID_GLOBAL_JOBID, at HTCondor GlobalJobId."""
    try:
        ad, ours = job_ad(environ.get("_CONDOR_JOB_AD", ""))
    except ValueError as broken:
        log.warning("%s: this job's ad tells nothing of who pays: %s", environ["_CONDOR_JOB_AD"], broken)
        ad, ours = {}, False
    account = environ.get("SLURM_JOB_ACCOUNT") or environ.get("PBS_ACCOUNT") or ad.get("acctgroup", "")
    ce_job = environ.get("GRID_GLOBAL_JOBURL") or environ.get("GRID_GLOBAL_JOBID") or ad.get("globaljobid", "")
    subject, groups = ad.get("authtokensubject", ""), ad.get("authtokengroups", "")
    if ours and (subject or groups):
        fqan = groups.partition(",")[0]
        return Payer(f"{ad.get('authtokenissuer', '')} {subject}".strip(), fqan, vo_of(fqan), "HTCondor's token", True,
                     account, ce_job)
    if ad.get("x509userproxysubject"):
        fqan = ad.get("x509userproxyfirstfqan", "")
        return Payer(ad["x509userproxysubject"], fqan, ad.get("x509userproxyvoname", "") or vo_of(fqan),
                     "the job's X.509 proxy", False, account, ce_job)
    dn, fqan = _of_proxy(environ.get("X509_USER_PROXY", ""))
    return Payer(dn, fqan, vo_of(fqan), "X509_USER_PROXY" if dn else "", False, account, ce_job)


def vo_of(fqan: str) -> str:
    """``/atlas/production/Role=NULL -> atlas``."""
    return fqan.split("/")[1] if fqan.startswith("/") else ""


def _of_proxy(path: str) -> tuple[str, str]:
    """DN of whom a proxy stands for, and the first FQAN in it; empty where there is none."""
    if not path:
        return "", ""
    from vmjob.image.trust.x509 import certificate, certificates_of_pem

    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            ders = certificates_of_pem(file.read(_PROXY))
        chain = [certificate(der) for der in ders]
    except (OSError, ValueError) as broken:
        log.info("X509_USER_PROXY names %s, which is no proxy: %s", path, broken)
        return "", ""
    # each proxy is called as who made it, and something more
    owner = next((one.subject for one in chain if not one.subject.startswith(f"{one.issuer}/CN=")),
                 chain[-1].issuer if chain else "")
    return owner, next((fqan for der in ders if (fqan := _first_fqan(der))), "")


def _first_fqan(der: bytes) -> str:
    for found in _FQANS.findall(der):
        for length, name in _FQAN.findall(found):
            if length[0] <= len(name):
                return str(name[:length[0]].decode("ascii"))
    return ""
