"""Fuzz targets: every parser of a stranger's bytes, fed with what no honest program writes (``make fuzz``)."""
