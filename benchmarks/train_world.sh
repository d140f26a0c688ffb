#!/usr/bin/env bash
# Trains every network of the embedded world on one GPU in about ten minutes, the parts side by side:
#
#   bash benchmarks/train_world.sh WORK OUT [SECONDS]
#
# WORK takes pictures, checkpoints and logs, OUT the finished weights, SECONDS is for a denoiser (default 380).
# TINY=1 rehearses it on a CPU in a few minutes. A second call goes on from the checkpoints.
set -u
work=$1 out=$2 seconds=${3:-380}
python=${PYTHON:-python3} workers=${WORKERS:-13} candidates=${CANDIDATES:-"4 8"}
mkdir -p "$work/logs"
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1

part() { # part LOG ARGUMENTS...: one part of the training, its output in WORK/logs/LOG
	local log=$work/logs/$1 run
	shift
	run=("$python" -m immunebench.mini.train "$@" --work "$work" --out "$out")
	[ -z "${TINY:-}" ] || run+=(--device cpu --pictures 500 --least 500 --batch 8)
	# What cannot be captured as a CUDA graph is tried once without.
	"${run[@]}" >>"$log" 2>&1 || { [ ! -e "$work/chosen-$1" ] && IMMUNEBENCH_CUDA_GRAPH=0 "${run[@]}" >>"$log" 2>&1; } ||
		echo "failed: $*" >>"$work/logs/failed"
}
scaled() { if [ -n "${TINY:-}" ]; then echo 6; else echo "$1"; fi; }

part render render --workers "$workers" &
for c in $candidates; do
	part "vae-$c" vae --latents "$c" --seconds "$(scaled 100)" &
	vaes+=($!)
done
part vae-b vae --base mini-b --seconds "$(scaled 60)" --least 3000 &
vaes+=($!)
wait "${vaes[@]}"

for c in $candidates; do
	part "denoiser-$c" denoiser --latents "$c" --seconds "$(scaled "$seconds")" &
	eval "denoiser_$c=$!"
done
seen=()
for folder in "$work"/mini*/vae; do seen+=(--vae "$folder"); done
part reader reader "${seen[@]}" --seconds "$(scaled 80)" --least 8000

# The candidate that draws more of what its captions say goes on alone; both have seen about as many pictures.
folders=()
for c in $candidates; do folders+=("$work/mini-$c/pipeline"); done
"$python" -m immunebench.mini.training.check "${folders[@]}" --judges "$out/judges" --count "$(scaled 500)" \
	--json "$work/candidates.json" >"$work/logs/candidates" 2>&1
best=$("$python" - "$work/candidates.json" <<'PY'
import json, sys
found = {k: sum(v.values()) / len(v) for k, v in json.load(open(sys.argv[1])).items() if k != "rendered"}
print(max(found, key=found.get).split("/")[0].split("-")[-1])
PY
) || best=${candidates##* }
echo "$best" >"$work/best"
for c in $candidates; do
	process=denoiser_$c
	[ "$c" = "$best" ] || { touch "$work/chosen-denoiser"; pkill -P "${!process}"; wait "${!process}"; }
done
rm -f "$work/chosen-denoiser" # mini-b's may be tried twice again

part second second "${seen[@]}" --seconds "$(scaled 70)" --least 8000
part denoiser-b denoiser --base mini-b --seconds "$(scaled 50)" --least 3000
part public public --seconds "$(scaled 25)" &
part upscaler upscaler --seconds "$(scaled 25)" --workers "$workers" &
wait
"$python" -m immunebench.mini.training.check "$work/mini-$best/pipeline" --judges "$out/judges" --reader second \
	--count "$(scaled 1000)" --sheets --json "$work/drawn.json" >"$work/logs/drawn" 2>&1
touch "$work/finished"
