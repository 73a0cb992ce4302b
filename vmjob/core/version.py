"""The version, once; who reads it does so here: ``import vmjob`` would tie every module to the library's face."""

from __future__ import annotations

__version__ = "0.2.1"
