"""Generate proton-proton collisions with PYTHIA 8, and draw what they look like.

Runs in the guest; leaves pythia.png, pythia.csv and statistics.txt in the work folder.
"""

import csv
import os
import sys
import time

import pythia8mc as pythia8

EVENTS = int(os.environ.get("EVENTS", "200"))
SEED = os.environ.get("SEED", "42")


def progress(percent):
    """vmjob shows what stands in this file as the job's progress."""
    place = os.environ.get("VMJOB_PROGRESS")
    if place:
        with open(place, "w") as file:
            file.write(f"{percent}\n")


def generate():
    """Charged multiplicity and transverse momenta (GeV) of all events, and the generator."""
    pythia = pythia8.Pythia("", False)
    for setting in ("Beams:eCM = 13000.", "SoftQCD:inelastic = on", "Random:setSeed = on", f"Random:seed = {SEED}",
                    "Print:quiet = on"):
        pythia.readString(setting)
    if not pythia.init():
        sys.exit("PYTHIA could not be initialised")
    multiplicities, momenta = [], []
    start = time.monotonic()
    for number in range(1, EVENTS + 1):
        if not pythia.next():
            continue
        charged = [p for p in pythia.event if p.isFinal() and p.isCharged() and abs(p.eta()) < 2.5]
        multiplicities.append(len(charged))
        momenta.extend(p.pT() for p in charged)
        if number % max(1, EVENTS // 20) == 0:
            progress(100 * number // EVENTS)
            print(f"event {number:6d}  {number / (time.monotonic() - start):6.1f} events/s", flush=True)
    return multiplicities, momenta, pythia


def draw(multiplicities, momenta):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    left.hist(multiplicities, bins=range(0, max(multiplicities) + 5, 5), histtype="step", color="tab:blue")
    left.set(xlabel="charged particles, |η| < 2.5", ylabel="events")
    right.hist(momenta, bins=60, range=(0, 6), histtype="step", color="tab:red", log=True)
    right.set(xlabel="transverse momentum (GeV)", ylabel="charged particles")
    figure.suptitle(f"PYTHIA {pythia8.__version__ if hasattr(pythia8, '__version__') else 8}, "
                    f"pp at 13 TeV, {len(multiplicities)} inelastic events")
    figure.tight_layout()
    figure.savefig("pythia.png", dpi=110)


def main():
    multiplicities, momenta, pythia = generate()
    info = pythia.infoPython()
    summary = (f"events              {len(multiplicities)}\n"
               f"cross section (mb)  {info.sigmaGen():.2f}\n"
               f"mean charged        {sum(multiplicities) / len(multiplicities):.1f}\n"
               f"mean pT (GeV)       {sum(momenta) / len(momenta):.3f}\n")
    sys.stdout.flush()
    pythia.stat()
    print(summary, end="", flush=True)
    with open("statistics.txt", "w") as file:
        file.write(summary)
    with open("pythia.csv", "w", newline="") as file:
        csv.writer(file).writerows([["event", "charged"], *enumerate(multiplicities, 1)])
    draw(multiplicities, momenta)


main()
