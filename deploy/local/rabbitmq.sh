#!/bin/sh
# A private RabbitMQ node in the foreground: loopback only, without plugins, all its data under DIR.
#
#   rabbitmq.sh DIR PORT [DIST_PORT [EPMD_PORT]]      (default: PORT+1 and PORT+2)
#   rabbitmq.sh --installed                           (exit status 0 if this machine has a usable RabbitMQ)
#
# TERM or INT stops the node and its epmd. DIR/rabbitmqctl is a rabbitmqctl for this node.
set -eu

sbin=$(for bin in /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin /opt/rabbitmq/sbin /usr/local/sbin \
    "$(brew --prefix rabbitmq 2>/dev/null || true)/sbin" ${RABBITMQ_HOME:+"$RABBITMQ_HOME/sbin"}; do
    [ -x "$bin/rabbitmq-env" ] && echo "$bin"
done | tail -n 1)
version=$(ls -d "$sbin"/../plugins/rabbit-[0-9]* 2>/dev/null | sed 's/.*rabbit-\([0-9]*\.[0-9]*\).*/\1/' | tail -n 1)
case "$version" in
"" | [0-2].* | 3.[0-9])
    echo "RabbitMQ 3.10 or later is not installed: 'apt-get install rabbitmq-server', or set AMQP_URL" >&2
    exit 78
    ;;
esac
[ "${1:-}" != --installed ] || exit 0

[ $# -ge 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1/home" "$1/log"
dir=$(cd "$1" && pwd)
port=$2
dist_port=${3:-$((port + 1))}
epmd_port=${4:-$((port + 2))}
mark=$(printf %s "$dir" | cksum | cut -d ' ' -f 1)
epmd=$(command -v epmd || ls /usr/lib/erlang/erts-*/bin/epmd /usr/local/lib/erlang/erts-*/bin/epmd 2>/dev/null | tail -n 1)

# The variables of a surrounding node must not reach this one.
for name in $(env | sed -n 's/^\(RABBITMQ_[A-Z_]*\)=.*/\1/p'); do unset "$name"; done
unset NOTIFY_SOCKET

export HOME="$dir/home"
export ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT="$epmd_port"
# Not named after its port: the name is part of the data, and the port may change.
export RABBITMQ_NODENAME=whatsapp-qr@localhost
export RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT="$port" RABBITMQ_DIST_PORT="$dist_port"
export RABBITMQ_MNESIA_BASE="$dir/data" RABBITMQ_LOG_BASE="$dir/log" RABBITMQ_PID_FILE="$dir/rabbitmq.pid"
export RABBITMQ_CONFIG_FILE="$dir/rabbitmq.conf" RABBITMQ_ENABLED_PLUGINS_FILE="$dir/enabled_plugins"
export RABBITMQ_CONF_ENV_FILE="$dir/rabbitmq-env.conf" RABBITMQ_ADVANCED_CONFIG_FILE="$dir/advanced.config"
export RABBITMQ_GENERATED_CONFIG_DIR="$dir/config" RABBITMQ_LOG=-color
# The unknown flag names the node on its command line, so that a pid file can be believed.
export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1} -whatsapp_qr_node $mark"

echo '[].' >"$dir/enabled_plugins"
echo '[].' >"$dir/advanced.config"
: >"$dir/rabbitmq-env.conf"
cat >"$dir/rabbitmq.conf" <<CONF
listeners.tcp.1 = 127.0.0.1:$port
log.console = true
log.console.level = warning
log.file.level = info
max_message_size = 1048576
CONF
cat >"$dir/rabbitmqctl" <<CTL
#!/bin/sh
export HOME='$HOME' ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT=$epmd_port RABBITMQ_NODENAME=$RABBITMQ_NODENAME
export RABBITMQ_CONF_ENV_FILE='$RABBITMQ_CONF_ENV_FILE' RABBITMQ_LOG_BASE='$RABBITMQ_LOG_BASE'
exec '$sbin/rabbitmqctl' "\$@"
CTL
chmod 755 "$dir/rabbitmqctl"

is_our_node() {
    if [ -d /proc/self ]; then line=$(tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" || true); else line=$(ps -ww -o args= -p "$1" || true); fi
    case "$line" in *"-whatsapp_qr_node $mark "*) return 0 ;; *) return 1 ;; esac
}

# A node whose script was killed still holds the port and the data.
end_orphan() {
    orphan=$(cat "$RABBITMQ_PID_FILE" 2>/dev/null || true)
    if [ -n "$orphan" ] && is_our_node "$orphan"; then
        kill -TERM "$orphan"
        for _ in $(seq 100); do is_our_node "$orphan" || break; sleep 0.2; done
        ! is_our_node "$orphan" || kill -KILL "$orphan"
    fi
    rm -f "$RABBITMQ_PID_FILE"
}

stopping=
server_pid=
trap 'stopping=1; [ -z "$server_pid" ] || kill -TERM "$server_pid" 2>/dev/null || true' TERM INT HUP

end_orphan
"$epmd" -port "$epmd_port" -kill >/dev/null 2>&1 || true
[ -z "$stopping" ] || exit 0

# epmd as our own child, not as the daemon that outlives the node which started it.
"$epmd" -port "$epmd_port" -address 127.0.0.1 &
epmd_pid=$!
echo "$epmd_pid" >"$dir/epmd.pid"
cd "$dir" # where Erlang leaves its crash dumps
"$sbin/rabbitmq-server" &
server_pid=$!
[ -z "$stopping" ] || kill -TERM "$server_pid" 2>/dev/null || true

status=0
wait "$server_pid" || status=$?
while kill -0 "$server_pid" 2>/dev/null; do
    status=0
    wait "$server_pid" || status=$?
done
end_orphan # the server's own script may have been killed before its node
kill "$epmd_pid" 2>/dev/null || true
wait "$epmd_pid" 2>/dev/null || true
rm -f "$dir/epmd.pid"
[ -z "$stopping" ] || exit 0
exit "$status"
