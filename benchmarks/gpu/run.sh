#!/usr/bin/env bash
# Correctness and speed on one GPU, in under ten minutes, with no network. Whenever it ends, what came before stands.
#
#   benchmarks/gpu/run.sh --traces FOLDER [--output FOLDER] [--seconds 555] [--parts 'PART …']
#   benchmarks/gpu/run.sh --traces FOLDER --device cpu --shape tiny     # tries the script itself, where there is no GPU
#
# FOLDER holds the trace, the generations and the corpus, see tools/pack_replay.py. $PYTHON must have what the package
# needs; the package itself is run from src/. docs/gpu.md says what the parts are, and what is written.
set -uo pipefail
project=$(cd "$(dirname "$0")/../.." && pwd)
traces='' device=cuda shape=llama-2-7b output='' limit=555 asked=''
usage() { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
while (($#)); do
  [[ $# -ge 2 ]] || usage
  case $1 in
    --traces) traces=$2 ;; --device) device=$2 ;; --shape) shape=$2 ;; --output) output=$2 ;; --seconds) limit=$2 ;;
    --parts) asked=$2 ;;
    *) usage ;;
  esac
  shift 2
done
[[ -n $traces ]] || usage
[[ -d $traces ]] || { echo "there is no folder $traces" >&2; exit 2; }
[[ $limit =~ ^[0-9]+$ ]] || { echo "--seconds takes a whole number, not $limit" >&2; exit 2; }
case $shape in
  tiny) dtype=float32 others='tiny-grouped' turns=6 tokens=48 prompts=1 ;;
  llama-2-7b) dtype=float16 others='llama-3-8b qwen3-8b llama-2-13b' turns=24 tokens=256 prompts=3 ;;
  *) dtype=float16 others='' turns=40 tokens=128 prompts=3 ;;
esac
known="machine steps replay lossless lossless-experts precision exact exact-bfloat16 exact-replay $others bfloat16 compiled"
drafts=$([[ -n $asked ]] || echo yes)
for name in $asked; do
  [[ " $known " == *" $name "* ]] || { echo "no part $name: there are $known" >&2; exit 2; }
  [[ $name == machine || $name == steps ]] || drafts=yes
done
traces=$(cd "$traces" && pwd)
output=${output:-$project/benchmarks/results/gpu-$device-$shape}
mkdir -p "$output" || exit 2
output=$(cd "$output" && pwd)
cd "$project" || exit 2
if [[ -z ${PYTHON:-} ]]; then PYTHON=python3; [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python; fi
export PYTHONPATH="$project/src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
"$PYTHON" -c 'from importlib.util import find_spec as f
import sys; sys.exit(not all(map(f, "torch transformers numba safetensors huggingface_hub typer rich".split())))' ||
  { echo "$PYTHON lacks what the package needs: name another one in PYTHON" >&2; exit 2; }

# All that is written, eight files in one folder: records of JSON, each replaced whole, and text.
log=$output/log.txt replays=$output/replays.json
rm -f "$output"/{machine,replays,lossless,precision}.json "$output"/{parts.tsv,profile.txt,summary.md}
printf 'benchmarks/gpu/%s on %s, %s\n' "${0##*/}" "$device" "$shape" > "$log"
scratch=$(mktemp -d)
trap 'kill $(jobs -p) 2> /dev/null; rm -rf "$scratch"' EXIT
trap 'exit 143' TERM INT

# Drafting kernels and databases take a minute of one core: beside the parts that need none.
databases=$scratch/databases
if [[ -n $drafts ]]; then
  { timeout 240 "$PYTHON" -m hdraft.drafting.compile_kernels 32000 --all &&
    timeout 240 "$PYTHON" benchmarks/gpu/recorded.py "$traces" "$databases"; } >> "$log" 2>&1 &
  drafting=$!
fi

# Each part has a share of the time, and what those before it left of theirs.
shares=0 failed=0
declare -A running=() began=()
note() { printf '%s\t%s\t%s\n' "$@" >> "$output/parts.tsv"; printf '%s: %s, %s s\n' "$@" | tee -a "$log"; }
summary() { "$PYTHON" benchmarks/gpu/summary.py "$output" >> "$log" 2>&1; }
grant() {  # grant SHARE: sets `granted`, the seconds that the next parts may take
  shares=$((shares + $1))
  granted=$((shares < limit ? shares - SECONDS : limit - SECONDS))
}
start() {  # start NAME LEAST COMMAND…: left out where fewer than LEAST seconds are granted
  local name=$1 least=$2
  shift 2
  [[ -z $asked || " $asked " == *" $name "* ]] || return 0
  if ((granted < least)); then
    note "$name" "left out: $granted of at least $least seconds were left" 0
    return
  fi
  echo "== $name, at most $granted s"
  began[$name]=$SECONDS
  timeout --kill-after=5 "$granted" "$@" > >(sed -u -e '5000q' -e "s/^/$name: /" >> "$log"; cat > /dev/null) 2>&1 &
  running[$name]=$!
}
finish() {  # finish NAME…: waits for them, and writes what there is
  local name code
  for name in "$@"; do
    [[ -n ${running[$name]:-} ]] || continue
    code=0
    wait "${running[$name]}" || code=$?
    unset "running[$name]"
    case $code in
      0) note "$name" done $((SECONDS - began[$name])); continue ;;
      124 | 137) note "$name" 'cut off: its figures are of what it had done' $((SECONDS - began[$name])) ;;
      *) note "$name" "failed with $code, see log.txt" $((SECONDS - began[$name])); grep "^$name: " "$log" | tail -n 3 >&2 ;;
    esac
    failed=1
  done
  summary
}
part() { start "$@"; finish "$1"; }
# replayed NAME LEAST SHAPE DTYPE STEP OPTION…: no turn is started in the last seventh of the time
replayed() {
  part "$1" "$2" "$PYTHON" benchmarks/gpu/replay.py --shape "$3" --dtype "$4" --step "$5" --device "$device" \
    --traces "$traces" --databases "$databases" --seconds $((granted * 6 / 7)) --json "$replays" --tokens "$tokens" "${@:6}"
}

grant 20
part machine 4 "$PYTHON" benchmarks/gpu/memory.py --device "$device" --json "$output/machine.json"
grant 45
part steps 10 "$PYTHON" benchmarks/gpu/sizes.py --shape "$shape" --dtype "$dtype" --device "$device" \
  --json "$replays" --profile "$output/profile.txt"
if [[ -n $drafts ]]; then
  code=0
  wait "$drafting" || code=$?
  note 'kernels and databases' "$( ((code)) && echo "failed with $code: made in each part anew" || echo ready)" "$SECONDS"
fi
grant 200
replayed replay 30 "$shape" "$dtype" captured --turns "$turns" --plain-turns 3 \
  --methods vanilla hd-63 hd-adaptive pld published transformers
grant 110  # beside each other: no figure of theirs is a time
start lossless 10 "$PYTHON" benchmarks/lossless.py --families dense --device "$device" --steps dynamic captured \
  --seconds $((granted * 6 / 7)) --json "$output/lossless.json"
start lossless-experts 10 "$PYTHON" benchmarks/lossless.py --families experts --device "$device" \
  --steps dynamic captured --seconds $((granted * 6 / 7)) --json "$output/lossless.json"
start precision 10 "$PYTHON" benchmarks/precision.py --device "$device" --step captured --prompts "$prompts" \
  --json "$output/precision.json"
if [[ $device == cuda* ]]; then
  start exact 30 "$PYTHON" benchmarks/gpu/exact.py --shape "$shape" --dtype "$dtype" --tokens 48 \
    --seconds $((granted * 6 / 7)) --json "$output/precision.json"
  sharing=${others%% *}
  start exact-bfloat16 30 "$PYTHON" benchmarks/gpu/exact.py --shape "${sharing:-$shape}" --dtype bfloat16 --tokens 48 \
    --seconds $((granted * 6 / 7)) --json "$output/precision.json"
fi
finish lossless lossless-experts precision exact exact-bfloat16
if [[ $device == cuda* ]]; then
  grant 60
  replayed exact-replay 40 "$shape" "$dtype" exact --turns "$turns" --methods vanilla hd-63
fi
for other in $others; do
  grant 55
  longer=4000
  [[ $other == llama-2-* ]] && longer=''
  # shellcheck disable=SC2086  # no words where there is no longer text
  replayed "$other" 30 "$other" "$dtype" captured --turns "$turns" --methods vanilla hd-63 --cached 512 $longer
done
if [[ $device == cuda* ]]; then
  grant 50
  replayed bfloat16 40 "$shape" bfloat16 captured --turns "$turns" --methods vanilla hd-63
  grant 0
  replayed compiled 100 "$shape" "$dtype" compiled --turns "$turns" --methods vanilla hd-63 hd-adaptive
else
  note 'everything on a GPU' 'left out: none was at hand; these files prove the script and its accounting' 0
fi
summary
echo "$output"
exit $failed
