"""Every failure vmjob can name, with the exit status that carries it.

The tree; the number is the exit status of the wrapper and of ``vmjob run``::

    VmjobError                     250   (a bug, if raised as itself)
     ├─ PoolError           190–199      on the submit side, never a job's: the pool or the CE (pool_errors.py)
     │   ├─ PoolUnreachable         191  transient
     │   ├─ PoolRefused             192  who we are, or what we ask, is not allowed there
     │   ├─ PoolFull                193  transient
     │   ├─ NoSlotFits              194
     │   ├─ NameTaken               195
     │   ├─ JobUnknown              196
     │   ├─ TransferFailed          197  transient
     │   ├─ JobHeld                 198
     │   └─ JobsPending             199  transient
     ├─ JobError            200–209      the user can fix it: job file, command line, inputs
     │   ├─ InputMissing            201
     │   ├─ WalltimeTooShort        202  a glide-in would have no time for a job
     │   ├─ TokenRefused            203  a glide-in's token: expired, wrong, or of another pool
     │   ├─ SiteBroken              204  what a site says of itself cannot be used (these five: site_errors.py)
     │   ├─ NoSiteFits              205  no site that is known has what the job needs
     │   ├─ SitesUnreachable        206  transient: what tells of sites is down or slow
     │   ├─ SitesRefused            207  what it tells cannot be believed
     │   └─ NodeUnchanged           208  a change of this machine was not made
     ├─ ImageError          210–219      the image maker can fix it
     │   ├─ ImageMissing            211
     │   ├─ ImageCorrupt            212  bytes are not what the digest says
     │   ├─ ImageRefused            213  bytes are right, but not safe to boot
     │   ├─ BuildFailed             214
     │   ├─ CondorMissing           215  a glide-in found no HTCondor in the guest
     │   ├─ CondorTooOld            216
     │   ├─ EndorsementRefused      217  a list or a signature that cannot be trusted, or no longer
     │   └─ ImageOutOfReach         218  transient: none of its sources gave it
     ├─ SlotError           220–229      the batch slot (or laptop) does not allow it
     │   ├─ SlotTooSmall            221
     │   ├─ ScratchFull             222  transient
     │   ├─ FolderBusy              223
     │   ├─ WalltimeOver            224
     │   ├─ Interrupted             225  transient: somebody took the slot away
     │   │   └─ Killed              225  the run was killed, and could not say how it ended
     │   ├─ PolicyRefused           226  the site's policy does not let this image or job in
     │   ├─ PolicyBroken            227  transient: the site's policy cannot be read or trusted
     │   ├─ StageOutFailed          228  outputs could not be sent where they shall go: they are with the job
     │   └─ RecordSpoolFull         229  transient: the site's spool takes no usage record (site_errors.py)
     ├─ HostError           230–239      the site admin can fix it; another node may do
     │   ├─ QemuMissing             231  transient
     │   ├─ KvmUnavailable          232  transient
     │   ├─ NodeFailed              230  transient: the node itself failed under the run (these: node_errors.py)
     │   │   ├─ DiskFailed               its disk gives errors
     │   │   ├─ NodeExhausted            no process, thread, memory, descriptor … is to be had
     │   │   └─ ScratchLost              somebody removed the run's scratch folder while it ran
     │   ├─ NetworkRefused          233  transient
     │   │   └─ NetworkLost              the helper behind the guest's network ended while it ran
     │   ├─ QemuFailed              234  transient
     │   ├─ CommandFailed           235
     │   ├─ CommandMissing          236  transient
     │   ├─ ChirpFailed             237  transient
     │   ├─ ClockWrong              238  transient
     │   └─ PoolOutOfReach          239  transient: a glide-in's guest does not reach its pool
     └─ GuestError          240–249      the guest did not do its part
         ├─ BootFailed              240  never said hello, twice
         │   └─ BootStarved              transient: so it was, on a node that gave it next to no CPU time
         ├─ KernelPanic             241
         ├─ GuestHung               242
         │   └─ GuestStarved             transient: the same of a guest that runs
         ├─ GuestVanished           243  powered off without telling a result
         ├─ AgentFailed             244
         ├─ CondorFailed            245  a glide-in's HTCondor ended by itself
         ├─ OutputMissing           246
         ├─ OutputTooLarge          247
         └─ OutputRefused           248

Statuses 1–199 belong to the user's program (128+N: killed by signal N, as shells
tell it). 85 stays free for "checkpointed". A program can exit with 200 and more
too; ``result.json`` tells which of the two it was.

``transient``: the same job may well succeed elsewhere or later. ``hint``: the next action, for a person.
"""

from __future__ import annotations

from typing import ClassVar, Optional


class VmjobError(Exception):
    """Root of all errors. Only the CLI turns one into text and an exit status."""

    status: ClassVar[int] = 250
    transient: ClassVar[bool] = False

    def __init__(self, message: str, hint: str = "", *, stage: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.stage = stage

    @property
    def kind(self) -> str:
        """Name of the failure as result.json and logs tell it."""
        return type(self).__name__

    def __str__(self) -> str:
        return self.message


class JobError(VmjobError):
    status = 200


class InputMissing(JobError):
    status = 201


class WalltimeTooShort(JobError):
    status = 202


class TokenRefused(JobError):
    status = 203


class ImageError(VmjobError):
    status = 210


class ImageMissing(ImageError):
    status = 211


class ImageCorrupt(ImageError):
    status = 212


class ImageRefused(ImageError):
    status = 213


class BuildFailed(ImageError):
    status = 214


class CondorMissing(ImageError):
    status = 215


class CondorTooOld(ImageError):
    status = 216


class EndorsementRefused(ImageError):
    status = 217


class ImageOutOfReach(ImageError):
    status = 218
    transient = True


class SlotError(VmjobError):
    status = 220


class SlotTooSmall(SlotError):
    status = 221


class ScratchFull(SlotError):
    status = 222
    transient = True


class FolderBusy(SlotError):
    status = 223


class WalltimeOver(SlotError):
    status = 224


class Interrupted(SlotError):
    status = 225
    transient = True


class PolicyRefused(SlotError):
    status = 226


class PolicyBroken(SlotError):
    status = 227
    transient = True


class StageOutFailed(SlotError):
    status = 228


class HostError(VmjobError):
    status = 230


class QemuMissing(HostError):
    status = 231
    transient = True


class KvmUnavailable(HostError):
    status = 232
    transient = True


class NetworkRefused(HostError):
    status = 233
    transient = True


class QemuFailed(HostError):
    status = 234
    transient = True


class CommandFailed(HostError):
    """A helper command ended with a status other than zero; ``output`` is the tail of what it printed."""

    status = 235

    def __init__(self, message: str, hint: str = "", *, output: str = "",
                 returncode: Optional[int] = None) -> None:
        super().__init__(message, hint)
        self.output = output
        self.returncode = returncode


class CommandMissing(HostError):
    status = 236
    transient = True


class ChirpFailed(HostError):
    """HTCondor's way from the slot to the submit side is closed, or was cut for too long."""

    status = 237
    transient = True


class ClockWrong(HostError):
    status = 238
    transient = True


class PoolOutOfReach(HostError):
    """From inside the guest of a glide-in the VO's pool does not answer."""

    status = 239
    transient = True


class GuestError(VmjobError):
    status = 244


class BootFailed(GuestError):
    status = 240


class KernelPanic(GuestError):
    status = 241


class GuestHung(GuestError):
    status = 242


class GuestVanished(GuestError):
    status = 243


class AgentFailed(GuestError):
    status = 244


class CondorFailed(GuestError):
    status = 245


class OutputMissing(GuestError):
    status = 246


class OutputTooLarge(GuestError):
    status = 247


class OutputRefused(GuestError):
    status = 248
