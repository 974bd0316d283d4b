# make demo   a whole federation on this machine, nothing else needed
# make test   every test       make lint   every check       make protos   regenerate the stubs
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROTOS := $(wildcard protos/fedge/v1/*.proto)
ROLES := simulate,dev

export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help install demo test lint format protos convert-env clean

help:
	@sed -n 's/^# //p' Makefile

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedge needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	@echo "Installing into $(VENV): about two minutes, once"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(ROLES)]' 2> $(VENV)/pip.log || { tail -n 20 $(VENV)/pip.log; exit 1; }
	@touch $@

demo: install
	@$(BIN)/python -m simulation.demo

test: install
	@PATH="$$PATH:/usr/sbin:/usr/local/sbin" command -v mosquitto > /dev/null || { echo "The tests start an MQTT broker of their own: apt-get install mosquitto (needs root)"; exit 1; }
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: install
	$(BIN)/python -m grpc_tools.protoc -I. --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=. $(PROTOS)

# The converter and its gigabyte (jax), only for making TFLite templates.
convert-env: .venv-convert/.installed

.venv-convert/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -m venv .venv-convert
	@.venv-convert/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[convert,server]' 2> .venv-convert/pip.log || { tail -n 20 .venv-convert/pip.log; exit 1; }
	@touch $@

clean:
	rm -rf $(VENV) .venv-convert build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
