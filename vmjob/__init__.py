"""vmjob: a virtual machine image runs as an ordinary grid job.

The library is small: ``load_job``, ``run_job``, ``pack_job``, the types ``Job``, ``Resources`` and ``Result``, and
``Reporter`` to listen; see vmjob.api. They are imported when first used, so that ``import vmjob`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.2.1"

if TYPE_CHECKING:
    from vmjob.api import pack_job, run_job
    from vmjob.errors import VmjobError
    from vmjob.job import load_job
    from vmjob.model import Input, Job, Resources
    from vmjob.progress import Reporter
    from vmjob.result import Result

__all__ = ["Input", "Job", "Reporter", "Resources", "Result", "VmjobError", "load_job", "pack_job", "run_job",
           "submit_job"]

_HOMES = {"pack_job": "api", "run_job": "api", "submit_job": "api", "VmjobError": "errors", "load_job": "job",
          "Input": "model", "Job": "model", "Resources": "model", "Result": "result", "Reporter": "progress"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vmjob' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"vmjob.{_HOMES[name]}"), name)
