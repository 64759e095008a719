#!/usr/bin/env bash
# Everything that `hdraft demo --model embedded` shows, made anew: the embedded model, what it has written (its D_m), and the figures.
#
#     tools/make_demo.sh CORPUS DOCS [MINUTES]
#
# CORPUS holds gsm8k_train.jsonl.gz and taskmaster4_dialogs.jsonl.gz, DOCS the sources of Python's documentation
# (*.rst.txt). Killed, the same command goes on where it was; remove build/demo_model to start from nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
corpus=$1 docs=$2 minutes=${3:-100}
work=build/demo_model demo=src/hdraft/demo

.venv/bin/python tools/train_demo_model.py --corpus "$corpus" --docs "$docs" --minutes "$minutes"
[ -f $work/generation_prompts.jsonl ] ||
  .venv/bin/python tools/train_demo_model.py --corpus "$corpus" --docs "$docs" --write-prompts 1500
.venv/bin/hdraft build model --model $demo/model --prompts $work/generation_prompts.jsonl --max-new-tokens 160 \
  --dtype float32 --generations $work/generations.jsonl --output $demo/database
mkdir -p benchmarks/results
.venv/bin/hdraft demo --model embedded
.venv/bin/python tools/readme_results.py
