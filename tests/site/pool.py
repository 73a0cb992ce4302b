"""A client of the compute element for tests, made of the bindings alone: each call is a process of its own, as the
bindings read CONDOR_CONFIG once."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.site.layout import COLLECTORS, HOSTS
from tests.site.site import Site

_CALL = textwrap.dedent("""
    import json, sys, time
    import classad2, htcondor2
    pool, name, verb, words = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
    schedd = htcondor2.Schedd(htcondor2.Collector(pool).locate(htcondor2.DaemonType.Schedd, name))

    def plain(value):
        return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)

    if verb == "submit":
        done = schedd.submit(htcondor2.Submit(words["text"]), spool=words["spool"])
        if words["spool"]:
            schedd.spool(done)
        answer = done.cluster()
    elif verb == "query":
        ads = schedd.query(words["which"], words["attributes"])
        answer = [{key: plain(value) for key, value in ad.items()} for ad in ads]
    elif verb == "history":
        ads = schedd.history(words["which"], words["attributes"], 100)
        answer = [{key: plain(value) for key, value in ad.items()} for ad in ads]
    elif verb == "act":
        schedd.act(getattr(htcondor2.JobAction, words["action"]), words["which"])
        answer = None
    print(json.dumps(answer))
""")


@dataclass(frozen=True)
class Pool:
    """The schedd of the CE (ce, c2), asked as ``user``."""

    site: Site
    user: str = "alice"
    host: str = "ce"

    def _call(self, verb: str, **words: Any) -> Any:
        done = subprocess.run([sys.executable, "-c", _CALL, COLLECTORS[self.host], HOSTS[self.host].full_name, verb,
                               json.dumps(words)],
                              env=self.site.environment(self.user), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def submit(self, text: str, spool: bool = False) -> int:
        """Number of the cluster."""
        return int(self._call("submit", text=text, spool=spool))

    def query(self, which: str, *attributes: str) -> list[dict[str, Any]]:
        """Attributes of the jobs in the queue, by process number."""
        found = self._call("query", which=which, attributes=[*attributes, "ProcId"])
        return sorted(found, key=lambda ad: ad["ProcId"])

    def act(self, action: str, which: str) -> None:
        """``action``: Remove, Hold, Release, Vacate, VacateFast, Suspend, Continue."""
        self._call("act", action=action, which=which)

    def carry(self, *files: Path) -> str:
        """Spool files as those of a job that never runs: their folder at the schedd, and the job in it by its name."""
        cluster = self.submit("executable = /bin/true\ntransfer_executable = false\nrequirements = false\n"
                              f"transfer_input_files = {','.join(map(str, files))}\nqueue\n", spool=True)
        return str(self.until(f"ClusterId == {cluster}", lambda ad: ad["JobStatus"] == 1, "Iwd")["Iwd"])

    def until(self, which: str, fits: Callable[[dict[str, Any]], bool], *attributes: str,
              seconds: float = 60) -> dict[str, Any]:
        """Wait until the job's ad fits; the ad."""
        deadline, ad = time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            found = self.query(which, "JobStatus", "HoldReason", "HoldReasonCode", *attributes)
            ad = found[0] if found else None
            if ad is not None and fits(ad):
                return ad
            time.sleep(0.3)
        raise AssertionError(f"not within {seconds} s: {ad}")
