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

.PHONY: help install demo test broker lint format protos convert-env profiles clean

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

# Federations of real processes have the machine to themselves; all else shares its cores.
test: install broker
	$(BIN)/python -m pytest tests/unit --numprocesses auto --maxprocesses 4 --dist loadfile
	$(BIN)/python -m pytest tests/integration

# The MQTT tests start a mosquitto of their own: root gets it installed, anybody else is told. The
# package would start a broker for everybody, which RUNLEVEL keeps it from; nothing here uses it.
broker:
	@PATH="$$PATH:/usr/sbin" command -v mosquitto > /dev/null || { \
	  [ "$$(id -u)" = 0 ] || { echo "The tests start an MQTT broker of their own: sudo apt-get install mosquitto"; exit 1; }; \
	  apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq mosquitto > /dev/null; }

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

# What a device has, each in an environment of its own: `infer` predicts with tflite-runtime and
# without torch, `edge` trains too. tests/integration/test_profiles.py runs devices from them.
profiles: .venv-infer/.installed .venv-edge/.installed

.venv-infer/.installed: EXTRA := infer-tflite
.venv-edge/.installed: EXTRA := edge
.venv-infer/.installed .venv-edge/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRA)]' pytest pytest-timeout hypothesis 2> $(@D)/pip.log || { tail -n 20 $(@D)/pip.log; exit 1; }
	@touch $@

clean:
	rm -rf $(VENV) .venv-convert .venv-infer .venv-edge build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
