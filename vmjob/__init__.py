"""vmjob: a virtual machine image runs as an ordinary grid job.

The library is small: ``load_job``, ``run_job``, ``pack_job``, the types ``Job``, ``Resources`` and ``Result``, and
``Reporter`` to listen; see vmjob.api. They are imported when first used, so that ``import vmjob`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmjob.core.version import __version__

if TYPE_CHECKING:
    from vmjob.api import pack_job
    from vmjob.core.errors import VmjobError
    from vmjob.core.model import Input, Job, Resources
    from vmjob.core.progress import Reporter
    from vmjob.core.result import Result
    from vmjob.job.file import load_job
    from vmjob.run.here import run_job

__all__ = ["Input", "Job", "Reporter", "Resources", "Result", "VmjobError", "__version__", "load_job",
           "pack_job", "run_job", "submit_job"]

_HOMES = {"pack_job": "api", "run_job": "api", "submit_job": "api", "VmjobError": "core.errors", "load_job": "job.file",
          "Input": "core.model", "Job": "core.model", "Resources": "core.model", "Result": "core.result",
          "Reporter": "core.progress"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vmjob' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"vmjob.{_HOMES[name]}"), name)
