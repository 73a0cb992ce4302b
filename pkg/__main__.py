"""``python -m pkg``: everything that is released, into dist/."""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

from pkg import contents, deb, rpm
from pkg.release import ROOT, DistError, Release, release, run

KINDS = ("python", "deb", "rpm")


def main() -> int:
    """Build, and say what was built."""
    parser = argparse.ArgumentParser(prog="python -m pkg", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder, which is replaced (default: dist)")
    parser.add_argument("--only", metavar="KIND[,KIND]", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--pyz", type=Path, help="around this vmjob.pyz, whose version the packages get, instead of "
                                                 "around this checkout's")
    args = parser.parse_args()
    kinds = args.only.split(",")
    if strange := set(kinds) - set(KINDS):
        parser.error(f"--only: there is no {', '.join(sorted(strange))}; kinds are {', '.join(KINDS)}")
    try:
        for path in build(kinds, args.out.resolve(), release(args.pyz or _own_pyz())):
            print(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    except DistError as wrong:
        print(f"dist: {wrong}", file=sys.stderr)
        return 1
    return 0


def _own_pyz() -> Path:
    from vmjob.job.pyz import carried_pyz

    return carried_pyz()


def build(kinds: list[str], out: Path, what: Release) -> list[Path]:
    """The files of these kinds in the folder ``out``, and their SHA256SUMS. Raises DistError."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    made: list[Path] = []
    with tempfile.TemporaryDirectory(prefix="vmjob-dist-") as folder:
        stage = Path(folder) / "stage"
        if "deb" in kinds:
            files = contents.contents(what, contents.DEBIAN)
            trees = contents.stage(files, stage, what.epoch)
            made += [deb.build(package, trees[package], files, what, out) for package in contents.PACKAGES]
        if "rpm" in kinds:
            files = contents.contents(what, contents.REDHAT)
            contents.stage(files, stage, what.epoch)
            made += rpm.build(stage, files, what, out)
    if "python" in kinds:
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out,
            env={"SOURCE_DATE_EPOCH": str(what.epoch)})
        made += sorted([*out.glob("*.whl"), *out.glob("*.tar.gz")])
    sums = out / "SHA256SUMS"
    sums.write_text("".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(made)))
    return [*made, sums]


sys.exit(main())
