#!/usr/bin/env bash
# Correctness and speed on one GPU, in under nine minutes, with no network.
#
#   benchmarks/gpu/run.sh --traces FOLDER [--output FOLDER] [--seconds 530]
#   benchmarks/gpu/run.sh --traces FOLDER --device cpu --shape tiny     # tries the script itself, where there is no GPU
#
# FOLDER holds the trace, the generations and the corpus, see tools/pack_replay.py. $PYTHON must have what the package
# needs; the package itself is run from src/. docs/gpu.md says what is written.
set -uo pipefail
project=$(cd "$(dirname "$0")/../.." && pwd)
traces='' device=cuda shape=llama-2-7b output='' limit=530
usage() { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
while (($#)); do
  [[ $# -ge 2 ]] || usage
  case $1 in
    --traces) traces=$2 ;; --device) device=$2 ;; --shape) shape=$2 ;; --output) output=$2 ;; --seconds) limit=$2 ;;
    *) usage ;;
  esac
  shift 2
done
[[ -n $traces ]] || usage
[[ -d $traces ]] || { echo "there is no folder $traces" >&2; exit 2; }
traces=$(cd "$traces" && pwd)
output=${output:-$project/benchmarks/results/gpu-$device-$shape}
mkdir -p "$output" || exit 2
output=$(cd "$output" && pwd)
cd "$project" || exit 2
if [[ -z ${PYTHON:-} ]]; then PYTHON=python3; [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python; fi
export PYTHONPATH="$project/src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
"$PYTHON" -c 'import torch, transformers, numba, safetensors, huggingface_hub, typer, rich' ||
  { echo "$PYTHON lacks what the package needs: name another one in PYTHON" >&2; exit 2; }
if [[ $device == cuda* ]]; then
  "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    { echo 'there is no GPU: give --device cpu --shape tiny to try the script without one' >&2; exit 2; }
fi
"$PYTHON" -m hdraft.drafting.compile_kernels 32000 --all || exit
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
summary=$output/summary.md
printf '# What benchmarks/gpu/%s ran on %s\n\n| part | came to | seconds |\n| --- | --- | --- |\n' "${0##*/}" "$device" > "$summary"

# Each part has a share of the time, and what those before it left of theirs.
shares=0 failed=0
note() { printf '| %s | %s | %s |\n' "$@" | tee -a "$summary"; }
grant() {  # grant SHARE: sets `granted`, the seconds that the next part may take
  shares=$((shares + $1))
  granted=$((shares < limit ? shares - SECONDS : limit - SECONDS))
}
part() {  # part NAME LEAST COMMAND…: left out where fewer than LEAST seconds are granted
  local name=$1 least=$2 begin=$SECONDS code=0
  shift 2
  if ((granted < least)); then
    note "$name" "left out: $granted of at least $least seconds were left" 0
    return
  fi
  echo "== $name, at most $granted s"
  timeout --kill-after=5 "$granted" "$@" > "$output/$name.log" 2>&1 || code=$?
  case $code in
    0) rm "$output/$name.log"; note "$name" done $((SECONDS - begin)); return ;;
    124 | 137) note "$name" "cut off: its figures are of what it had done, see $name.log" $((SECONDS - begin)) ;;
    *) note "$name" "failed with $code, see $name.log" $((SECONDS - begin)); tail -n 3 "$output/$name.log" >&2 ;;
  esac
  failed=1
}
# replayed NAME LEAST SHAPE DTYPE OPTION…: no turn is started in the last seventh of the time
replayed() {
  part "$1" "$2" "$PYTHON" benchmarks/gpu/replay.py --shape "$3" --dtype "$4" --device "$device" --traces "$traces" \
    --databases "$scratch/databases" --seconds $((granted * 6 / 7)) --json "$output/$1.json" \
    --markdown "$output/$1.md" "${@:5}"
}

if [[ $device == cuda* ]]; then
  grant 50
  part lossless 20 "$PYTHON" benchmarks/lossless.py --device "$device" --steps dynamic captured \
    --seconds $((granted * 3 / 4)) --json "$output/lossless.json"
  grant 50
  part precision 20 "$PYTHON" benchmarks/precision.py --device "$device" --step captured --prompts 3 \
    --json "$output/precision.json"
  grant 150  # nothing is compiled here, so that nothing can keep it from coming to its end
  replayed "$shape-float16-captured" 60 "$shape" float16 --step captured \
    --methods transformers vanilla pld published hd-27 hd-64 hd-adaptive
  grant 190
  replayed "$shape-float16-compiled" 100 "$shape" float16 --step compiled \
    --methods transformers transformers-static vanilla hd-64 hd-adaptive
  grant 80
  free=$("$PYTHON" -c 'import torch; print(torch.cuda.mem_get_info()[0] // 10**9)')
  if [[ $shape != llama-2-7b ]]; then :
  elif ((free < 40)); then note llama-2-13b-float16-captured "left out: $free GB are free, it takes 40" 0
  else
    replayed llama-2-13b-float16-captured 60 llama-2-13b float16 --step captured \
      --methods transformers vanilla published hd-64 hd-adaptive
  fi
  grant 0
  replayed "$shape-bfloat16-captured" 50 "$shape" bfloat16 --step captured --methods transformers vanilla hd-64 hd-adaptive
else
  grant 60
  part lossless 10 "$PYTHON" benchmarks/lossless.py --device "$device" --steps dynamic static --seconds 30 \
    --json "$output/lossless.json"
  grant 90
  part precision 10 "$PYTHON" benchmarks/precision.py --device "$device" --prompts 1 --json "$output/precision.json"
  grant 200
  replayed "$shape-float32" 30 "$shape" float32
  note 'everything on a GPU' 'left out: none was at hand; these files prove the script and its accounting' 0
fi
echo "$output"
exit $failed
