# make train          set up everything and train the demo on two ranks
# make paper-mini     plain against residual networks of two depths, about 20 minutes on two cores
# make test           set up everything, lint, and run the whole suite on both engines; what CI runs
# make docs           build the pages into docs/_build
# make lint           ruff and mypy alone
# make gpu-check      what only an NVIDIA GPU can show, in under 8 minutes; writes benchmarks/gpu_*.json
# make hollow-gpu    the host's part of a step, on a GPU that computes nothing; needs a CUDA build of PyTorch
# make clean          remove the environment (data, runs and built wheels stay)
#
# make train NP=4 ARGS='--run.name=x'     other ranks, other settings
# make paper-mini SEEDS='0 1 2'           each network once for each seed
# make train ENGINE=torch                 ranks over torch.distributed: no Horovod, no compiler
# make train TORCH=torch==2.11.0          another PyTorch: makes a new environment
# make train PYTHON=python3.12            another Python, likewise

PYTHON ?= python3
NP ?= 2
# What connects the ranks: horovod or torch.
ENGINE ?= horovod
ARGS ?=
SEEDS ?= 0
# More than cores: some tests wait for a Slurm, others for a killed job to end.
WORKERS ?= 3
export TORCH ENGINE

.PHONY: train paper-mini docs test lint gpu-check hollow-gpu clean environment

# Either launcher prints its own lines after the cause of a failure, which is then repeated.
repeat = .venv/bin/python -m launch.repeat
ranks_horovod = $(repeat) .venv/bin/horovodrun -np $(NP) .venv/bin/python
# Without --local-addr the ranks would meet at the host's name, which need not resolve.
ranks_torch = $(repeat) .venv/bin/torchrun --standalone --local-addr=127.0.0.1 --nproc-per-node=$(NP)

train: environment
	@.venv/bin/python -m pipeline.prepare demo --out data/demo
	@$(ranks_$(ENGINE)) -m pipeline.train --config configs/demo.yaml $(ARGS)

# Every finished network is kept, so that an interrupted call continues where it was.
paper-mini: environment
	@.venv/bin/python -m pipeline.prepare mini --out data/mini
	@for seed in $(SEEDS); do for net in plain-20 plain-44 resnet-20 resnet-44; do \
	    $(ranks_$(ENGINE)) -m pipeline.train --config configs/mini/$$net.yaml \
	        --run.seed=$$seed --run.name=mini-$$net-seed$$seed $(ARGS) || exit 1; \
	done; done
	@.venv/bin/python -m pipeline.report runs/mini-*

docs: environment
	@.venv/bin/python -m sphinx -W --keep-going -q -b html docs docs/_build && echo "open docs/_build/index.html"

# The suite starts ranks on either engine.
test: override ENGINE := horovod
test: lint
	@for program in slurmctld shellcheck chromium; do PATH="$$PATH:/usr/sbin" command -v $$program > /dev/null || \
	    echo "note: tests that need $$program are skipped: apt-get install slurm-wlm shellcheck chromium"; done
	.venv/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=20

lint: environment
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# In .venv where it stands; else in PYTHON with whatever is installed there.
gpu-check:
	@if [ -x .venv/bin/python ]; then python=.venv/bin/python; else python='$(PYTHON)'; fi; \
	PYTHONPATH=. "$$python" -m pipeline.benchmark.gpu_check $(ARGS)

hollow-gpu:
	@if [ -x .venv/bin/python ]; then python=.venv/bin/python; else python='$(PYTHON)'; fi; \
	PYTHONPATH=. "$$python" benchmarks/hollow_gpu/table.py $(ARGS)

# Returns at once when the environment stands: see launch/environment.py.
environment:
	@$(PYTHON) -m launch.environment

clean:
	rm -rf .venv
