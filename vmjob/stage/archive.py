"""The two archives of a run: inputs on the way in, outputs on the way out."""

from vmjob.stage.pack import pack_inputs
from vmjob.stage.unpack import unpack_outputs, unpack_results
from vmjob.stage.wanted import Wanted

__all__ = ["Wanted", "pack_inputs", "unpack_outputs", "unpack_results"]
