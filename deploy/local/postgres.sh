#!/bin/sh
# A private PostgreSQL cluster in the foreground: loopback only, user postgres without a password, data under DIR.
#
#   postgres.sh DIR PORT
#   postgres.sh --installed      (exit status 0 if this machine has the server programs)
#
# PostgreSQL refuses to run as root: then it runs as user postgres, who must be able to reach DIR. With POSTGRES_ROOT the
# programs of that folder run, with it as their root directory (see newer-servers.sh).
set -eu

root=${POSTGRES_ROOT:-}
bin=$(for candidate in "$(dirname "$(command -v postgres || echo /none/postgres)")" \
    $(ls -d "$root"/usr/lib/postgresql/*/bin "$root"/usr/pgsql-*/bin 2>/dev/null | sort -V); do
    candidate=${candidate#"$root"}
    [ -x "$root$candidate/postgres" ] && [ -x "$root$candidate/initdb" ] && echo "$candidate"
done | tail -n 1)
if [ -z "$bin" ]; then
    echo "The PostgreSQL server programs are not installed: 'apt-get install postgresql', or set DATABASE_URL" >&2
    exit 78
fi
[ "${1:-}" != --installed ] || exit 0

[ $# -eq 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
port=$2

as_owner=
if [ "$(id -u)" = 0 ]; then
    id postgres >/dev/null 2>&1 || { echo "User postgres is missing: 'apt-get install postgresql'" >&2; exit 78; }
    chown postgres: "$dir"
    as_owner="setpriv --reuid=postgres --regid=postgres --init-groups --"
    [ -z "$root" ] || as_owner="chroot --userspec=$(id -u postgres):$(id -g postgres) $root"
    $as_owner test -x "$dir" || { echo "User postgres cannot reach $dir: choose a folder under /tmp" >&2; exit 78; }
fi
cd "$dir"

if [ ! -d data ]; then
    rm -rf data.new
    $as_owner "$bin/initdb" --pgdata="$dir/data.new" --username=postgres --auth=trust --encoding=UTF8 --locale=C \
        --no-instructions >initdb.log 2>&1 || { cat initdb.log >&2; exit 1; }
    mv data.new data
fi
# A postmaster whose script was killed still holds the port and the data.
if $as_owner "$bin/pg_ctl" --pgdata="$dir/data" status >/dev/null 2>&1; then
    $as_owner "$bin/pg_ctl" --pgdata="$dir/data" --mode=fast --wait stop >/dev/null 2>&1 || true
fi

$as_owner "$bin/postgres" -D "$dir/data" -p "$port" -c listen_addresses=127.0.0.1 -c unix_socket_directories= \
    -c max_connections=200 &
server_pid=$!
# INT is the fast shutdown; TERM would wait until the last client has left.
trap 'kill -INT "$server_pid" 2>/dev/null || true' TERM INT HUP
status=0
wait "$server_pid" || status=$?
while kill -0 "$server_pid" 2>/dev/null; do
    status=0
    wait "$server_pid" || status=$?
done
exit "$status"
