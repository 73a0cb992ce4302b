"""Which sites fit a job and which is best, each reason both ways; what is remembered of failures; where a job goes."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest

from vmjob.ads.site_ad import Element, Nodes, SiteAd, SiteImage
from vmjob.batch import memory as sitememory
from vmjob.batch import reach, targets
from vmjob.batch.jobs import ended_at, job_of
from vmjob.batch.memory import Mishap
from vmjob.cli.sites_for import _lines
from vmjob.cli.sites_options import DIALECTS
from vmjob.cli.submit import not_any
from vmjob.core.errors import JobError
from vmjob.core.model import Accel, Boot, ImageFile, Job, Manifest, Resources
from vmjob.core.pool_errors import NameTaken, PoolFull, PoolUnreachable
from vmjob.core.progress import Reporter
from vmjob.core.site_errors import NoSiteFits
from vmjob.core.units import GIB
from vmjob.job.parameters import parameters
from vmjob.sites import matching
from vmjob.sites.matching import CARRIED, SOURCES, Match, Needs, match, rank
from vmjob.sites.requirements import DIALECTS as SPOKEN
from vmjob.submit import anywhere, submission

pytestmark = pytest.mark.unit

NOW = 1_000_000.0
ONE, TWO = f"sha256:{1:064x}", f"sha256:{2:064x}"
CE = Element("ce.example.org", "condor-ce://ce.example.org:9619", max_walltime=7200)
NODES = Nodes("new", "kvm", total=9, online=5, max_memory=4 * GIB, max_cpus=4, free=3)
SITE = SiteAd("A", ("star",), (CE,), (NODES,), (SiteImage("sl5", ONE, ("star",)),), max_walltime=3600,
              expires=int(NOW) + 60)
NEEDS = Needs("sl5", ONE, GIB, 1, 1800, 2700, vo="star", way=CARRIED)


def said(needs: Needs = NEEDS, ad: SiteAd = SITE, element: Element = CE) -> Match:
    return match(needs, ad, element, NOW)


def against(found: Match) -> list[str]:
    assert found.ok == (not found.against)
    return [one.text for one in found.against]


def test_a_site_that_has_all_says_why() -> None:
    found = said()
    assert found.ok and not found.unsure
    assert [one.text for one in found.reasons] == [
        "it takes jobs of star", "30m are within its limit", "5 nodes for guests of up to 4.0 GiB memory and 4 CPUs",
        "KVM is real there", "room for 3 more guests now", "the image sl5 is there"]


@pytest.mark.parametrize("needs, ad, why", [
    ({"vo": "cms"}, {}, "it takes no jobs of cms, only of star"),
    ({"walltime": 3601}, {}, "a guest gets 1h, and 1h00m01s are asked for"),
    ({"slot_walltime": 7201}, {}, "a job in its queue default gets 2h, and 2h00m01s are asked for"),
    ({"memory": 5 * GIB}, {}, "new: a guest gets 4.0 GiB memory, and 5.0 GiB are asked for"),
    ({"cpus": 5}, {}, "new: a guest gets 4 CPUs, and 5 are asked for"),
    ({"arch": "aarch64"}, {}, "new: they are x86_64, the image is aarch64"),
    ({"kvm": True}, {"nodes": (replace(NODES, accel="tcg", reason="no device"),)},
     "new: accel: kvm is asked for, and there is none (no device)"),
    ({"kvm": True}, {"nodes": ()}, "it tells nothing of its nodes, so not that they have KVM"),
    ({}, {"nodes": (replace(NODES, online=0, reason="offline"),)}, "none of its nodes takes VMs now (offline)"),
    ({}, {"nodes": (replace(NODES, networks=("none",)),)}, "new: the network nat is asked for, and they have none"),
    ({}, {"expires": int(NOW) - 60}, "what it says of itself expired 1m ago"),
    ({"digest": TWO}, {},
     "its image sl5 is another one (sha256:000000000000…), and jobs of star may not bring their own"),
    ({"image": "x", "digest": TWO}, {}, "the image x is not there, and jobs of star may not bring their own"),
    ({"vo": "cms"}, {"vos": ("*",)}, "its image sl5 is for star, and jobs of cms may not bring their own"),
    ({"image": "x", "digest": TWO, "way": ""}, {"unlisted": ("star",)},
     "the image x is not there, and there is nowhere to fetch it from"),
    ({}, {"images": (replace(SITE.images[0], expires=int(NOW) - 1),)},
     "the image sl5 is not there, and jobs of star may not bring their own"),
])
def test_what_speaks_against_a_site(needs: dict[str, Any], ad: dict[str, Any], why: str) -> None:
    assert why in against(said(replace(NEEDS, **needs), replace(SITE, **ad)))


@pytest.mark.parametrize("needs, ad, why", [
    ({"walltime": 3600, "slot_walltime": 7200}, {}, "1h are within its limit"),
    ({"walltime": 10**6, "slot_walltime": 7200}, {"max_walltime": 0}, None),
    ({"memory": 4 * GIB, "cpus": 4}, {}, None),
    ({"memory": 99 * GIB, "cpus": 99}, {"nodes": (replace(NODES, max_memory=0, max_cpus=0),)}, "5 nodes"),
    ({"kvm": True}, {}, "KVM is real there"),
    ({"network": "none"}, {}, None), ({"network": "isolated"}, {}, None),
    ({"network": "none"}, {"nodes": (replace(NODES, networks=("none",)),)}, None),
    ({"image": "other name"}, {}, "the image other name is there"),
    ({"digest": ""}, {}, "the image sl5 is there"),
    ({"vo": "cms"}, {"vos": ("*",), "images": (replace(SITE.images[0], vos=("*",)),)}, "it takes jobs of cms"),
    ({"image": "x", "digest": TWO}, {"unlisted": ("*",)}, "the image x is not there: it travels with the job"),
    ({"image": "x", "digest": TWO, "way": SOURCES}, {"unlisted": ("star",)},
     "the image x is not there: nodes fetch it from its sources"),
    ({}, {"expires": 0}, None),
])
def test_what_speaks_for_a_site(needs: dict[str, Any], ad: dict[str, Any], why: Optional[str]) -> None:
    found = said(replace(NEEDS, **needs), replace(SITE, **ad), replace(CE, max_walltime=7200))
    assert against(found) == [] and not found.unsure
    assert why is None or why in [one.text for one in found.reasons]


@pytest.mark.parametrize("needs, ad, doubt", [
    ({"vo": ""}, {}, "it takes jobs of star; of which VO this one is, was not said (--vo)"),
    ({}, {"vos": ()}, "it does not say whose jobs it takes"),
    ({"walltime": 0}, {}, "it gives 1h; how long the job runs was not said (--walltime)"),
    ({}, {"nodes": ()}, "it tells nothing of its nodes"),
    ({}, {"images": (SiteImage("sl5", ""),)},
     "an image called sl5 is there; whether it is the same one, the site does not say"),
    ({"image": "s/l 5"}, {"images": (SiteImage("s_l_5", ""),)},
     "an image called s/l 5 is there; whether it is the same one, the site does not say"),
    ({}, {"nodes": (replace(NODES, free=0),)}, "no room now: the job would wait"),
    ({}, {"nodes": (replace(NODES, accel="tcg"),)}, "no KVM: guests are emulated, and slow"),
])
def test_what_is_a_doubt_does_not_speak_against(needs: dict[str, Any], ad: dict[str, Any], doubt: str) -> None:
    found = said(replace(NEEDS, **needs), replace(SITE, **ad))
    assert found.ok and doubt in [one.text for one in found.unsure]
    assert found.score < said().score


def test_one_kind_of_nodes_must_have_everything() -> None:
    small, slow = replace(NODES, name="small", max_memory=GIB), replace(NODES, name="slow", accel="tcg")
    ad = replace(SITE, nodes=(small, slow))
    assert said(ad=ad).ok
    assert not said(replace(NEEDS, kvm=True, memory=2 * GIB), ad).ok  # each lacks one of the two
    assert against(said(replace(NEEDS, memory=9 * GIB), replace(SITE, nodes=(slow,)))) == [
        "slow: a guest gets 4.0 GiB memory, and 9.0 GiB are asked for"]


def test_elements_that_are_not_submitted_to_are_told_and_not_chosen() -> None:
    arc = Element("arc.example.org", "https://arc.example.org/arex", "arc")
    assert against(said(element=arc)) == ["https://arc.example.org/arex is an ARC compute element: vmjob submits to "
                                          "HTCondor-CEs only (for others: vmjob pack)"]
    assert "of the kind cream" in against(said(element=replace(arc, kind="cream")))[0]
    [none] = matching.matches(NEEDS, [replace(SITE, elements=())], NOW)
    assert against(none) == ["it names no compute element"]


# ---------------------------------------------------------------- the best


def named(name: str, **changes: Any) -> SiteAd:
    element = replace(CE, url=f"condor-ce://{name.lower()}.example.org:9619", waiting=changes.pop("waiting", 0))
    return replace(SITE, name=name, elements=(element,), unlisted=("star",), **changes)


def order(ads: Sequence[SiteAd], memory: Optional[dict[str, list[Mishap]]] = None) -> list[str]:
    known = {f"condor-ce://{name.lower()}.example.org:9619": found for name, found in (memory or {}).items()}
    return [one.site for one in rank(matching.matches(NEEDS, ads, NOW), known, NOW)]


def test_what_makes_a_site_better() -> None:
    tcg = (replace(NODES, accel="tcg"),)
    ads = [named("G", vos=("cms",)), named("F", nodes=tcg, images=()), named("E", nodes=tcg),
           named("D", nodes=(replace(NODES, free=0),)), named("C", waiting=7), named("B"),
           named("A", nodes=(replace(NODES, free=9),))]
    assert order(ads) == order(ads[::-1]) == list("ABCDEFG")
    perhaps = [named("H", images=()), named("I", images=(SiteImage("sl5", ""),)), named("J")]
    assert order(perhaps) == list("JIH")


def test_failures_push_back_and_fade() -> None:
    ads = [named("A"), named("B", nodes=(replace(NODES, accel="tcg"),))]

    def failed(ago: float, times: int = 1) -> dict[str, list[Mishap]]:
        return {"A": [Mishap("PoolUnreachable", "it does not answer", NOW - ago)] * times}

    assert order(ads) == order(ads, failed(3600)) == order(ads, failed(matching.FORGOTTEN, 99)) == ["A", "B"]
    assert order(ads, failed(10)) == order(ads, failed(3600, 20)) == ["B", "A"]
    assert order(ads[:1], failed(10)) == ["A"]  # better than none
    url = ads[0].elements[0].url
    [one] = rank(matching.matches(NEEDS, ads[:1], NOW), {url: failed(120)["A"]}, NOW)
    assert one.ok and one.unsure[-1].text == "failed once, 2m ago (PoolUnreachable: it does not answer)"


# ---------------------------------------------------------------- what is remembered


URL = CE.url


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VMJOB_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def test_a_failed_submission_is_remembered_until_one_works() -> None:
    assert sitememory.recall() == {}
    for failure in (PoolUnreachable("down"), PoolFull("x" * 9999)):
        with pytest.raises(type(failure)), sitememory.noting(URL):
            raise failure
    assert [(one.kind, len(one.message)) for one in sitememory.recall()[URL]] == [("PoolUnreachable", 4),
                                                                                  ("PoolFull", 300)]
    with pytest.raises(NameTaken), sitememory.noting("condor-ce://other"):
        raise NameTaken("the user's own doing")
    with sitememory.noting(URL):
        pass
    assert sitememory.recall() == {}


def test_what_jobs_tell_of_a_site_counts_once_and_is_cleared_by_a_good_one(home: Path) -> None:
    now = time.time()
    bad = sitememory.Ended("1.0", now - 60, "QemuMissing", "no QEMU")
    for _ in range(3):
        sitememory.learn(URL, [bad, sitememory.Ended("0.0", now - 99)])
    assert [one.kind for one in sitememory.recall()[URL]] == ["QemuMissing"]
    with sitememory.noting(URL):  # a submission that works says nothing of the nodes
        pass
    assert sitememory.recall()
    for _ in range(2):
        sitememory.learn(URL, [bad, sitememory.Ended("2.0", now - 10)])
        assert sitememory.recall() == {}
    sitememory.learn(URL, [replace(bad, time=now - 2 * matching.FORGOTTEN)])
    assert sitememory.recall() == {}


def test_memory_is_bounded_and_broken_memory_is_none(home: Path) -> None:
    for number in range(30):
        sitememory.note(URL, PoolFull(str(number)))
    assert [one.message for one in sitememory.recall()[URL]] == [str(number) for number in range(10, 30)]
    for text in ("", "{}", "[1]", '{"places": {"x": {"good": 1, "failures": [{}]}}}', "\0",
                 *(f'{{"places": {{"x": {{"good": {good}, "failures": [{{"kind": "", "message": "", "job": "", '
                   f'"time": {when}}}]}}}}}}' for good, when in ((0, '"5"'), ('"5"', 0), (0, 10**400), (0, "null")))):
        sitememory.path().write_text(text)
        assert sitememory.recall() == {}
    sitememory.note(URL, PoolFull("new"))
    assert sitememory.recall()[URL][0].message == "new"
    body = json.loads(sitememory.path().read_text())
    body["places"][URL]["failures"][0]["time"] = time.time() + 10 * matching.FORGOTTEN  # of a clock that was wrong
    sitememory.path().write_text(json.dumps(body))
    assert sitememory.recall() == {}
    sitememory.note(URL, PoolFull("last"))
    assert (sitememory.forget(), sitememory.forget()) == (1, 0)
    assert not sitememory.path().exists()


@pytest.mark.parametrize("kind, counts", [("KvmUnavailable", True), ("PolicyRefused", True), ("KernelPanic", False),
                                          ("ImageCorrupt", False), ("", True)])
def test_which_ends_of_jobs_are_the_sites(kind: str, counts: bool) -> None:
    ad = {"ClusterId": 7, "ProcId": 0, "JobStatus": 4, "ExitCode": 3, "VmjobStatus": 3, "CompletionDate": 99,
          "VmjobName": "x", "VmjobOutcome": "failed" if kind else "program-failed", "VmjobFailure": kind,
          "VmjobMessage": "why"}
    found = ended_at(job_of(ad))
    assert (found == sitememory.Ended("7.0", 99.0, kind, "why")) if counts else found is None
    assert ended_at(job_of({**ad, "JobStatus": 2})) is None


# ---------------------------------------------------------------- where a job goes


MANIFEST = Manifest("sl5", (ImageFile("kernel", "k", "elf", 1, "0" * 64),), (Boot.JOB,), needs_memory=2 * GIB,
                    needs_cpus=2)
JOB = Job("j", "sl5", ("true",), resources=Resources(walltime=600), accel=Accel.KVM)


def test_needs_are_those_of_the_submission() -> None:
    found = anywhere.needs_of(JOB, MANIFEST, "star")
    assert (found.memory, found.cpus, found.walltime, found.slot_walltime, found.kvm, found.way) == (
        2 * GIB, 2, 600, 1500, True, CARRIED)
    sourced = replace(MANIFEST, sources=("https://x.org/",))
    assert anywhere.needs_of(JOB, sourced).way == SOURCES
    assert anywhere.needs_of(JOB, sourced, carry=True).way == CARRIED


@pytest.mark.parametrize("url", ["local", "condor", "mine", "condor-ce://", "condor-ce://x y", "-oX", "file:///etc"])
def test_what_a_stranger_publishes_is_no_target_of_ours(url: str, home: Path) -> None:
    settings = home / "config/vmjob/targets.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text("targets: {mine: {url: local}}\n")
    with pytest.raises(JobError):
        targets.at(url)
    [one] = anywhere.candidates(replace(NEEDS, vo="star"), [replace(SITE, elements=(replace(CE, url=url),), expires=0)])
    assert not one.ok


def test_any_is_for_submit_alone() -> None:
    with pytest.raises(JobError, match="for vmjob submit --to alone"):
        targets.choose("any")
    assert set(DIALECTS) == set(SPOKEN)


def sent(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Optional[Exception]]) -> tuple[Any, list[str]]:
    """Submit to sites of these names, which answer so; what came of it, and which were asked."""
    asked: list[str] = []

    def submit_job(job: Job, base: Path, target: targets.Target, *_: Any) -> submission.Submitted:
        asked.append(target.name[12:13].upper())
        answer = answers[asked[-1]]
        if answer:
            raise answer
        return submission.Submitted(1, 1, job.name, target.name)

    monkeypatch.setattr(submission, "submit_job", submit_job)
    monkeypatch.setattr(reach, "check", lambda *_: None)
    ranked = rank(matching.matches(NEEDS, [named(name) for name in answers], NOW), {}, NOW)
    try:
        return anywhere.submit_to_any(JOB, Path(), ranked, parameters(None, [], None), Reporter()), asked
    except Exception as failure:
        return failure, asked


def test_the_next_site_is_tried_where_one_does_not_take_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = sent(monkeypatch, {"A": PoolUnreachable("down"), "B": PoolFull("full"), "C": None, "D": None})
    assert asked == ["A", "B", "C"] and found.match.site == "C"
    assert [(one.site, error.kind) for one, error in found.failed] == [("A", "PoolUnreachable"), ("B", "PoolFull")]


def test_nothing_is_queued_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    unsure = PoolUnreachable("cut off")
    unsure.unsure = True
    found, asked = sent(monkeypatch, {"A": unsure, "B": None})
    assert found is unsure and asked == ["A"] and "vmjob status --to condor-ce://a.example.org" in found.hint
    found, asked = sent(monkeypatch, {"A": NameTaken("it is there"), "B": None})
    assert isinstance(found, NameTaken) and asked == ["A"]


def test_where_no_site_takes_it_all_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = sent(monkeypatch, {"A": PoolFull("too many"), "B": PoolUnreachable("down")})
    assert asked == ["A", "B"] and isinstance(found, PoolFull)
    assert found.message == "none of the 2 that fit took the job\n  A: too many\n  B: down"
    found, asked = sent(monkeypatch, {"A": PoolFull("too many")})
    assert isinstance(found, PoolFull)
    assert found.message == "A, the only one that fits, did not take it: too many"


def test_the_queue_that_was_matched_is_the_one_that_is_asked_for() -> None:
    target = targets.at(CE.url)
    assert anywhere._queued(target, CE) == anywhere._queued(target, replace(CE, queue="")) == target
    assert anywhere._queued(target, replace(CE, queue="vm")).lines == (("+queue", '"vm"'),)
    for odd in ("$ENV(HOME)", 'v"m', "a b", "a\nb", "x" * 256):  # submit files fill in what begins with $
        [one] = anywhere.candidates(NEEDS, [replace(SITE, elements=(replace(CE, queue=odd),), expires=0)])
        assert not one.ok and "a queue is not called" in one.against[-1].text


def test_two_queues_of_one_compute_element_are_told_apart() -> None:
    heads = [_lines(said(element=replace(CE, queue=queue)), False)[0] for queue in ("", "default", "vm", "slow")]
    assert heads[0] == heads[1] and len(set(heads)) == 3 and "queue vm" in heads[2]


def test_options_of_any_are_refused_elsewhere() -> None:
    args = Namespace(to="local", sources=[], vo=None, fresh=False)
    not_any(args)
    for changed in ({"sources": ["x"]}, {"vo": "star"}, {"vo": ""}, {"fresh": True}):
        with pytest.raises(JobError, match="is for --to any, and this goes to local"):
            not_any(Namespace(**{**vars(args), **changed}))


def test_kinds_of_nodes_are_counted_apart() -> None:
    old = replace(NODES, name="old", accel="tcg", max_memory=GIB, max_cpus=2, online=2)
    texts = [one.text for one in said(ad=replace(SITE, nodes=(old, NODES))).reasons]
    assert "5 nodes for guests of up to 4.0 GiB memory and 4 CPUs, and 2 others" in texts
    assert "KVM is real there, on 5 of the 7" in texts


def test_of_an_image_that_is_not_here_the_site_says_what_it_needs() -> None:
    ad = replace(SITE, images=(replace(SITE.images[0], memory=8 * GIB, cpus=5),))
    assert against(said(replace(NEEDS, digest=""), ad)) == [
        "new: a guest gets 4.0 GiB memory, and 8.0 GiB are asked for", "new: a guest gets 4 CPUs, and 5 are asked for"]
    assert said(NEEDS, ad).ok  # of one that is, its manifest does


def test_where_no_site_fits_each_says_why() -> None:
    ranked = anywhere.candidates(replace(NEEDS, cpus=99), [replace(SITE, expires=0)] * 12)
    failure = anywhere.nothing_fits("j", ranked)
    assert isinstance(failure, NoSiteFits) and "vmjob sites --for" in failure.hint
    lines = failure.message.split("\n  ")
    assert lines[:2] == ["no site fits j", "A: new: a guest gets 4 CPUs, and 99 are asked for"]
    assert lines[-1] == "… and 2 more" and len(lines) == 12
