"""The bytes of a signed list, from whoever has it."""

from __future__ import annotations

from pathlib import Path

from vmjob.core import config
from vmjob.core.errors import EndorsementRefused, ImageOutOfReach, JobError
from vmjob.core.progress import Reporter
from vmjob.image.trust import smime, verify
from vmjob.stage.transfer import document
from vmjob.stage.transfer.flow import PATIENCE, Failed, Patience

_LONGEST = 600  # seconds for one list, where VMJOB_STAGE_TIMEOUT allows more


def fetch(url: str, reporter: Reporter, patience: Patience = PATIENCE) -> bytes:
    """The signed message at an http(s) address or in a file, within config.stage_timeout() and ten minutes at most.
    Raises ImageOutOfReach, EndorsementRefused, JobError."""
    if "://" not in url:
        return verify.read_message(Path(url))
    if not url.startswith(("http://", "https://")):
        raise JobError(f"{url}: a list is fetched by http or https", "or give the path of a file that has it")
    try:
        with reporter.bar("fetch the list", None) as bar:
            return document.fetch(url, smime.LARGEST, min(config.stage_timeout(), _LONGEST), bar, reporter.note,
                                  patience)
    except document.TooLarge as large:
        raise EndorsementRefused(f"{url}: {large}", "it is no image list") from large
    except Failed as failed:
        raise ImageOutOfReach(f"{url}: {failed}", "try again later; is the address right?") from failed
