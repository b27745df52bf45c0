# make demo          the main job on a real VPS (KEEP=1 leaves it up)
# make test          everything that CI runs
# make torture       the kill campaign (MINUTES=30 SEED=)
# make test-client   a client in Perl, generated from the API's document, does the main job
# make bench-api     calls and listeners of a daemon with 500 VPSes and a year of history (VPSES= DAYS=)
# make test-hosts    the package on Debian 12 and 13, booted in containers, until it is purged (SUITES=)
# make test-trixie   the tests on real libvirt and QEMU, with Debian 13's (RUN=)
# make histories     calls of many at once, with kills, against a model (MINUTES= SEED=)
# make powercut      the power is cut at the device's writes (CUTS=60 SEED=)
# make mutants       the product is broken on purpose, and must be found out
# make bench         what a snapshot costs, beside virsh and qemu-img (FULL=1, ROUNDS=3)
# make bench-scale   what 10 to 500 VPSes cost the daemon
# make fuzz          every fuzz target in turn (TIME=1m for each)
# make build         the programs, documents and completions, into build/
# make install       programs, unit, configuration and documents on this host (DESTDIR=, PREFIX=)
# make packages      .deb and .rpm, into build/packages (packaging/build-packages)
# make generate      api/*.gen.go, again from api/openapi.yaml
# make lint          golangci-lint, which is slow to build the first time

PREFIX  ?= /usr
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -X main.version=$(VERSION)
GO      ?= go

.PHONY: demo test unit torture build install generate lint deps clean

# How long the kill campaign goes on, and its seed (0: a new one).
MINUTES ?= 30
SEED    ?= 0

build: deps
	$(GO) build -ldflags '$(LDFLAGS)' -o build/ ./cmd/...
	VERSION='$(VERSION)' GO='$(GO)' packaging/build-docs build/share

demo: build
	build/vpssnap-demo -bin build $(if $(KEEP),-keep)

# What the packages need that need neither libvirt nor root.
UNIT := ./api/... ./daemon/... ./hypervisor ./hypervisor/fake ./hypervisor/hypervisortest ./cmd/vpssnap ./systemd

test: deps
	@test -z "$$(gofmt -l api cmd daemon hypervisor systemd)" || { gofmt -l api cmd daemon hypervisor systemd; echo 'not gofmt-ed'; exit 1; }
	$(GO) vet ./...
	$(GO) test -count=1 -timeout 60m -parallel 4 ./...
	$(GO) test -count=1 -tags failpoints -run 'Failpoint|EveryEffect' ./daemon
	$(GO) run ./cmd/vpssnap-torture -minutes 2 -kills 100

torture: build
	build/vpssnap-torture -minutes $(MINUTES) -seed $(SEED)

.PHONY: histories
histories:
	$(GO) test -v -count=1 -timeout 0 -run '^TestHistories$$' ./daemon -args -histories $(MINUTES)m -history-seed $(SEED)

.PHONY: windows
windows: deps
	$(GO) test -v -count=1 -timeout 0 -run '^TestLibvirtdDies' ./cmd/internal/site -args -every-window

.PHONY: test-client
test-client: deps
	$(GO) test -v -count=1 -run '^TestForeignClient$$' ./cmd/internal/site

# How many VPSes the measured host has, and for how many days they have had a take a day.
VPSES ?= 500
DAYS  ?= 365

.PHONY: bench-api
bench-api: deps
	$(GO) run ./cmd/vpssnap-bench-api -vps $(VPSES) -days $(DAYS)

# How many cuts for each layout of file systems; 0: after every write.
CUTS ?= 60

.PHONY: powercut
powercut: build
	build/vpssnap-powercut -bin build -cuts $(CUTS) -seed $(SEED)

# RUN= chooses some mutants, or some tests of test-trixie, by their name.
RUN ?= .

# One safety rule after the other is broken.
.PHONY: mutants
mutants: build
	build/vpssnap-mutants -run '$(RUN)' -seed $(if $(filter 0,$(SEED)),1,$(SEED))

# The figures are written into build/, too. DIR= is on the disk to be measured.
ROUNDS ?= 3
DIR    ?= /var/tmp

.PHONY: bench bench-scale
bench: build
	build/vpssnap-bench -rounds $(ROUNDS) -dir $(DIR) $(if $(FULL),-full) -json build/bench.json

bench-scale: build
	build/vpssnap-bench -scale -dir $(DIR) -json build/bench-scale.json

# How long each fuzz target runs.
TIME ?= 1m

.PHONY: fuzz
fuzz: deps
	@set -e; for package in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			echo "$$package $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(TIME) -fuzzminimizetime 1s $$package; \
		done; \
	done

unit:
	$(GO) test -count=1 $(UNIT)

generate:
	$(GO) generate ./api

lint:
	$(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0 run

deps:
	@packaging/install-deps

install: build
	install -D -m 0755 build/vpssnapd $(DESTDIR)$(PREFIX)/sbin/vpssnapd
	install -D -m 0755 build/vpssnap $(DESTDIR)$(PREFIX)/bin/vpssnap
	for unit in vpssnapd.service vpssnapd.socket vpssnapd-tcp.socket; do \
		install -D -m 0644 systemd/$$unit $(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit; done
	install -D -m 0644 systemd/vpssnapd.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/vpssnapd.conf
	install -D -m 0644 systemd/vpssnapd-logind.conf $(DESTDIR)$(PREFIX)/lib/systemd/logind.conf.d/vpssnapd.conf
	for catalog in vpssnapd.catalog vpssnapd.fr.catalog; do \
		install -D -m 0644 systemd/$$catalog $(DESTDIR)$(PREFIX)/lib/systemd/catalog/$$catalog; done
	for file in grafana-dashboard.json prometheus-alerts.yaml; do \
		install -D -m 0644 packaging/$$file $(DESTDIR)$(PREFIX)/share/vpssnapd/$$file; done
	install -d $(addprefix $(DESTDIR)$(PREFIX)/share/man/,man1 man5 man8)
	install -m 0644 build/share/man1/* $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 0644 build/share/man5/* $(DESTDIR)$(PREFIX)/share/man/man5
	install -m 0644 build/share/man8/* $(DESTDIR)$(PREFIX)/share/man/man8
	install -d $(DESTDIR)$(PREFIX)/share/doc/vpssnapd
	install -m 0644 build/share/doc/* $(DESTDIR)$(PREFIX)/share/doc/vpssnapd
	install -D -m 0644 build/share/vpssnap.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/vpssnap
	install -D -m 0644 build/share/_vpssnap $(DESTDIR)$(PREFIX)/share/zsh/vendor-completions/_vpssnap
	install -D -m 0644 build/share/vpssnap.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/vpssnap.fish
	install -D -m 0644 packaging/dbus/org.vpssnapd1.conf $(DESTDIR)$(PREFIX)/share/dbus-1/system.d/org.vpssnapd1.conf
	install -D -m 0644 systemd/bus/org.vpssnapd1.xml $(DESTDIR)$(PREFIX)/share/dbus-1/interfaces/org.vpssnapd1.xml
	install -D -m 0644 packaging/polkit/org.vpssnapd1.policy $(DESTDIR)$(PREFIX)/share/polkit-1/actions/org.vpssnapd1.policy
	install -D -m 0644 packaging/polkit/org.vpssnapd1.rules $(DESTDIR)$(PREFIX)/share/polkit-1/rules.d/org.vpssnapd1.rules
	install -d $(DESTDIR)$(PREFIX)/share/vpssnapd/mail
	install -m 0644 daemon/mail/template/*.tmpl $(DESTDIR)$(PREFIX)/share/vpssnapd/mail
	install -D -m 0755 packaging/libvirt-hook $(DESTDIR)/etc/libvirt/hooks/qemu.d/vpssnapd
	test -e $(DESTDIR)/etc/vpssnapd/config.toml || install -D -m 0644 packaging/config.toml $(DESTDIR)/etc/vpssnapd/config.toml
	test -n '$(DESTDIR)' || { systemd-sysusers $(PREFIX)/lib/sysusers.d/vpssnapd.conf && journalctl --update-catalog; }

# The package on whole hosts. It needs debootstrap and systemd-container, and fails
# without them. Its budget is 40 minutes, of which the first run bootstraps for some.
SUITES ?= bookworm,trixie

.PHONY: test-hosts
test-hosts: deps
	$(GO) build -o build/ ./cmd/vpssnap-hosts
	timeout 40m build/vpssnap-hosts -suites $(SUITES)

# In a root of its own, which the first run bootstraps. It needs debootstrap, not systemd.
.PHONY: test-trixie
test-trixie:
	packaging/test-on trixie go test -count=1 -timeout 60m -run '$(RUN)' ./hypervisor/... ./cmd/internal/site

.PHONY: packages
packages: deps
	GO=$(GO) packaging/build-packages build/packages

clean:
	rm -rf build
