# eboot. `make demo` and `make test` need nothing but Go: what else is missing is
# installed through apt where that may be, else named.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --warn-undefined-variables
.DELETE_ON_ERROR:

# raft and raft-boltdb agree on one go-metrics only with this tag (see go.mod).
export GOFLAGS := -tags=hashicorpmetrics -buildvcs=false
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo development)
LDFLAGS := -s -w -X main.version=$(VERSION)

.PHONY: all build loader demo test test-otp check unit fuzz fuzz-million bench acceptance reproducible sbom vulncheck release clean

all: build

build: ## one static binary, bin/eboot
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/eboot ./cmd/eboot

loader: ## compile loader/eboot_loader.erl anew; what it makes is committed
	scripts/need erl
	scripts/loader-beams

demo: build ## the main job on real Erlang nodes
	scripts/need erl
	scripts/demo bin/eboot

test: check unit ## everything that a change must pass

check: ## format, vet, staticcheck, tidy, checksums of modules
	@test -z "$$(gofmt -l .)" || { echo 'gofmt: these files want formatting:'; gofmt -l .; exit 1; }
	go vet ./...
	go tool staticcheck ./...
	go mod tidy -diff
	go mod verify
	go -C scripts/tools vet ./...
	go -C scripts/tools mod tidy -diff

unit: ## all tests under the race detector, real Erlang nodes included where erl is
	scripts/need erl cc ip nft strace systemd-analyze
	go test -race -timeout 25m ./...

FUZZTIME ?= 30s
fuzz: ## every fuzz target for FUZZTIME; prints a table
	scripts/need pgrep
	scripts/fuzz $(FUZZTIME)

MILLION ?= FuzzEbootQ FuzzFrame FuzzETF FuzzPath FuzzBundleTar FuzzBundleZip FuzzManifest FuzzCommandDecode FuzzRestore
fuzz-million: ## a million executions of what decodes datagrams, frames, terms, paths, archives, manifests, commands and snapshots; MILLION= of every target
	scripts/need pgrep
	scripts/fuzz 1000000x $(MILLION)

BENCH_ROUNDS ?= 5
BENCH_REPORT ?= $(CURDIR)/bin/bench.txt
bench: build ## figures, side by side with OTP's own boot server; BENCH_ROUNDS of each
	scripts/need erl
	go test -run '^$$' -bench . -benchtime 1s $$(go list ./... | grep -v /test/bench)
	EBOOT_BIN=$(CURDIR)/bin/eboot EBOOT_BENCH_REPORT=$(BENCH_REPORT) \
		go test -run '^$$' -bench . -benchtime $(BENCH_ROUNDS)x -timeout 60m ./test/bench

OTP_DIR ?= $(CURDIR)/bin/otp
OTP_RUN ?= TestSuite|TestLoader|AcceptanceLoader|StockLoader|BootIs|ServesFrom|SlaveWhose|SlaveIs|StuckSlave|ServerInUse|RollingRestart|PrioritiesAreReal
test-otp: ## boots, serving, failover and the loader with the OTP releases that scripts/otp installs below OTP_DIR (root)
	scripts/need erl cc ip nft
	scripts/otp $(OTP_DIR)
	for erlang in $(OTP_DIR)/*/usr/lib/erlang; do \
		echo "== ERTS and OTP $$(cat $$erlang/releases/start_erl.data)"; \
		EBOOT_TEST_ERL_ROOT=$${erlang%/usr/lib/erlang} EBOOT_REQUIRE_ERL=1 go test -count=1 -timeout 20m -run '$(OTP_RUN)' ./test; \
	done

acceptance: build ## the full counts; prints a report
	scripts/need erl cc ip nft
	EBOOT_TEST_ACCEPTANCE=1 EBOOT_REQUIRE_ERL=1 go test -count=1 -timeout 60m -v -run 'Acceptance' ./...
	$(MAKE) fuzz-million reproducible

reproducible: ## two builds of the last commit, elsewhere and with an empty cache, are equal
	scripts/reproducible

sbom: build ## bin/eboot.cdx.json: what bin/eboot is made of (CycloneDX)
	scripts/sbom $(VERSION) bin/eboot bin/eboot.cdx.json

VULNDB ?=
vulncheck: ## known vulnerabilities of what is used (govulncheck); VULNDB=file:///PATH: a copy of its database
	VULNDB=$(VULNDB) scripts/vulncheck

PLATFORMS := linux-amd64 linux-arm64
release: reproducible ## dist: the program for $(PLATFORMS), what each is made of, and SHA256SUMS
	rm -rf dist
	mkdir dist
	for platform in $(PLATFORMS); do \
		name=eboot-$(VERSION)-$$platform; \
		GOOS=$${platform%-*} GOARCH=$${platform#*-} CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o dist/$$name ./cmd/eboot; \
		scripts/sbom $(VERSION) dist/$$name dist/$$name.cdx.json; \
	done
	cd dist && sha256sum eboot-* >SHA256SUMS && cat SHA256SUMS

clean:
	rm -rf bin dist
