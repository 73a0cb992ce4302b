"""What a site publishes: 1,000 images in one signed list, from the message to each rendering, each in a process of its
own as a BDII or cron starts it."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from bench.common import ROOT, Bench, Goal, Row, alternate, execute
from bench.lists import authority, signed_list

_IMAGES = 1000
_RENDER = """\
import sys, time
from dataclasses import replace
from hashlib import sha256
from cemon_publisher.example import EXAMPLE
from cemon_publisher.render import render
images = [replace(EXAMPLE.images[n % 4], name=f"image-{n}", digest="sha256:" + sha256(str(n).encode()).hexdigest())
          for n in range(int(sys.argv[2]))]
start = time.perf_counter()
assert len(render(sys.argv[1], replace(EXAMPLE, images=tuple(images)))) > 1000
print(time.perf_counter() - start)
"""
_FOLLOW = """\
import sys, time
from pathlib import Path
from vmjob.image.trust import subscriptions, verify
work = Path(sys.argv[1])
message = (work / "list").read_bytes()
signed = verify.verify_list(message, work / "ca", time.time())
subscriptions.follow(work / "lists", "https://example.org/images.list", signed, message, time.time())
"""
_POLICY = """\
endorsers: {{ada: {{dn: /DC=org/CN=Ada, ca: /DC=org/CN=CA}}}}
vos: {{star: {{groups: [star, starprod]}}, atlas: {{groups: [atlas, atlprd]}}, belle: {{groups: belle}}}}
rules:
  - {{refuse: guests run no machines, group: guests}}
  - {{allow: ours, vo: [star, atlas, belle], endorser: ada}}
subscriptions: {work}/lists
authorities: {work}/ca
"""
_SITE = "{{name: BENCH, vos: [star, atlas, belle], nodes: {{files: {work}/nodes/*.json}}}}\n"


def measure(bench: Bench) -> list[Row]:
    env = bench.environment()
    env["PYTHONPATH"] += f":{ROOT / 'ceMon-publisher'}"
    rows = []
    with bench.folder() as work:
        _site(work, env)

        def whole() -> float:
            start = time.perf_counter()
            execute([sys.executable, "-m", "cemon_publisher", "json", "--config", work / "site.yaml", "--policy",
                     work / "policy.yaml", "--out", work / "site.json"], env=env)
            return time.perf_counter() - start

        (seconds,) = alternate(bench.rounds, whole)
        rows.append(Row(f"vmjob-publish json: a signed list of {_IMAGES:,} images, 3 VOs, start to end", seconds,
                        goal=Goal("ours", "<=", 3.0)))
    names = execute([sys.executable, "-c", "from cemon_publisher.render import *; print(*RENDERINGS)"], env=env)
    for name in names.stdout.decode().split():
        def one(name: str = name) -> float:
            return float(execute([sys.executable, "-c", _RENDER, name, str(_IMAGES)], env=env).stdout)

        (seconds,) = alternate(bench.rounds, one)
        rows.append(Row(f"render {_IMAGES:,} images as {name}", seconds, goal=Goal("ours", "<=", 1.0)))
    return rows


def _site(work: Path, env: dict[str, str]) -> None:
    from vmjob.ads import node_ad
    from vmjob.ads.site_ad import NodeAd

    authority(work)
    signed_list(work, True, _IMAGES)
    execute([sys.executable, "-c", _FOLLOW, work], env=env)
    (work / "nodes").mkdir()
    node = NodeAd("n", True, "kvm", max_memory=2**34, max_cpus=8, cpus=16, memory=2**36)
    for number in range(100):
        (work / "nodes" / f"{number}.json").write_text(json.dumps(node_ad.to_json(replace(node, machine=f"n{number}"))))
    (work / "policy.yaml").write_text(_POLICY.format(work=work))
    (work / "policy.yaml").chmod(0o644)
    (work / "site.yaml").write_text(_SITE.format(work=work))
