"""The two archives of a run: inputs on the way in, outputs on the way out."""

from vmjob.stage.pack import pack_inputs
from vmjob.stage.unpack import unpack_outputs, unpack_results

__all__ = ["pack_inputs", "unpack_outputs", "unpack_results"]
