#!/bin/sh
# Starts a Slurm cluster of one node on this machine, for tests: munged, slurmctld and slurmd, without cgroups and
# without accounting. Debian: apt-get install slurm-wlm munge; run it as root.
#
#     sh benchmarks/slurm_here.sh start FOLDER      # then: export SLURM_CONF=FOLDER/slurm.conf
#     sh benchmarks/slurm_here.sh stop FOLDER
#
# FOLDER holds configuration, key, state and logs. It must not be on a path that others may write to, or munge refuses.
set -eu
what=${1:?start or stop}
mkdir -p "${2:?a folder}"
folder=$(cd "$2" && pwd)

stop() {
    for name in slurmd slurmctld munged; do
        if [ -f "$folder/$name.pid" ]; then
            kill "$(cat "$folder/$name.pid")" 2>/dev/null || true
            rm -f "$folder/$name.pid"
        fi
    done
}

if [ "$what" = stop ]; then
    stop
    exit
fi

mkdir -p "$folder/state" "$folder/spool"
chmod 700 "$folder"
[ -f "$folder/munge.key" ] || (umask 077 && head -c 128 /dev/urandom > "$folder/munge.key")
host=$(hostname -s)
node=$(slurmd -C | sed -n 's/^NodeName=[^ ]* \(CPUs=.*\)$/\1/p')

# Requeued jobs start when the credentials of the first time have expired: soon, for tests.
# A job that does not end on SIGTERM gets SIGKILL after KillWait.
cat > "$folder/slurm.conf" <<END
ClusterName=here
SlurmctldHost=$host
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
JobRequeue=1
KillWait=3
ReturnToService=2
NodeName=$host $node State=UNKNOWN
PartitionName=here Nodes=$host Default=YES MaxTime=INFINITE State=UP
END
# Slurm 22.05 and older initialise one of the two plugins even where nothing uses it; newer ones know "disabled".
cgroups=disabled
if [ "$(slurmd -V | sed 's/[^0-9]*\([0-9]*\).*/\1/')" -lt 23 ]; then
    cgroups=cgroup/v1
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then cgroups=cgroup/v2; fi
fi
echo "CgroupPlugin=$cgroups" > "$folder/cgroup.conf"

stop
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
SLURM_CONF="$folder/slurm.conf"
export SLURM_CONF
slurmctld
slurmd
for _ in 1 2 3 4 5 6 7 8 9 10; do
    if [ "$(sinfo -h -o %T 2>/dev/null)" = idle ]; then
        echo "export SLURM_CONF=$folder/slurm.conf"
        exit
    fi
    sleep 1
done
sinfo || true
tail -n 5 "$folder/slurmctld.log" "$folder/slurmd.log" >&2
exit 1
