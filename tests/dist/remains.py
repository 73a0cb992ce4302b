"""What a user left on a node (run by services.sh, with the packaged vmjob): the record of a run that was killed, and a
file in her cache that is not what its name says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, "/usr/share/vmjob/vmjob.pyz")
from vmjob.core import config
from vmjob.accounting import spool
from vmjob.accounting.record import UsageRecord

UUID = "00000000-0000-0000-0000-000000000001"
spool.begin(Path("/var/spool/vmjob"), UsageRecord(UUID, "vm", "EXAMPLE-T2", "n1", os.getuid(), "alice", 1795212000.0),
            "json")
blobs = config.cache_dir() / "blobs/sha256"
blobs.mkdir(parents=True)
(blobs / ("0" * 64)).write_text("not this")
