"""The site ad as it is: site-ad.schema.json describes it, ``vmjob sites`` reads it."""

from __future__ import annotations

import json

from vmjob.ads.site_ad import SiteAd, to_json
from vmjob.core.errors import VmjobError


def render(ad: SiteAd) -> str:
    """Checked against the schema, by which it is read again. Raises VmjobError where it does not fit: a bug."""
    from vmjob.core.schema import check

    text = json.dumps(to_json(ad), indent=1, ensure_ascii=False) + "\n"
    check(json.loads(text), "site-ad", f"the site ad of {ad.name}", VmjobError)
    return text
