"""The bytes of a signed list, from whoever has it."""

from __future__ import annotations

from pathlib import Path

from vmjob import config
from vmjob.errors import EndorsementRefused, ImageOutOfReach, JobError
from vmjob.image import smime, trust
from vmjob.progress import Reporter
from vmjob.stage import document
from vmjob.stage.flow import PATIENCE, Failed, Patience

_LONGEST = 600  # seconds for one list, where VMJOB_STAGE_TIMEOUT allows more


def fetch(url: str, reporter: Reporter, patience: Patience = PATIENCE) -> bytes:
    """The signed message at an http(s) address or in a file, within config.stage_timeout() and ten minutes at most.
    Raises ImageOutOfReach, EndorsementRefused, JobError."""
    if "://" not in url:
        return trust.read_message(Path(url))
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
