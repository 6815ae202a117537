# What people run. Every goal sets up what it needs first, and says so.
#
#   make demo    the main job on this machine: an allowed and a denied migration, and a log that proves both
#   make test    every test, those against real components included
#   make check   before each commit: format, lint, types, import contracts, unit tests; some two minutes on two cores
#   make bench   measure against haproxy, stunnel, socat and QEMU's own TLS; results in bench/results/
#   make fuzz    Hypothesis tests with many random examples, for FUZZ_SECONDS (default 60)
#   make fuzz-guided  each decoder of `tests/fuzz/targets` under libFuzzer, in turns, for FUZZ_SECONDS (ARGS="[--each SECONDS] [TARGET …]", or --report, or --keep)
#   make soak    kill a gateway under load KILLS times (default 1000; about 2 s each), then compare all it said with its log
#   make soak-sinks  kill each receiver of the log 100 times during delivery (ARGS="--kills N"); rsyslog is real
#   make failures  kill relays, libvirtd and connections at each moment of a migration by libvirt (ARGS="--kind all")
#   make rollover  replace both CAs, the permit key and the log key under a guest that moves back and forth; some minutes
#   make kinds   move a guest in every way that QEMU knows, and write the table in docs/migration-kinds.md
#   make recovery  post-copy that goes on after a relay's death, which is not reliable yet (docs/failures.md)
#   make criu    fetch the newest CRIU of Debian into .criu, and move a process: its memory goes through a named port
#   make silence  a guest on its way while the network is gone for 30 s without a word (ARGS="guest SECONDS")
#   make neighbours  move guests between relays of this commit and of earlier ones (ARGS="--revision COMMIT"), both ways
#   make upgrade  upgrade a whole site from an earlier commit, process by process, while a guest moves (ARGS="--revision COMMIT")
#   make sites   a real guest: to another site, off a host with its gateways dead, and by the second gateway of two
#   make newest-qemu  fetch the newest QEMU of Debian into .qemu-newest, for make kinds and make test
#   make other-libvirt  fetch libvirt and QEMU of Debian 13 into .other-libvirt, and move guests between it and Debian 12's
#   make nova    fetch OpenStack's nova into .nova, and let its own libvirt driver move a guest between the two hosts
#   make keycloak  fetch Keycloak into .keycloak and try the preset for it (about three minutes)
#   make editor  Neovim and Cedar's language server on a bundle (CEDAR_LANGUAGE_SERVER=PATH; docs/policy-guide.md)
#   make deb     Debian packages of relay and gateway, in build/deb
#   make lock    remake requirements.lock and those in deploy/gssapi and deploy/nova (ARGS=--upgrade takes the newest versions)
#
# ARGS is handed on: make demo ARGS=--json · make test ARGS="-k permit" · make bench ARGS="relay --quick"

SHELL := /bin/bash
BIN := .venv/bin
ARGS ?=
FUZZ_SECONDS ?= 60
KILLS ?= 1000
WORKERS ?= 3

.PHONY: help demo test check bench rollover failures fuzz fuzz-guided soak soak-sinks kinds recovery criu silence neighbours upgrade sites newest-qemu other-libvirt nova keycloak editor deb lock setup
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   make /make /p' Makefile

setup:
	@deploy/setup.sh check

demo:
	@deploy/setup.sh demo
	@$(BIN)/sealane demo $(ARGS)

# A file's tests stay on one worker: fixtures that start real processes are made once a file. Half of the time a worker
# waits for such a process: on two cores three of them take two thirds of what two take. In the order of tests/conftest.py.
# Where bytecode is not kept, as some images have it, a gateway's start takes a third longer.
test: export PYTHONDONTWRITEBYTECODE =
test:
	@deploy/setup.sh test
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --ignore tests/keycloak --ignore tests/editor $(ARGS)

# Temporary files in memory where there is room for it: the log's crash tests take a third of the time then.
check: export HYPOTHESIS_PROFILE = quick
check: export TMPDIR = $(firstword $(wildcard /dev/shm) /tmp)
check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict gateway transport policy audit certs bench tests
	$(BIN)/lint-imports
	$(BIN)/pytest -q -n 2 --dist loadfile -m "not real and not whole"

bench:
	@deploy/setup.sh bench
	@$(BIN)/python -m bench $(ARGS)

failures:
	@deploy/setup.sh test
	@$(BIN)/python -m tests.transport.libvirt.failures $(ARGS)

kinds:
	@deploy/setup.sh test
	@[ -d .qemu-newest ] || deploy/newest-qemu.sh
	@$(BIN)/python -m tests.transport.kinds_table --write docs/migration-kinds.md $(ARGS)

recovery:
	@deploy/setup.sh test
	@[ -d .qemu-newest ] || deploy/newest-qemu.sh
	@$(BIN)/pytest -q -n 0 tests/transport/relay/recovery_at_death.py $(ARGS)

criu:
	@deploy/setup.sh test
	@deploy/criu.sh
	@$(BIN)/pytest -q -n 0 tests/transport/relay/criu_pages.py $(ARGS)

silence: ARGS = guest 30
silence:
	@deploy/setup.sh test
	@unshare -n $(BIN)/python -m tests.transport.relay.silence $(ARGS)

neighbours:
	@deploy/setup.sh test
	@$(BIN)/python -m tests.transport.neighbours $(ARGS)

upgrade:
	@deploy/setup.sh test
	@$(BIN)/python -m tests.gateway.fleet_upgrade $(ARGS)

sites:
	@deploy/setup.sh test
	$(BIN)/pytest -n 0 -v tests/gateway/test_sites_real.py tests/gateway/test_evacuation_real.py \
		tests/gateway/test_two_gateways_real.py tests/gateway/test_evacuation_two_gateways_real.py $(ARGS)

newest-qemu:
	@deploy/newest-qemu.sh $(ARGS)

other-libvirt:
	@deploy/setup.sh test
	@deploy/other-libvirt.sh
	$(BIN)/pytest -n 0 tests/transport/libvirt/test_versions.py $(ARGS)

nova:
	@deploy/setup.sh test
	@deploy/nova.sh
	$(BIN)/pytest -n 0 tests/transport/libvirt/test_nova.py $(ARGS)

keycloak:
	@deploy/setup.sh test
	@deploy/keycloak.sh
	$(BIN)/pytest -n 0 tests/keycloak $(ARGS)

editor:
	@deploy/setup.sh test
	@command -v nvim > /dev/null || apt-get install -y -qq --no-install-recommends neovim
	$(BIN)/pytest -n 0 tests/editor $(ARGS)

fuzz: setup
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(ARGS)

fuzz-guided: setup
	@deploy/atheris.sh
	@$(BIN)/python -m tests.fuzz.guided --seconds $(FUZZ_SECONDS) $(ARGS)

# Goes on in .soak/ where it was stopped; ARGS=--fresh begins anew.
soak: setup
	@$(BIN)/python -m tests.soak --kills $(KILLS) $(ARGS)

soak-sinks:
	@deploy/setup.sh test
	@$(BIN)/python -m tests.soak.sinks $(ARGS)

deb: setup
	@for kind in relay gateway; do deploy/debian/build.sh $$kind build/deb || exit 1; done

# The lock names no index: whoever installs from it uses their own. The grep fails the goal if one slips in.
# The extra `gssapi` has one of its own: it must be compiled, which nobody should need who does without it.
# That of nova is for Debian 12's Python alone, and of wheels alone: what a source would be built with has no hash.
lock: COMPILE = $(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-emit-find-links $(ARGS)
lock: setup
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(COMPILE) --universal --extra gateway --extra dev --output-file requirements.lock pyproject.toml
	for name in build requirements; do \
		$(COMPILE) --universal --output-file deploy/gssapi/$$name.lock deploy/gssapi/$$name.in || exit 1; done
	$(COMPILE) --only-binary :all: --output-file deploy/nova/requirements.lock deploy/nova/requirements.in
	@! grep -nE '://|^--(index|extra-index|find-links)' requirements.lock deploy/gssapi/*.lock deploy/nova/*.lock

rollover:
	@deploy/setup.sh test
	@$(BIN)/python -m tests.rollover
