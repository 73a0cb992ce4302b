"""What machines of a site write: ads of a batch system."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.target import target
from vmjob import classads


def _ads() -> list[bytes]:
    return [b'Cpus = 4\nMemory = 1000\nDisk = 100000\nMachine = "x"\nJobCurrentStartDate = 1700000000\n'
            b'AllowedJobDuration = 100\nClusterId = 1\n',
            b'AuthTokenIssuer = "https://issuer.example"\nNote = "a \\"b\\" c"\nRequirements = (Arch == "X86_64") && '
            b"member(1, { 1, 2 })\n'odd name' = [ a = 1; ]\n"]


@target(_ads, ValueError)
def classad(data: bytes, place: Path) -> None:
    """An ad as HTCondor writes it: no value becomes an attribute, and what is read can be written and read again."""
    text = data.decode(errors="replace")
    found = classads.read(text)
    assert len(found) == sum(bool(one.strip(" \t\r")) for one in text.split("\n"))
    for name, value in found.items():
        if name.startswith("'"):
            continue
        again = classads.read(f"{name} = {classads.literal(value)}\n")
        assert again == {name: classads.line(value)}, f"{value!r} came back as {again}"
