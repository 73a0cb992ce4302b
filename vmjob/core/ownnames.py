"""Names in a folder of results that others rely on: no output of a job is ever called so.

In a slot the results folder is the payload's and the batch system's too: what a guest returns must be nothing that any
of them reads, writes or starts later.
"""

from __future__ import annotations

import re

from vmjob.core.files import RESULT_FILES

# A payload's own files.
NAME = "payload.json"
INPUT = "input.tar"
TOKEN = "token"  # a glide-in's, where it cannot come by a better way
WRAPPER = "vmjob-wrapper.sh"
PYZ = "vmjob.pyz"
IMAGE = "image"  # the folder of its files

# What ``vmjob fetch`` and the target local write beside the results.
STDOUT, STDERR = "stdout.txt", "stderr.txt"
_PAYLOAD = (*map(re.escape, (WRAPPER, PYZ, NAME, INPUT, TOKEN, IMAGE)), rf"{TOKEN}-.*", r"list-.*\.smime",
            "[0-9a-f]{64}")
_VMJOB = (*map(re.escape, (*RESULT_FILES, STDOUT, STDERR)), r"\.?vmjob-results\.tar.*", r"\.vmjob.*")
_HTCONDOR = (r"\.(job|machine|update|execution_overlay)\.ad.*", r"\.chirp.*", r"\.condor.*", r"_condor_.*",
             r"condor_exec\..*", r"\.docker.*", r"docker_std(out|err|error)")
_ARC_AND_SLURM = (r".*\.diag", r"\.comment", r"slurm-[0-9_]+\.out")
_RESERVED = re.compile("|".join((*_PAYLOAD, *_VMJOB, *_HTCONDOR, *_ARC_AND_SLURM)), re.S)


def reserved(name: str) -> bool:
    """Is ``name``, at the top of the folder, one that others rely on? Pure."""
    return _RESERVED.fullmatch(name) is not None
