"""vmjob-publish: tells the grid that a site runs virtual machines, and which images.

One model (``vmjob.ads.site_ad.SiteAd``), many renderings: ``render/NAME.py`` has ``render(ad) -> str`` for each, pure.
"""
