"""Which version is newer: held against the package systems' own words, and their own programs where they are here."""

from __future__ import annotations

import random
import shutil
import subprocess

import pytest

from vmjob.vetting.versions import OPERATORS, SYSTEMS, Constraint, compare, fits, parse_range

pytestmark = pytest.mark.unit

# older, newer; or the same where both are one word: "a = b"
DPKG = """1.0 < 1.1; 1.9 < 1.10; 1.0~rc1 < 1.0; 1.0~~ < 1.0~; 1.0 < 1.0a; 1.0a < 1.0+; 1.0+ < 1.0.1; 1.0-1 < 1.0-1.1
    1.0-1 < 1.0-1+b1; 3.0.11-1~deb12u1 < 3.0.11-1~deb12u2; 3.0.11-1~deb12u2 < 3.0.11-1; 9 < 1:0; 0:1 = 1; 1.0 = 1.0-0
    1.01 = 1.1; 1.0-1 < 1.0-2; 1.0-rc-1 < 1.0-rd-1; 1:1.35.0-4+deb12u1 < 1:1.35.0-4+deb12u1+b1; a < a1; 1-a < 1a"""
# from rpm's own tests (tests/rpmvercmp.at), and with epoch and release
RPM = """1.0 = 1.0; 1.0 < 2.0; 2.0 < 2.0.1; 2.0.1 < 2.0.1a; 5.5p1 < 5.5p2; 5.5p1 < 5.5p10; 10xyz < 10.1xyz
    xyz10 < xyz10.1
    xyz.4 < 8; 5.5p2 < 5.6p1; 5.6p1 < 6.5p1; 6.0 < 6.0.rc1; 10a2 < 10b2; 1.0a < 1.0aa; 10.0001 = 10.1; 10.0001 < 10.0039
    4.999.9 < 5.0; 20101121 < 20101122; 2_0 = 2.0; a+ = a_; + = _; 1.0~rc1 < 1.0; 1.0~rc1 < 1.0~rc2
    1.0~rc1~git123 < 1.0~rc1; 1.0 < 1.0^; 1.0^git1 < 1.0^git2; 1.0^git1 < 1.01; 1.0^20160101 < 1.0.1
    1.0^20160101^git1 < 1.0^20160102; 1.0~rc1 < 1.0~rc1^git1; 1.0^git1~pre < 1.0^git1; 1.0~rc1 < 1.0^git1
    9-1 < 1:1-1; 1.0-1 < 1.0-2; 1.0-1.el9 < 1.0-1.el9_2; 1.0 = 1.0-7; 0:1.0-1 = 1.0-1"""
PIP = """1.0 = 1; 1.0.dev1 < 1.0a1.dev1; 1.0a1.dev1 < 1.0a1; 1.0a1 < 1.0b1; 1.0b1 < 1.0rc1; 1.0rc1 < 1.0
    1.0 < 1.0.post1.dev1
    1.0.post1.dev1 < 1.0.post1; 1.0-1 = 1.0.post1; 1.9 < 1.10; 9 < 1!0; 1.0c1 = 1.0rc1; v1.0 = 1.0; 1.0ALPHA1 = 1.0a1
    2.1.0+cpu = 2.1.0; 1.0+1 < 1.0+2; 1.0+a < 1.0+1; nonsense < 0.dev0"""
APK = """1.0-r0 < 1.0-r1; 1.2 < 1.10; 1.01 < 1.1; 1.2 < 1.2a; 1.2a < 1.2b; 1.0_alpha1 < 1.0_beta1; 1.0_rc2 < 1.0
    1.0 < 1.0_p1
    1.0_p1 < 1.0_p2; 1.0_pre1 < 1.0_rc1; 1.0-r5 = 1.0; 1.0_git20200101 < 1.0_git20210101; 3.0.12-r4 < 3.0.12-r10"""


def pairs(text: str) -> list[tuple[str, str, int]]:
    found = []
    for one in text.replace("\n", ";").split(";"):
        if one.strip():
            a, sign, b = one.split()
            found.append((a, b, {"<": -1, "=": 0}[sign]))
    return found


@pytest.mark.parametrize(("system", "table"), [("dpkg", DPKG), ("rpm", RPM), ("pip", PIP), ("apk", APK)])
def test_order(system: str, table: str) -> None:
    wrong = [(a, b, got) for a, b, order in pairs(table) if (got := compare(system, a, b)) != order]
    assert not wrong
    # the other way round, but where the right side is a rule that leaves a part out
    assert not [(b, a) for a, b, order in pairs(table) if order and compare(system, b, a) != -order]


def test_dpkg_says_the_same() -> None:
    if not shutil.which("dpkg"):
        pytest.skip("needs dpkg: apt-get install dpkg")
    some = random.Random(5)

    def version() -> str:
        middle = "".join(some.choice(["0", "1", "9", ".", "~", "+", "a", "Z", "-1", ".0", "~~", "rc", "deb", "12"])
                         for _ in range(some.randint(0, 7)))
        return (some.choice(["", "", "1:", "0:", "2:"]) + some.choice("0123") + middle
                + some.choice(["", "", "-1", "-0", "-1~deb12u2", "-2.1+b1"]))

    tried = [(version(), version()) for _ in range(300)]
    script = "".join(f"dpkg --compare-versions '{a}' lt '{b}' && echo -1 || {{ dpkg --compare-versions '{a}' eq '{b}' "
                     "&& echo 0 || echo 1; }\n" for a, b in tried)
    told = subprocess.run(["sh"], input=script, text=True, capture_output=True)
    assert not told.stderr
    assert [(a, b) for (a, b), said in zip(tried, told.stdout.split()) if compare("dpkg", a, b) != int(said)] == []


def test_pep_440_says_the_same() -> None:
    Version = pytest.importorskip("packaging.version", reason="needs the Python package packaging").Version
    some = random.Random(7)

    def version() -> str:
        release = ".".join(some.choice(["0", "1", "2", "10"]) for _ in range(some.randint(1, 3)))
        return (some.choice(["", "", "1!"]) + release + some.choice(["", "", "a1", "b", "rc2", ".pre1", "-alpha.2"])
                + some.choice(["", "", "-1", ".post2", "_r3"]) + some.choice(["", "", ".dev1", "dev"]))

    for _ in range(2000):
        a, b = version(), version()
        assert compare("pip", a, b) == (Version(a) > Version(b)) - (Version(a) < Version(b)), (a, b)


@pytest.mark.parametrize("system", SYSTEMS)
def test_order_is_one_whatever_the_texts(system: str) -> None:
    """Never an exception, and never a < b with b < a: the versions come from guests."""
    some = random.Random(11)
    texts = ["", "-", ":", "~", "^", "1:", "9" * 5000, "0" * 300 + "1", "é", "²", "1.²", *(
        "".join(some.choice("019.az~^+-_:!é") for _ in range(some.randint(1, 9))) for _ in range(150))]
    for a in texts:
        assert compare(system, a, a) == 0
        for b in some.sample(texts, 20):
            if system in ("dpkg", "rpm"):
                assert compare(system, a, b) == -compare(system, b, a), (a, b)
            else:
                compare(system, a, b)


def test_ranges() -> None:
    assert parse_range(">= 3.0, < 3.0.11-1~deb12u2") == (Constraint(">=", "3.0"), Constraint("<", "3.0.11-1~deb12u2"))
    within = parse_range(">=3.0,<3.0.11")
    assert [fits("dpkg", v, within) for v in ("1.1.1w-0", "3.0~beta", "3.0", "3.0.9-1", "3.0.11")] == [
        False, False, True, True, False]
    for operator, holds in zip(OPERATORS, [(True, True, False), (False, True, True), (True, False, True),
                                           (True, False, False), (False, True, False), (False, False, True)]):
        assert tuple(fits("rpm", v, parse_range(f"{operator} 2")) for v in ("1", "2", "3")) == holds
    assert fits("pip", "anything at all", parse_range("*"))


@pytest.mark.parametrize("text", ["", "1.0", "~1", "< ", "=< 1", "< 1,", "< 1 2", "< $(id)", "<1,*x", "< " + "1" * 201])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(ValueError, match="no range"):
        parse_range(text)
