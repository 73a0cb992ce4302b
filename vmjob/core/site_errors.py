"""Failures about sites: their configuration, what they publish, and what they record. Their place is in the tree of
errors.py."""

from __future__ import annotations

from vmjob.core.errors import JobError, SlotError


class SiteBroken(JobError):
    status = 204


class NoSiteFits(JobError):
    status = 205


class SitesUnreachable(JobError):
    status = 206
    transient = True


class SitesRefused(JobError):
    status = 207


class NodeUnchanged(JobError):
    status = 208


class RecordSpoolFull(SlotError):
    status = 229
    transient = True
