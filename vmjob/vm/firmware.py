"""Finds UEFI firmware (OVMF) where distributions put it; SeaBIOS is QEMU's own and needs no search."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Optional

from vmjob.core.errors import HostError

# (code, variables), the first pair that exists wins; 4 MiB builds first, never those with secure boot
_PAIRS = (
    ("OVMF/OVMF_CODE_4M.fd", "OVMF/OVMF_VARS_4M.fd"),                          # Debian, Ubuntu
    ("OVMF/OVMF_CODE.fd", "OVMF/OVMF_VARS.fd"),                                # Debian up to 12
    ("edk2/ovmf/OVMF_CODE.fd", "edk2/ovmf/OVMF_VARS.fd"),                      # RHEL, Fedora
    ("qemu/ovmf-x86_64-4m-code.bin", "qemu/ovmf-x86_64-4m-vars.bin"),          # SUSE
    ("qemu/ovmf-x86_64-code.bin", "qemu/ovmf-x86_64-vars.bin"),                # SUSE
    ("edk2/x64/OVMF_CODE.4m.fd", "edk2/x64/OVMF_VARS.4m.fd"),                  # Arch
    ("qemu/edk2-x86_64-code.fd", "qemu/edk2-i386-vars.fd"),                    # QEMU's own build
)


class Firmware(NamedTuple):
    """Path of the read-only code, and of pristine variables to copy into a run's folder."""

    code: str
    variables: str


def look_for_uefi(share: Path = Path("/usr/share")) -> Optional[Firmware]:
    """The UEFI firmware of this machine, or None."""
    for code, variables in _PAIRS:
        if (share / code).is_file() and (share / variables).is_file():
            return Firmware(str(share / code), str(share / variables))
    return None


def find_uefi(share: Path = Path("/usr/share")) -> Firmware:
    """The UEFI firmware of this machine. Raises HostError that names the package when there is none."""
    found = look_for_uefi(share)
    if found is None:
        raise HostError(f"the image boots by UEFI and this machine has no OVMF firmware below {share}",
                        "install it: apt-get install ovmf (RHEL: edk2-ovmf, SUSE: qemu-ovmf-x86_64)")
    return found
