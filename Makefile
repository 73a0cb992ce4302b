# make demo   a real PYTHIA run inside a virtual machine, results in demo-out/
# make test   everything; make unit: the fast part
# make bench  how fast, side by side with the peers; build/bench.json
# Each does the set-up that it needs; .venv/bin/vmjob is the command from then on.

PYTEST = .venv/bin/python -m pytest

.PHONY: demo test unit bench clean

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

clean:
	rm -rf .venv build demo-out
