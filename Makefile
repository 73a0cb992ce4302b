# make demo   a real PYTHIA run inside a virtual machine, results in demo-out/
# make demo-pool  ten of them through a compute element to two worker nodes, in demo-pool-out/; then ten in the VO's
#                 own queue, pulled by glide-ins that went in through the same compute element
# make test   everything; make unit: the fast part
# make chaos  runs under kills, signals, want and overload: does each tell the outcome that it had? Ten minutes;
#             make chaos MINUTES=300 SEED=7 for longer. The table is in build/chaos.md
# make fuzz   every parser of strangers' bytes fed with what no honest program writes, a minute each, on all
#             processors; make fuzz MINUTES=10 TARGET=disk SEED=7. What is found stays in tests/fuzz/corpus/
# make lock   newer releases of all packages: renews locks/, shows what changed, runs the fast part
# make unit-later   the fast part two years from now; or on a day: make unit-later AT=2028-02-28T23:59:30Z
# make unit-lowest, make unit-newest   the fast part at both ends of the ranges in pyproject.toml
# make fresh  what README.md says of the first ten minutes, in bare Debian 12 and 13 systems, as root and as a user
# make dist   packages: wheel, sdist, .deb and .rpm into dist/, the same bytes from the same commit
# make bench  how fast, side by side with the peers; build/bench.json
# make site-up    HTCondor pools to play with, in network namespaces of their own; make site-down ends them,
#                 make site-shell gives a shell with all that is needed to use them
# Each does the set-up that it needs; .venv/bin/vmjob is the command from then on.

PYTEST = .venv/bin/python -m pytest

.PHONY: chaos demo demo-pool fuzz test unit unit-later unit-lowest unit-newest lock fresh dist bench site-up site-down site-shell clean

demo:
	@.ci/setup demo
	@.ci/demo

demo-pool:
	@.ci/setup demo
	@.ci/setup site
	@.ci/demo-pool

test:
	@.ci/setup test
	@.ci/test

unit:
	@.ci/setup test
	$(PYTEST) -m "unit or golden"

lock:
	@.ci/lock

unit-later:
	@.ci/setup test
	@AT="$(AT)" .ci/later

unit-lowest unit-newest:
	@.ci/ranges $(@:unit-%=%)

fresh:
	@.ci/setup test
	@.venv/bin/python -m tests.fresh

dist:
	@.ci/setup dist
	@.venv/bin/python -m pkg

chaos: MINUTES = 10
chaos:
	@.ci/setup test
	.venv/bin/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

fuzz: MINUTES = 1
fuzz:
	@.ci/setup fuzz
	@nice -n 19 .venv/bin/python -m tests.fuzz --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(TARGET:%=--target %)

bench:
	@.ci/setup bench
	.venv/bin/python -m bench

site-up:
	@.ci/setup site
	@.venv/bin/python -m tests.site up

site-down:
	@.venv/bin/python -m tests.site down

site-shell:
	@PATH="$$PWD/.venv/bin:$$PATH" .venv/bin/python -m tests.site shell || true

clean:
	@if [ -d build/site-glidein ]; then VMJOB_SITE=glidein .venv/bin/python -m tests.site clean; fi
	@if [ -d build/site ]; then .venv/bin/python -m tests.site clean; fi
	rm -rf .venv build dist demo-out demo-pool-out
