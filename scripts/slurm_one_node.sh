#!/usr/bin/env bash
# A SLURM cluster of this one machine, to try launch=slurm on: scripts/slurm_one_node.sh start|stop
# Debian or Ubuntu, as root: apt-get install slurm-wlm munge. Without systemd; its files are in /tmp/slurm_one_node.
set -euo pipefail
folder=/tmp/slurm_one_node
export SLURM_CONF=$folder/slurm.conf

start() {
  mkdir -p $folder/state $folder/spool
  cat >$SLURM_CONF <<CONF
ClusterName=one
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
NodeName=$(hostname) NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
  mkdir -p /run/munge && chown munge: /run/munge
  pgrep -x munged >/dev/null || runuser -u munge -- munged
  slurmctld -f $SLURM_CONF
  slurmd -f $SLURM_CONF
  echo "export SLURM_CONF=$SLURM_CONF"
}

stop() {
  kill "$(cat $folder/slurmd.pid)" "$(cat $folder/slurmctld.pid)" "$(cat /run/munge/munged.pid)"
}

"$@"
