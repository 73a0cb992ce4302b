"""vmjob: a virtual machine image runs as an ordinary grid job."""

__version__ = "0.1.0"
