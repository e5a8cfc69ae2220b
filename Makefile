# Tardigrade. `make help` lists the targets.

version := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
export CGO_ENABLED = 0
go_files = $(shell git ls-files '*.go')

.PHONY: help build run check test e2e crashpoints rig-a rig-b rig-c bench-trees bench-drives pages notebooks clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/tardigrade
	go build -trimpath -ldflags "-s -w -X main.version=$(version)" -o bin/tardigrade .

run: build ## watch this machine and a simulated fleet on http://127.0.0.1:8080
	bin/tardigrade serve --demo

check: ## format, vet, staticcheck, tidy
	@bad=$$(gofmt -l $(go_files)); [ -z "$$bad" ] || { echo "not formatted by gofmt:"; echo "$$bad"; exit 1; }
	go vet ./...
	go tool -modfile=tools/go.mod staticcheck ./...
	go mod tidy -diff

test: build ## install what the tests need, then run all of them
	bash .ci/install-test-deps.sh
	bash .ci/install-rig-c.sh
	go test -shuffle=on -timeout 20m ./...

e2e: build ## the end-to-end story on a real host with a real guest
	bash .ci/install-test-deps.sh
	go test -count=1 -v -run TestStory ./internal/e2e

crashpoints: ## kill -9 at every write of the agent and of the control plane
	bash .ci/install-test-deps.sh
	go test -count=1 -v -timeout 15m -run TestCrashPoints ./internal/crashpoints

# A rig's last line is what it comes to, as JSON.
rig-a rig-b rig-c: SHELL := /bin/bash -o pipefail
rig-a: build ## real guests moved into new QEMU processes by the agent's runner
	bash .ci/install-test-deps.sh
	bash .ci/install-rig-kernel.sh
	go test -count=1 -v ./internal/rig/a | tee .build/rig-a.log
	@grep '^{"rig"' .build/rig-a.log

rig-b: build ## two hosts with libvirtd: recycle, diagnosis, migration, a target that dies, power
	bash .ci/install-test-deps.sh
	@mkdir -p .build
	go test -count=1 -v ./internal/rig/b | tee .build/rig-b.log
	@grep '^{"rig"' .build/rig-b.log

rig-c: build ## a host in a VM whose kernel the agent resets under its guests
	bash .ci/install-test-deps.sh
	bash .ci/install-rig-c.sh
	go test -count=1 -v ./internal/rig/c | tee .build/rig-c.log
	@grep '^{"rig"' .build/rig-c.log

bench-trees: build ## boosted trees against scikit-learn (needs Debian's python3-sklearn)
	/usr/bin/python3 .ci/compare-trees.py bin/tardigrade

bench-drives: build ## failures of drives against scikit-learn (needs Debian's python3-sklearn)
	/usr/bin/python3 .ci/compare-drives.py bin/tardigrade ../shared/data/hdd

pages: ## write the pages of the analyses (notebooks-go/pages)
	go run ./notebooks-go/render

notebooks: ## run the notebooks in Jupyter and render them as HTML (.build/notebooks)
	bash .ci/install-notebooks.sh
	PATH="$(CURDIR)/.build/notebooks/bin:$$PATH" JUPYTER_PATH="$(CURDIR)/.build/notebooks/jupyter" \
	jupyter nbconvert --to html --execute --ExecutePreprocessor.timeout=600 --output-dir .build/notebooks notebooks-go/*.ipynb

clean: ## remove what was built
	rm -rf bin .build
