"""The packages where they are installed: bare Debian systems; one that had packages of 0.1.0 (Debian 12), and one that
was set up by hand as 0.1.0's documents said (Debian 13). The tests of one system go in their order, the last removes all.
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pkg.contents import TIMERS
from tests.bare import Bare, bare, why_not
from tests.conftest import ROOT
from tests.dist.conftest import OLD, version

pytestmark = [pytest.mark.fresh, pytest.mark.skipif(bool(why_not()), reason=str(why_not()))]
# what the packages recommend, and what tests look with; so that apt-get downloads nothing more
INCLUDE = ("ca-certificates", "qemu-system-x86", "qemu-utils", "passt", "openssl", "python3", "man-db",
           "bash-completion", "zsh", "fish", "systemd", "rpm")
# written by an admin who knew 0.1.0; kept whatever the packages do
ADMINS = {"/etc/vmjob/site.yaml": "name: EXAMPLE-T2\nnodes: {here: true}\n",
          "/etc/vmjob/policy.yaml": "rules:\n  - allow: everybody\n    unsigned: true\n",
          "/etc/vmjob/services.conf": "VMJOB_LEDGER_DAYS=100\n",
          "/etc/vmjob/vmjob-gip.conf": "RENDERINGS=glue2\n"}
PACKAGES = re.compile(r"/(proc|sys|dev|tmp|run|home/ada)(/|$)|/var/(log|cache/(apt|man|debconf)|lib/(apt|dpkg|rpm|systemd/"
                      r"(deb-systemd-helper|timers$)))(/|$)|\.pyc$|/__pycache__$|/root/\.rpmdb")


@dataclass
class Node:
    root: Bare
    suite: str
    before: dict[str, str]  # the files of the system without vmjob
    said: str  # by apt-get

    def shell(self, script: str, user: str = "ada", status: int = 0) -> str:
        cache = {"VMJOB_CACHE": "/tmp/cache-of-root"} if user == "root" else {}
        done = self.root.run("sh", "-c", script, user=user, cwd="/tmp", check=False, env=cache)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr


def listing(root: Bare) -> dict[str, str]:
    """Every file with kind, mode, owner."""
    lines = root.run("find", "/", "-xdev", "-printf", "%p\t%y %m %U:%G %l\n").stdout.splitlines()
    found = dict(line.split("\t", 1) for line in lines)
    return {name: what for name, what in found.items() if not PACKAGES.search(name)}


def install(root: Bare, folder: Path) -> str:
    """As a person does, and nobody answers questions."""
    root.run("rm", "-rf", "/tmp/packages")
    root.put(folder, "/tmp/packages")
    root.run("chmod", "755", "/tmp/packages")
    done = root.run("sh", "-c", "cd /tmp/packages && apt-get install -y ./vmjob*.deb",
                    env={"DEBIAN_FRONTEND": "readline", "TERM": "dumb"})
    return done.stdout + done.stderr


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, built: Path,
         old: Path) -> Iterator[Node]:
    suite = request.param
    with bare(suite, INCLUDE, folder=tmp_path_factory.mktemp("roots")) as root:
        root.run("apt-get", "update")
        before = listing(root)
        if suite == "bookworm":
            install(root, old)
            assert root.run("vmjob", "--version").stdout == "vmjob 0.1.0\n"
        else:
            root.put(OLD, "/tmp/vmjob.pyz")
            root.run("mkdir", "-p", "/etc/condor/config.d")
            root.run("python3", "/tmp/vmjob.pyz", "site", "hook", "/etc/vmjob")
            root.run("cp", "/etc/vmjob/99-vmjob-node.conf", "/etc/condor/config.d/")
        for place, text in ADMINS.items():
            root.write(place, text)
        yield Node(root, suite, before, install(root, built))


def test_installed_without_a_question_and_the_admins_files_are_kept(node: Node, built: Path) -> None:
    assert "onfiguration file" not in node.said
    for place, text in ADMINS.items():
        assert (node.root.path / place[1:]).read_text() == text
    assert node.shell("vmjob --version").split()[:2] == ["vmjob", version(built)]
    assert (node.root.path / "usr/share/vmjob/vmjob.pyz").read_bytes() != OLD.read_bytes()
    wants = node.root.path / "etc/systemd/system/timers.target.wants"
    assert not [path for path in wants.glob("*") if "vmjob" in path.name]  # no surprises


def test_a_job_runs_as_an_ordinary_user(node: Node) -> None:
    node.shell("vmjob image micro")
    said = node.shell("mkdir -p ~/w && cd ~/w && vmjob run --image micro --output out.txt -- "
                      "sh -c 'uname -s >out.txt; exit 7'", status=7)
    assert "emulated" in said or "kvm" in said.lower()
    assert node.shell("cat ~/w/job.out/out.txt ~/w/*/out.txt 2>/dev/null | head -1").strip() == "Linux"
    said = node.shell("cd ~/w && vmjob pack --image micro -o p -- sh -c 'exit 3' && cmp p/vmjob.pyz "
                      "/usr/share/vmjob/vmjob.pyz && mkdir -p s && cd s && sh ../p/vmjob-wrapper.sh", status=3)


def test_what_a_site_publishes(node: Node) -> None:
    assert '"name": "EXAMPLE-T2"' in node.shell("vmjob-publish json --example").replace('":"', '": "')
    assert "ENV/VMJOB" in node.shell("vmjob-publish arc-rte --example")
    assert "vmjob_site_nodes" in node.shell("vmjob-publish prometheus --quiet --policy /dev/null --example")
    provider = node.shell("RENDERINGS=glue2 sh /usr/share/vmjob/gip/provider/vmjob 2>/dev/null | head -3", status=0)
    assert "GLUE2" in provider
    assert node.shell("grep -c : /etc/passwd >/dev/null; id -u vmjob-publish").strip().isdigit()


def test_manual_pages_of_every_verb(node: Node) -> None:
    assert "-cpus" in node.shell("man vmjob-run | cat") and "VERB" in node.shell("man vmjob | cat")
    pages = node.shell("cd /usr/share/man/man1 && ls vmjob*").split()
    assert len(pages) > 45 and {"vmjob-image-cache-verify.1.gz", "vmjob-publish.1.gz"} < set(pages)
    listed = node.shell("man vmjob-image | cat")
    verbs = re.findall(r"^  .*?(vmjob-image-[a-z]+)\(1\)", listed, re.M)
    assert len(verbs) >= 14
    node.shell("man -w " + " ".join(verbs))
    odd = node.shell("for page in /usr/share/man/man1/vmjob*; do LC_ALL=C.UTF-8 MANWIDTH=80 man --warnings -E UTF-8 -l "
                     "-Tutf8 -Z $page 2>&1 >/dev/null; done")
    assert [line for line in odd.splitlines() if "cannot adjust" not in line and "can't break" not in line] == []


def test_shells_complete(node: Node) -> None:
    node.shell("bash -n /usr/share/bash-completion/completions/vmjob-publish && for f in vmjob vmjob-publish; do "
               "zsh -n /usr/share/zsh/vendor-completions/_$f && fish -n /usr/share/fish/vendor_completions.d/$f.fish "
               "|| exit 1; done")
    bash = """. /usr/share/bash-completion/bash_completion
. /usr/share/bash-completion/completions/vmjob
found=$(complete -p vmjob) && found=${found#*-F } && COMP_WORDS=(%s) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
COMP_LINE="${COMP_WORDS[*]}" COMP_POINT=${#COMP_LINE}
${found%% *} vmjob "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"; echo "${COMPREPLY[@]}" """
    for words, wanted in (("vmjob ima", "image"), ("vmjob image b", "build"), ("vmjob run --netw", "--network"),
                          ("vmjob run --network n", "nat none")):
        done = node.root.run("bash", "-c", bash % words, user="ada")
        assert sorted(done.stdout.split()) == wanted.split(), (words, done)
    assert "build" in node.shell("fish -c 'complete -C \"vmjob image b\"'")
    assert "glue2" in node.shell("fish -c 'complete -C \"vmjob-publish g\"'")
    loaded = node.shell("zsh -fc 'autoload -Uz compinit && compinit -u -D && print $_comps[vmjob] "
                        "$_comps[vmjob-publish]'")
    assert loaded.split() == ["_vmjob", "_vmjob-publish"]


def test_units_are_what_systemd_understands(node: Node) -> None:
    units = [f"/usr/lib/systemd/system/{name}" for timer in TIMERS
             for name in (timer, timer.replace(".timer", ".service"))]
    said = node.root.run("systemd-analyze", "verify", *units, check=False)
    assert [line for line in (said.stdout + said.stderr).splitlines() if "vmjob" in line] == []
    rated = node.root.run("systemd-analyze", "security", "--offline=yes", "--threshold=50", "--no-pager",
                          *[unit for unit in units if unit.endswith(".service")], check=False)
    assert rated.returncode == 0, re.findall(r"Overall.*", rated.stdout)


def test_a_pyz_that_is_cut_short_is_one_clear_failure(node: Node) -> None:
    pyz = "/usr/share/vmjob/vmjob.pyz"
    node.root.run("cp", pyz, "/tmp/whole.pyz")
    for spoil, names in ((f"head -c 500000 /tmp/whole.pyz >{pyz}", "cut short"), (f": >{pyz}", "cut short"),
                         (f"rm {pyz}", "is missing"),
                         (f"cp /tmp/whole.pyz {pyz} && dd if=/dev/zero of={pyz} bs=1000 seek=2 count=1200 conv=notrunc "
                          "status=none", "damaged")):
        node.shell(spoil, user="root")
        for command in ("vmjob --version", "vmjob-publish json --example"):
            said = node.shell(command, status=230)
            assert names in said and "→ install the package again" in said and "Traceback" not in said
    node.shell(f"cp /tmp/whole.pyz {pyz} && chmod 755 {pyz}", user="root")
    assert node.shell("vmjob --version").startswith("vmjob ")


def test_htcondors_bindings_are_found_or_it_is_said_what_to_install(node: Node) -> None:
    node.shell("echo 'image: micro\ncommand: [\"true\"]' >~/job.yaml")
    submit = "cd ~ && vmjob submit job.yaml --to condor || true"
    said = node.shell(submit)
    assert "bindings are not installed for /usr/bin/python3" in said and "the package condor" in said
    if node.suite == "trixie":  # Debian's are too old; only their files, as no daemon is to start
        node.shell("cd /tmp && apt-get download condor && dpkg-deb --fsys-tarfile condor_*.deb | "
                   "tar -x -C / --keep-directory-symlink --exclude './etc/*' && "
                   "apt-get install -y $(apt-cache depends condor | sed -n 's/.*Depends: \\(lib[a-z].*\\)/\\1/p')",
                   user="root")
        said = node.shell(submit)
        assert "bindings in /usr/lib/python3/dist-packages/htcondor2 are older than 24" in said
    own = Path(sysconfig.get_paths()["platlib"])  # where pip put them for us, and would for an admin
    place = node.shell("ls -d /usr/local/lib/python3*/dist-packages").strip()
    for name in ("htcondor2", "classad2", "htcondor.libs"):
        if (own / name).exists():
            node.root.put(own / name, f"{place}/{name}")
    said = node.shell(submit)
    assert "no HTCondor pool is set up on this machine" in said and "Warning" not in said
    node.root.run("sh", "-c", f"rm -r {place}/*")


def test_the_startds_hook_is_the_packages_and_not_an_old_copy(node: Node, built: Path) -> None:
    new = version(built)
    said = node.shell("/usr/share/vmjob/vmjob-startd.sh", user="root")
    assert f'VmjobVersion = "{new}' in said
    node.root.run("mkdir", "-p", "/etc/condor/config.d")
    if node.suite == "trixie":  # the hook of 0.1.0 goes on as it is, until somebody does what was said
        assert 'VmjobVersion = "0.1.0"' in node.shell("/etc/vmjob/vmjob-startd.sh", user="root")
        assert "has HTCondor run the copy of vmjob in /etc/vmjob" in node.said
        node.root.run("cp", str("/usr/share/vmjob/vmjob-startd.sh"), "/etc/vmjob/vmjob-startd.sh")
        assert f'VmjobVersion = "{new}' in node.shell("/etc/vmjob/vmjob-startd.sh", user="root")
        node.root.run("rm", "-r", "/etc/condor")
        node.root.run("mkdir", "-p", "/etc/condor/config.d")
    said = node.shell("vmjob site enable-kvm --users ada", user="root")
    assert "EXECUTABLE = /usr/share/vmjob/vmjob-startd.sh" in said and "for HTCondor: condor_reconfig" in said
    assert node.shell("cmp /usr/share/vmjob/99-vmjob-node.conf /etc/condor/config.d/99-vmjob-node.conf") == ""
    node.shell("vmjob site disable", user="root")
    node.root.run("rm", "-r", "/etc/condor")


def test_purge_leaves_what_the_admin_wrote_and_nothing_else(node: Node) -> None:
    # as systemctl enable and systemd do
    wants = "/etc/systemd/system/timers.target.wants"
    node.shell(f"mkdir -p {wants} /var/lib/systemd/timers && ln -s /usr/lib/systemd/system/vmjob-lists.timer {wants}/"
               " && touch /var/lib/systemd/timers/stamp-vmjob-lists.timer && mkdir /var/lib/vmjob-publish", user="root")
    kept = set(ADMINS) | {"/etc/vmjob"}
    if node.suite == "trixie":
        kept |= {f"/etc/vmjob/{name}" for name in ("vmjob.pyz", "vmjob-wrapper.sh", "vmjob-startd.sh",
                                                   "99-vmjob-node.conf")}
    node.root.run("apt-get", "purge", "-y", "vmjob", "vmjob-site", env={"DEBIAN_FRONTEND": "noninteractive"})
    after = listing(node.root)
    more = after.keys() - node.before.keys()
    if node.suite == "trixie":  # and the libraries of HTCondor
        more = {name for name in more if name in kept or "vmjob" in name}
    assert node.before.keys() - after.keys() == set() and more == kept
    assert "vmjob" not in (node.root.path / "etc/passwd").read_text() + (node.root.path / "etc/group").read_text()
