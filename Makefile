# make demo   a real PYTHIA run inside a virtual machine, results in demo-out/
# make test   everything; make unit: the fast part
# make bench  how fast, side by side with the peers; build/bench.json
# make site-up    HTCondor pools to play with, in network namespaces of their own; make site-down ends them
# Each does the set-up that it needs; .venv/bin/vmjob is the command from then on.

PYTEST = .venv/bin/python -m pytest

.PHONY: demo test unit bench site-up site-down clean

demo:
	@.ci/setup demo
	@.ci/demo

test:
	@.ci/setup test
	$(PYTEST)

unit:
	@.ci/setup test
	$(PYTEST) -m "unit or golden"

bench:
	@.ci/setup bench
	.venv/bin/python -m bench

site-up:
	@.ci/setup site
	@.venv/bin/python -m tests.site up

site-down:
	@.venv/bin/python -m tests.site down

clean:
	@if [ -d build/site ]; then .venv/bin/python -m tests.site down; fi
	rm -rf .venv build demo-out
