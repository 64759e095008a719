#!/usr/bin/env bash
# Mean accepted tokens on recorded output of 7-billion-parameter models: exact, without a model.
#
#   DATA=FOLDER benchmarks/recorded.sh
#
# FOLDER holds the traces, the generations and the corpus that docs/replay.md names. Databases are kept in build/recorded,
# and the figures written to benchmarks/results/recorded.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DATA:?the folder of the recorded data}"
hdraft=${HDRAFT:-.venv/bin/hdraft} databases=build/recorded results=benchmarks/results/recorded
mkdir -p "$databases" "$results"
[[ -d $databases/D_m ]] || "$hdraft" build model --generations "$DATA/vicuna-7b-generations.jsonl.gz" --vocab-size 32000 \
  --eos-token-id 2 --output "$databases/D_m"
[[ -d $databases/D_s ]] || "$hdraft" build statistics --corpus "$DATA/chat-corpus-0.npy" --corpus "$DATA/chat-corpus-1.npy" \
  --vocab-size 32000 --eos-token-id 2 --output "$databases/D_s"
m="--model-database $databases/D_m" s="--statistics-database $databases/D_s"
replay() {  # replay NAME TRACE OPTIONS…
  "$hdraft" replay "$DATA/$2.jsonl.gz" --budget 64 --json "$results/$1.json" "${@:3}"
  sed -i "s|$DATA/||" "$results/$1.json"
}
dev=vicuna-7b-specbench-dev
replay pld $dev --method pld
replay rest $dev --method rest $s
replay published $dev --method published $m $s
replay hd $dev $m $s
replay hd-domain vicuna-7b-domain-dev $m $s
