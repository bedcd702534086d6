#!/usr/bin/env bash
# A real SLURM cluster on one machine for tests: munged, slurmctld, accounting, two nodes with fake GPUs. Needs root and
# Debian's packages; no systemd. Each node has its own network, pids, mounts and host name, as machines have.
#
#   cluster.sh install            get the Debian packages that it needs
#   cluster.sh up | down          start (about 5 s) | stop everything and remove it
#   cluster.sh kill-node N        power failure: slurmd, steps and tasks of node N die at once
#   cluster.sh kill-slurmd N      only the daemon dies, the tasks go on
#   cluster.sh start-node N       start the node, or its daemon, again
#   cluster.sh exec N COMMAND...  run something on node N
#
# CLUSTER_DIR holds everything; SLURM_CONF=$CLUSTER_DIR/etc/slurm.conf is what clients need. Partitions: debug, and low,
# whose jobs are preempted by those of debug.
set -Eeuo pipefail
DIR=${CLUSTER_DIR:-${TMPDIR:-/tmp}/harness-slurm}
NAME=hs NET=198.51.100 NODES="node1 node2" CPUS=16 GPUS=8
CTL=6817 SLURMD=6818 DBD=6819
ETC=$DIR/etc LOG=$DIR/log RUN=$DIR/run
export PATH=$PATH:/usr/sbin:/sbin SLURM_CONF=$ETC/slurm.conf

die() { echo "cluster.sh: $*" >&2; exit 1; }
clean() { env -i PATH="$PATH" HOME=/root LANG=C.UTF-8 setsid "$@" </dev/null >>"$LOG/daemons.out" 2>&1; }
alive() { # PIDFILE WORD: is the process there, and does its command line hold the word?
  local pid; pid=$(cat "$1" 2>/dev/null) && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q -- "$2"
}
stop() { # PIDFILE WORD [SIGNAL]
  if alive "$1" "$2"; then
    kill -"${3:-TERM}" "$(cat "$1")" || true
    for _ in $(seq 100); do alive "$1" "$2" || break; sleep 0.1; done
    ! alive "$1" "$2" || kill -KILL "$(cat "$1")" || true
  fi
  rm -f "$1"
}
await() { # SECONDS COMMAND...
  local tries=$(($1 * 10)); shift
  for _ in $(seq "$tries"); do "$@" >/dev/null 2>&1 && return 0; sleep 0.1; done
  tail -n 20 "$LOG"/*.{out,log} >&2 || true; die "waited in vain for: $*"
}
ready() { [ "$(timeout 10 sinfo -h -N -p debug -o %t | grep -cE '^(idle|mix|alloc|comp)$')" = 2 ]; }
inside() { pgrep -P "$(cat "$RUN/$1.pid")" | head -n1; } # pid 1 of the node, as seen from outside
enter() { local pid; pid=$(inside "$1"); shift; nsenter -t "$pid" -m -u -n -p -- "$@"; }

install() {
  local rule=/usr/sbin/policy-rc.d own=
  [ -e $rule ] || { printf '#!/bin/sh\nexit 101\n' >$rule; chmod +x $rule; own=1; } # no package is to start a daemon
  local packages="slurmctld slurmd slurm-client munge slurmdbd slurm-wlm-mysql-plugin mariadb-server-core
    mariadb-client-core iproute2 util-linux procps" get="apt-get install -y -q --no-install-recommends"
  export DEBIAN_FRONTEND=noninteractive
  # shellcheck disable=SC2086
  $get $packages || { apt-get update -q && $get $packages; }
  [ -z "$own" ] || rm -f $rule
}
configure() {
  local i=0 n
  mkdir -p "$DIR"/{etc,log,run,state,spool,dev}
  for ((i = 0; i < GPUS; i++)); do ln -sfn /dev/null "$DIR/dev/nvidia$i"; done # slurmd wants character devices
  echo "Name=gpu File=$DIR/dev/nvidia[0-$((GPUS - 1))]" >"$ETC/gres.conf"
  printf '127.0.0.1 localhost\n%s %s\n' "$NET.254" "$(hostname -s)" >"$ETC/hosts"
  cat >"$ETC/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)($NET.254)
SlurmctldPort=$CTL
SlurmdPort=$SLURMD
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits cred_expire before it starts again: 120 s by default.
AuthInfo=socket=$RUN/munge.socket,cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$RUN/slurmctld.pid
SlurmdPidFile=$RUN/slurmd-%n.pid
SlurmctldLogFile=$LOG/slurmctld.log
SlurmdLogFile=$LOG/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=4000
GresTypes=gpu
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
MaxArraySize=${CLUSTER_MAX_ARRAY:-1001}
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=5
KillWait=5
MinJobAge=3600
EnforcePartLimits=ALL
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=$NET.254
AccountingStoragePort=$DBD
AccountingStoragePass=$RUN/munge.socket
AccountingStorageTRES=gres/gpu
CONF
  i=0
  for n in $NODES; do
    i=$((i + 1))
    echo "NodeName=$n NodeAddr=$NET.$i Sockets=1 CoresPerSocket=$CPUS RealMemory=64000 TmpDisk=100000 Gres=gpu:$GPUS" >>"$ETC/slurm.conf"
    echo "$NET.$i $n" >>"$ETC/hosts"
  done
  cat >>"$ETC/slurm.conf" <<CONF
PartitionName=debug Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF DefaultTime=60 MaxTime=INFINITE State=UP
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=15 DefaultTime=60 MaxTime=INFINITE State=UP
CONF
  cat >"$ETC/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$RUN/munge.socket
DbdHost=$(hostname -s)
DbdAddr=$NET.254
DbdPort=$DBD
SlurmUser=root
LogFile=$LOG/slurmdbd.log
PidFile=$RUN/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageUser=root
StorageLoc=slurm_acct
CONF
  chmod 600 "$ETC/slurmdbd.conf"
}
network() {
  local i=0 n
  ip link add "$NAME-br" type bridge; ip addr add "$NET.254/24" dev "$NAME-br"; ip link set "$NAME-br" up
  for n in $NODES; do
    i=$((i + 1))
    ip netns add "$NAME-$n"
    ip link add "$NAME-v$i" type veth peer name eth0 netns "$NAME-$n"
    ip link set "$NAME-v$i" master "$NAME-br" up
    ip -n "$NAME-$n" addr add "$NET.$i/24" dev eth0
    ip -n "$NAME-$n" link set lo up; ip -n "$NAME-$n" link set eth0 up
  done
}
database() {
  local options=(--no-defaults --datadir="$DIR/db" --user=root)
  mariadb-install-db "${options[@]}" --auth-root-authentication-method=normal --skip-test-db >>"$LOG/daemons.out" 2>&1
  setsid mariadbd "${options[@]}" --socket="$RUN/mysqld.sock" --pid-file="$RUN/mariadbd.pid" --skip-networking \
    --innodb-buffer-pool-size=64M --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900 \
    --performance-schema=off --log-error="$LOG/mariadbd.log" </dev/null >>"$LOG/daemons.out" 2>&1 &
  await 30 test -s "$RUN/mariadbd.pid" -a -S "$RUN/mysqld.sock"
  clean env MYSQL_UNIX_PORT="$RUN/mysqld.sock" SLURM_CONF="$SLURM_CONF" slurmdbd
  await 30 bash -c ": </dev/tcp/127.0.0.1/$DBD"
}
start_node() {
  local n=$1
  mkdir -p "$DIR/spool/$n"
  if ! alive "$RUN/$n.pid" unshare; then
    rm -f "$RUN/slurmd-$n.pid" "$RUN/$n.ready"
    # pid 1 of the node is a shell that reaps; with it every process of the node dies.
    env -i PATH="$PATH" HOME=/root LANG=C.UTF-8 setsid nsenter --net="/run/netns/$NAME-$n" \
      unshare --uts --mount --pid --fork --kill-child --mount-proc bash -c '
        set -e; hostname "$1"; mount --bind "$2/hosts" /etc/hosts; mount -t tmpfs tmpfs /dev/shm
        trap : TERM; : >"$3"; set +e; while :; do sleep 86400 & wait $!; done' \
      "$NAME-$n" "$n" "$ETC" "$RUN/$n.ready" </dev/null >>"$LOG/daemons.out" 2>&1 &
    echo $! >"$RUN/$n.pid"
    await 10 test -e "$RUN/$n.ready"
  fi
  clean nsenter -t "$(inside "$n")" -m -u -n -p -- slurmd -N "$n" -f "$ETC/slurm.conf"
}
down() {
  local n
  [ -d "$RUN" ] || return 0
  for n in $NODES; do stop "$RUN/$n.pid" unshare KILL; done
  stop "$RUN/slurmctld.pid" slurmctld; stop "$RUN/slurmdbd.pid" slurmdbd
  stop "$RUN/mariadbd.pid" mariadbd; stop "$RUN/munged.pid" munged
  for n in $NODES; do ip netns del "$NAME-$n" 2>/dev/null || true; done
  ip link del "$NAME-br" 2>/dev/null || true
  rm -rf "$DIR"
}
up() {
  down; configure; network
  (umask 077; head -c 1024 /dev/urandom >"$DIR/munge.key")
  clean munged --key-file="$DIR/munge.key" --socket="$RUN/munge.socket" --pid-file="$RUN/munged.pid" \
    --log-file="$LOG/munged.log" --seed-file="$DIR/munged.seed" --force
  database
  clean slurmctld -f "$ETC/slurm.conf"
  local n; for n in $NODES; do start_node "$n"; done
  await 30 ready
}

case "${1:-}" in
  install) install ;;
  up) up ;;
  down) down ;;
  kill-node) stop "$RUN/$2.pid" unshare KILL ;;
  kill-slurmd) nsenter -t "$(inside "$2")" -p -m -- kill -KILL "$(cat "$RUN/slurmd-$2.pid")" ;;
  start-node) start_node "$2" ;;
  exec) enter "${@:2}" ;;
  *) sed -n '2,16p' "$0"; exit 2 ;;
esac
