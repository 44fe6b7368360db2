#!/bin/sh
# Runs a command that finds RabbitMQ 4.0 and PostgreSQL 17 instead of this machine's servers.
#
#   newer-servers.sh COMMAND [ARGUMENT]...
#
# Both come from Debian 13 (trixie). They are installed once into .local/newer-servers, which takes about two minutes and
# needs root on Debian. The command runs in a mount namespace of its own, so no mount is left behind when it ends.
# rabbitmq.sh uses RABBITMQ_HOME and the `erl` that is first in PATH; postgres.sh uses POSTGRES_ROOT.
set -eu
[ $# -ge 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")/../.." && pwd)
root="$here/.local/newer-servers"

if [ ! -e "$root/.complete" ]; then
    "$here/deploy/local/setup.sh" newer
    mirror=$(sed -n 's/^URIs: *//p; s/^deb \(\[[^]]*\] \)*\([^ ]*\) .*/\2/p' /etc/apt/sources.list.d/debian.sources \
        /etc/apt/sources.list 2>/dev/null | head -n 1)
    [ -n "$mirror" ] || { echo "No Debian mirror in /etc/apt" >&2; exit 1; }
    rm -rf "$root"
    mkdir -p "$root"
    log=$(mktemp)
    echo "Installing: RabbitMQ 4.0 and PostgreSQL 17 into .local/newer-servers (debootstrap)"
    debootstrap --variant=minbase --include=rabbitmq-server,postgresql-17 trixie "$root" "$mirror" >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        echo "debootstrap could not install the servers; the whole log is $log" >&2
        exit 1
    }
    rm -f "$log"
    mkdir -p "$root/wrappers"
    for program in erl escript; do
        printf '#!/bin/sh\nexec chroot %s /usr/bin/env --chdir="$PWD" PATH=/usr/bin:/bin %s "$@"\n' "'$root'" "$program" \
            >"$root/wrappers/$program"
        chmod 755 "$root/wrappers/$program"
    done
    touch "$root/.complete"
fi

export NEWER_ROOT="$root" NEWER_REPOSITORY="$here"
# The single quotes are right: the inner shell expands the variables.
# shellcheck disable=SC2016
exec unshare --mount -- sh -eu -c '
    mount --rbind /proc "$NEWER_ROOT/proc"
    mount --rbind /dev "$NEWER_ROOT/dev"
    for file in passwd group; do mount --bind "/etc/$file" "$NEWER_ROOT/etc/$file"; done
    for folder in /tmp "${TMPDIR:-/tmp}" "$NEWER_REPOSITORY"; do
        mkdir -p "$NEWER_ROOT$folder"
        mount --bind "$folder" "$NEWER_ROOT$folder"
    done
    PATH="$NEWER_ROOT/wrappers:$PATH"
    RABBITMQ_HOME=$(echo "$NEWER_ROOT"/usr/lib/rabbitmq/lib/rabbitmq_server-*)
    POSTGRES_ROOT=$NEWER_ROOT
    export PATH RABBITMQ_HOME POSTGRES_ROOT
    unset NEWER_ROOT NEWER_REPOSITORY
    exec "$@"
' sh "$@"
