# Everything a contributor or a first visitor types. `make` alone lists it.
# PYTHON=... chooses the interpreter, VENV=... where it is set up, ARGS=... goes to the command (pytest, the demo, ...).

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
CODE := setup.py src tests tools demo bench examples docs/conf.py docs/_ext
PY := $(VENV)/bin/python
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo docs test thorough test-all test-services check lint types bench bench-auto bench-cluster bench-dask bench-exec \
	bench-integrations bench-long \
	bench-memory performance suite stress scale faults hotplug model mutants cpython-tests promises clean setup \
	interrupted storms tsan release-check aarch64 coverage pyright test-parallel hooks

help:  ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*##  *\(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: setup  ## the main job on real input, beside ThreadPoolExecutor
	$(PY) demo/stdlib.py $(ARGS)

check test types: EXTRAS := frameworks
test: setup  ## all tests, with $(PYTHON)
	$(PY) tools/run_tests.py $(ARGS)

test-all:  ## all tests, with every Python >= 3.11 that is installed, free-threaded builds too
	@$(PYTHON) tools/interpreters.py --run $(MAKE) test 'PYTHON={python}' 'VENV=.venv-{tag}'

thorough: EXTRAS := frameworks
thorough: setup  ## all tests, with all the random seeds and places of interruption, of which `make test` takes a part
	CMWQ_THOROUGH=1 $(PY) tools/run_tests.py $(ARGS)

test-services: EXTRAS := frameworks docs
test-services: setup  ## tests with servers of other people, such as Redis; installs what is missing, if it may
	$(PY) tools/services.py $(ARGS)

check: lint types test  ## what CI runs: lint, types, all tests

lint: setup  ## ruff, both ways
	$(PY) -m ruff check $(CODE)
	$(PY) -m ruff format --check $(CODE)

types: setup  ## mypy, strict
	$(PY) -m mypy
	$(PY) -m mypy tools examples
	$(PY) -m mypy tests/surface

bench: EXTRAS := bench peers
bench: setup  ## every figure cmwq is measured by, the suite included; JSON and chart in out/
	@mkdir -p out
	$(PY) bench/figures.py --json 'out/figures-{tag}.json' --chart out/suite.svg $(ARGS)

performance:  ## the same, with every Python >= 3.11 that is installed; rewrites docs/performance.md
	@rm -f out/figures-*.json
	-@$(PYTHON) tools/interpreters.py --run $(MAKE) bench 'PYTHON={python}' 'VENV=.venv-{tag}'
	@$(PYTHON) bench/performance.py out/figures-*.json

docs: EXTRAS := docs
docs: setup  ## the site, in out/site: warnings are errors, links are checked; nothing is fetched
	@mkdir -p out
	$(PY) -m sphinx -W --keep-going -q -b html -d out/doctrees docs out/site $(ARGS)
	@echo "out/site/index.html; links to other sites: out/site/external-links.txt"

suite: EXTRAS := bench
suite: setup  ## the workload suite alone
	@mkdir -p out
	$(PY) bench/suite.py --json out/suite.json --chart out/suite.svg $(ARGS)

bench-exec: setup  ## `cmwq exec` beside xargs and GNU parallel, swept over the number of processes: a table
	@mkdir -p out
	$(PY) bench/exec.py --json out/exec.json $(ARGS)

bench-integrations: EXTRAS := frameworks
bench-integrations: setup  ## frameworks with their own pools, these tuned by hand, and with cmwq: a table
	@mkdir -p out
	$(PY) bench/integrations --json out/integrations.json $(ARGS)

bench-dask: EXTRAS := frameworks
bench-dask: setup  ## Dask with its own threads, swept over their number, and with cmwq: a table
	@mkdir -p out
	$(PY) bench/dask_cluster.py --json out/dask.json $(ARGS)

bench-cluster: EXTRAS := frameworks
bench-cluster: setup  ## what one task costs Dask's scheduler and workers, and 1,000 nodes simulated with it
	@mkdir -p out
	$(PY) bench/cluster_sim.py --json out/cluster.json $(ARGS)

bench-long: setup  ## short works beside long computations, beside ThreadPoolExecutor of several sizes
	$(PY) bench/long_short.py $(ARGS)

bench-memory: setup  ## works that need more memory than there is, in a small cgroup: who is killed? (root)
	@mkdir -p out
	$(PY) bench/memory.py --json out/memory.json $(ARGS)

stress: setup  ## work queues under stress: flushes, races, coalescing, a million delayed works
	$(PY) bench/stress.py $(ARGS)

scale: setup  ## the core simulated at up to 1,024 CPUs and 1,000,000 works: is the cost of every decision flat?
	@mkdir -p out
	$(PY) bench/scale.py --json out/scale.json $(ARGS)

faults: setup  ## tests against real faults: a CPU offline and back 100 times, threads refused, quotas, freezes (root)
	CMWQ_FAULT_CYCLES=100 $(PY) -m pytest --timeout 600 tests/faults $(ARGS)

hotplug: EXTRAS := bench
hotplug: setup  ## latency of works while a CPU goes offline and comes back; chart in out/ (root)
	@mkdir -p out
	$(PY) bench/hotplug.py --chart out/hotplug.svg $(ARGS)

bench-auto: EXTRAS := bench
bench-auto: setup  ## the limit that is learned, beside every number and beside none: a table; plots over time in out/
	@mkdir -p out
	$(PY) bench/adaptive.py --chart out/adaptive.svg $(ARGS)

model: setup  ## the runtime beside a model of it: 2,000 random programs of 50 steps, and 1,000 of CPUs that come and go
	CMWQ_MODEL_EXAMPLES=2000 CMWQ_MODEL_STEPS=50 CMWQ_MODEL_INTERLEAVINGS=1000 $(PY) -m pytest --timeout 3600 \
		tests/model/test_state_machine.py tests/sim/test_hotplug.py $(ARGS)

interrupted: setup  ## an exception, a call of ours, a failing malloc at every bytecode of every call (an hour)
	PYTHONPATH=tests $(PY) -m interrupted.sweep raise memory $(ARGS)
	PYTHONPATH=tests $(PY) -m interrupted.sweep raise let-out --sensors procfs --locks python $(ARGS)
	PYTHONPATH=tests $(PY) -m interrupted.sweep enter --step 4 $(ARGS)

storms: setup  ## Ctrl-C, handlers, finalisers, exceptions, forks, exits: thousands of each at random moments (an hour)
	PYTHONPATH=tests $(PY) -m interrupted.sweep signal --rounds 1000 $(ARGS)
	PYTHONPATH=tests $(PY) -m interrupted.sweep handler finaliser callback --rounds 100 $(ARGS)
	PYTHONPATH=tests $(PY) -m interrupted.sweep asynchronous --rounds 1000 \
		--operations submit 'submit beyond max_active' 'freeze, thaw' 'submit, max_pending' $(ARGS)
	PYTHONPATH=tests $(PY) -m interrupted.ends forks exits --number 2000

tsan: setup  ## tests of the sensors and the locks, with the C extension built for ThreadSanitizer (3 minutes)
	$(PY) tools/sanitize.py $(ARGS)

coverage: setup  ## lines and branches that the tests reach, the core's by module; 95 % of the core's branches must be
	$(PY) tools/measure_coverage.py $(ARGS)

pyright: EXTRAS := frameworks pyright
pyright: setup  ## the types of the public names, as pyright sees them, and as tests/surface asserts them
	$(PY) tools/public_types.py $(ARGS)

test-parallel: EXTRAS := parallel
test-parallel: setup  ## each test of the rules on several threads at once; PYTHON=python3.13t: without a GIL
	$(PY) tools/run_parallel.py $(ARGS)

release-check: EXTRAS := release
release-check: setup  ## rehearse a release: build all archives twice, check them, test each wheel in a clean environment
	$(PY) tools/release_check.py $(ARGS)

aarch64: setup  ## the C extension cross-compiled for 64-bit ARM, and its tests under qemu; says what is missing
	$(PY) tools/cross_aarch64.py $(ARGS)

hooks: setup  ## run the hooks of .pre-commit-config.yaml before each commit, from now on
	$(PY) -m pip install --quiet prek
	$(VENV)/bin/prek install

promises:  ## docs/promises.md: which tests defend which promise
	$(PYTHON) tools/promises.py

cpython-tests: setup  ## CPython's own tests of ThreadPoolExecutor, with ours in its place
	$(PY) tools/run_cpython_tests.py $(ARGS)

mutants: setup  ## break every rule in turn: some test must notice each time
	$(PY) tools/mutate.py $(ARGS)

clean:  ## remove what any of these made
	rm -rf .venv .venv-* build dist out src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests tools demo bench \( -name __pycache__ -o -name '*.so' \) -prune -exec rm -rf {} +

setup:
	@$(PYTHON) tools/environment.py $(VENV) cli dev $(EXTRAS)
