#!/usr/bin/env bash
# Runs a command inside a real Slurm of its own: two nodes on this machine's loopback, eight pretended GPUs each.
#
#   bash tests/slurm/start_slurm.sh sinfo
#   bash tests/slurm/start_slurm.sh bash          # a shell inside it: sbatch, squeue, scancel, primekd run --slurm
#
# Needs Debian's slurmd, slurmctld, slurm-client and munge. No service, no file outside a temporary folder; the daemons
# end with the command. There is no accounting database, as on many small clusters: sacct answers with an error.
# NODES (2), GPUS (8 a node) and CPUS (this machine's, for each node) can be set in the environment.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
nodes=${NODES:-2} gpus=${GPUS:-8} cpus=${CPUS:-$(nproc)}

for tool in munged slurmctld slurmd sinfo python3; do
    command -v "$tool" >/dev/null || { echo "start_slurm.sh: $tool is not installed." >&2; exit 3; }
done
[ $# -gt 0 ] || { echo "start_slurm.sh: give the command to run inside." >&2; exit 2; }

folder=$(mktemp -d /tmp/primekd-slurm.XXXXXX)
chmod 755 "$folder" # munge refuses a socket that others could not reach
mkdir -p "$folder/state" "$folder/log"
daemons=()
clean_up() {
    [ -f "$folder/ready" ] && SLURM_CONF=$folder/slurm.conf scancel --user="$(id -un)" 2>/dev/null && sleep 1
    for pid in "${daemons[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${daemons[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$folder"
}
trap clean_up EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

read -r -a ports < <(python3 - "$((nodes + 1))" <<'PY'
import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
for one in held:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in held))
PY
)

cat >"$folder/slurm.conf" <<CONF
ClusterName=loopback
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=sched_interval=2,batch_sched_delay=0
MinJobAge=300
KillWait=5
SlurmdParameters=config_overrides
CONF
for ((i = 1; i <= nodes; i++)); do
    echo "NodeName=node$i NodeAddr=127.0.0.1 NodeHostname=$(hostname -s) Port=${ports[i]} CPUs=$cpus RealMemory=1000000 Gres=gpu:$gpus"
done >>"$folder/slurm.conf"
echo "PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP" >>"$folder/slurm.conf"
for ((i = 0; i < gpus; i++)); do touch "$folder/gpu$i"; done # without a file each, Slurm counts none
echo "Name=gpu File=$folder/gpu[0-$((gpus - 1))]" >"$folder/gres.conf"

dd if=/dev/urandom of="$folder/munge.key" bs=1024 count=1 status=none
chmod 600 "$folder/munge.key"
munged --foreground --force --socket "$folder/munge.socket" --key-file "$folder/munge.key" --num-threads 2 \
    --log-file "$folder/log/munged.log" --pid-file "$folder/munged.pid" --seed-file "$folder/munged.seed" \
    --origin 127.0.0.1 >"$folder/log/munged.out" 2>&1 &
daemons+=($!)
for _ in $(seq 50); do [ -S "$folder/munge.socket" ] && break; sleep 0.1; done

export SLURM_CONF=$folder/slurm.conf
# The executor hides SLURM_CONF, as all of SLURM_*, from what a job starts; real clusters have /etc/slurm/slurm.conf.
# Each call of sbatch is written to SBATCH_LINES where that is set, for the tests to read.
mkdir "$folder/bin"
for tool in sbatch squeue scancel scontrol sinfo srun; do
    {
        echo '#!/usr/bin/env bash'
        [ "$tool" = sbatch ] && echo '[ -z "${SBATCH_LINES:-}" ] || printf "sbatch %s\n" "$*" >>"$SBATCH_LINES"'
        echo "SLURM_CONF=$SLURM_CONF exec $(command -v "$tool") \"\$@\""
    } >"$folder/bin/$tool"
done
chmod 755 "$folder/bin"/*
export PATH=$folder/bin:$PATH

slurmctld -D -i -f "$SLURM_CONF" >"$folder/log/slurmctld.log" 2>&1 &
daemons=($! "${daemons[@]}")
for ((i = 1; i <= nodes; i++)); do
    slurmd -D -N "node$i" -f "$SLURM_CONF" >"$folder/log/node$i.log" 2>&1 &
    daemons=($! "${daemons[@]}")
done
for _ in $(seq 150); do
    if [ "$(sinfo --noheader --states=idle --format=%D 2>/dev/null | head -1)" = "$nodes" ]; then
        touch "$folder/ready"
        break
    fi
    sleep 0.2
done
if [ ! -f "$folder/ready" ]; then
    echo "start_slurm.sh: Slurm did not come up; its logs:" >&2
    tail -n 15 "$folder"/log/* >&2
    exit 4
fi
"$@" # not exec: the trap cleans up behind it
