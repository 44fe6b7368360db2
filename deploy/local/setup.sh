#!/bin/sh
# Makes sure that this machine has what is named: venv, rabbitmq, postgresql. Does nothing for what is there.
#
#   setup.sh [venv] [rabbitmq] [postgresql]
#
# Missing system packages are installed by apt-get where this runs as root; no package may start a service of its own.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

has() {
    case "$1" in
    venv) command -v uv >/dev/null || python3 -c 'import ensurepip, venv' 2>/dev/null ;;
    rabbitmq) "$here/rabbitmq.sh" --installed 2>/dev/null ;;
    postgresql) "$here/postgres.sh" --installed 2>/dev/null ;;
    *) echo "$0: unknown part $1" >&2 && exit 2 ;;
    esac
}

package() {
    case "$1" in
    venv) echo python3-venv ;;
    rabbitmq) echo rabbitmq-server ;;
    postgresql) echo postgresql ;;
    esac
}

missing=
for part in "$@"; do
    has "$part" || missing="$missing $(package "$part")"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Missing:$missing. Type: sudo apt-get install$missing   (or what your system calls them)" >&2
    exit 1
fi

policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet=2
# shellcheck disable=SC2086 # several packages
apt-get install --quiet=2 --yes --no-install-recommends $missing

for part in "$@"; do
    has "$part" || { echo "$(package "$part") was installed, but is not usable" >&2; exit 1; }
done
