"""Finding sites: what BDIIs, collectors and documents tell, read into site ads (ads.site_ad). Submit side only."""
