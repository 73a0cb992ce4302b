"""Finding sites: what BDIIs, collectors and documents tell, read into site ads (vmjob.sitead). Submit side only."""
