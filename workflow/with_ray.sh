#!/usr/bin/env bash
# with_ray.sh COMMAND...: runs COMMAND. In a Slurm job of several nodes it first starts Ray on all of them, for a
# teacher whose vLLM engine reaches over nodes (`backend: ray`), and stops it behind COMMAND.
set -euo pipefail
# The Slurm executor hides all of SLURM_* but the job's number from commands that are not started with srun.
[ -n "${SLURM_JOB_ID:-}" ] || exec "$@"
list=${SLURM_JOB_NODELIST:-$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%N)}
mapfile -t nodes < <(scontrol show hostnames "$list")
[ "${#nodes[@]}" -gt 1 ] || exec "$@"

PATH=$(dirname "$1"):$PATH # Ray of the same Python environment
command -v ray >/dev/null || { echo "primekd: A job of ${#nodes[@]} nodes needs Ray: pip install ray." >&2; exit 1; }
# --overlap: the steps share the nodes with COMMAND. --cpu-bind and --mem: each may use all that the job has there.
step=(srun --overlap --cpu-bind=none --mem=0 --ntasks-per-node=1)
address=$("${step[@]}" --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 10000))
steps=()
stop_ray() {
    kill "${steps[@]}" 2>/dev/null || true
    wait "${steps[@]}" 2>/dev/null || true
}
trap stop_ray EXIT
"${step[@]}" --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" \
    ray start --block --head --port="$port" --node-ip-address="$address" --include-dashboard=false \
    --disable-usage-stats &
steps+=($!)
others=$((${#nodes[@]} - 1))
until ray status --address="$address:$port" >/dev/null 2>&1; do
    kill -0 "${steps[0]}" 2>/dev/null || { echo "primekd: Ray did not start on ${nodes[0]}: see above." >&2; exit 1; }
    sleep 1
done
"${step[@]}" --nodes="$others" --ntasks="$others" --exclude="${nodes[0]}" \
    ray start --block --address="$address:$port" &
steps+=($!)
for ((second = 0; second < ${RAY_PATIENCE:-300}; second++)); do
    joined=$(ray status --address="$address:$port" 2>/dev/null | grep -c ' node_' || true)
    [ "$joined" -lt "${#nodes[@]}" ] || break
    sleep 1
done
if [ "$joined" -lt "${#nodes[@]}" ]; then
    echo "primekd: Ray sees $joined of ${#nodes[@]} nodes after $second s: can they reach port $port of ${nodes[0]}?" >&2
    exit 1
fi
echo "with_ray.sh: Ray at $address:$port over ${nodes[*]}"
RAY_ADDRESS=$address:$port "$@"
