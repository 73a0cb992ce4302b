"""What became of the VO's jobs, and of the glide-ins that ran them: python3 table.py DIR, where DIR has a folder of
results for each job, jobs.json (condor_q -json, or condor_history -json) and glideins/ (of vmjob glidein keep)."""

import json
import re
import sys
from pathlib import Path


def lines_of(path):
    return path.read_text().splitlines() if path.exists() else []


def job_row(folder, ad, glideins):
    told = dict(line.rsplit(None, 1) for line in lines_of(folder / "statistics.txt"))
    start = ad.get("JobStartDate", ad["QDate"])
    # the job's own word, and the pool's: the guest's name, and the glide-in that it is at the site
    said = re.match(r"guest (\S+), virtualisation (\S+)$", next(iter(lines_of(folder / "stdout.txt")), ""))
    guest, slot = ad.get("MachineAttrVmjobGuest0", ""), ad.get("MachineAttrVmjobSlot0")
    inside = bool(said) and said[2] != "none" and said[1] == guest.partition(".")[0] and slot in glideins
    return [folder.name, f"exit {ad['ExitCode']}" if "ExitCode" in ad else f"status {ad['JobStatus']}",
            guest.partition(".")[0] or "-", said[2] if said else "-", "yes" if inside else "NO",
            f"{start - ad['QDate']:.0f}", f"{ad.get('RemoteWallClockTime', 0):.0f}",
            told.get("events", "-"), told.get("mean charged", "-")]


def glidein_row(one, ads):
    here = [ad["MachineAttrVmjobGuest0"] for ad in ads if ad.get("MachineAttrVmjobSlot0") == one["id"]]
    guests = {name.partition(".")[0] for name in here}
    return [one["id"], "/".join(sorted(guests)) or "-", one["node"], one["kind"] or one["outcome"], str(one["jobs"]),
            f"{one['busy_seconds']:.0f}"]


def table(head, rows):
    rows = [head, *rows]
    widths = [max(len(line[at]) for line in rows) for at in range(len(head))]
    for line in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    print()


def main():
    place = Path(sys.argv[1])
    ads = sorted(json.loads((place / "jobs.json").read_text() or "[]"), key=lambda ad: ad["ProcId"])
    if not ads:
        sys.exit(f"{place}/jobs.json: no jobs here")
    ended = [one for one in map(json.loads, lines_of(place / "glideins/glideins.jsonl")) if one["submission"]]
    glideins = {one["id"] for one in ended}
    jobs = [job_row(place / str(ad["ProcId"]), ad, glideins) for ad in ads]
    table(["job", "outcome", "guest", "machine", "glide-in", "waited s", "ran s", "events", "charged"], jobs)
    table(["glide-in", "guest", "node", "outcome", "jobs", "CPU s busy"], [glidein_row(one, ads) for one in ended])
    events = sum(int(row[7]) for row in jobs if row[7].isdigit())
    outside = sum(row[4] == "NO" for row in jobs)
    print(f"{events} events; {len(jobs)} jobs of the VO, {outside} of them outside of a guest; to the site they were "
          f"{len(ended)} jobs")


main()
