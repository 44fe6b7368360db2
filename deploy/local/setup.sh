#!/bin/sh
# Installs the named parts that this machine lacks: venv, rabbitmq, postgresql, chromium, prometheus (only promtool),
# newer (the tools of newer-servers.sh), image (the tools of `make imagetest`).
#
#   setup.sh [venv] [rabbitmq] [postgresql] [chromium] [prometheus] [newer] [image]
#
# Missing system packages are installed by apt-get where this runs as root; no package may start a service of its own.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

has() {
    case "$1" in
    venv) command -v uv >/dev/null || python3 -c 'import ensurepip, venv' 2>/dev/null ;;
    rabbitmq) "$here/rabbitmq.sh" --installed 2>/dev/null ;;
    postgresql) "$here/postgres.sh" --installed 2>/dev/null ;;
    chromium) chromium --version >/dev/null 2>&1 || google-chrome --version >/dev/null 2>&1 ;;
    prometheus) promtool --version >/dev/null 2>&1 ;;
    newer) { command -v debootstrap && command -v unshare; } >/dev/null ;;
    image) { command -v buildah && command -v debootstrap && command -v bwrap; } >/dev/null ;;
    *) echo "$0: unknown part $1" >&2 && exit 2 ;;
    esac
}

package() {
    case "$1" in
    venv) echo python3-venv ;;
    rabbitmq) echo rabbitmq-server ;;
    postgresql) echo postgresql ;;
    chromium) echo chromium ;;
    prometheus) echo prometheus ;;
    newer) echo debootstrap util-linux ;;
    image) echo buildah debootstrap bubblewrap ;;
    esac
}

# Of Prometheus only promtool is wanted: the package would bring a server that starts with the machine.
promtool_alone() {
    folder=$(mktemp -d) &&
        (cd "$folder" && apt-get download -o APT::Sandbox::User=root prometheus &&
            dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool &&
            install -D usr/bin/promtool /usr/local/bin/promtool) &&
        rm -rf "$folder"
}

case " $* " in *" venv "*)
    if ! command -v uv >/dev/null && command -v python3 >/dev/null; then
        python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "$(python3 --version) is too old: install Python 3.11 or later, or uv, which brings its own" >&2
            exit 1
        }
    fi
    ;;
esac

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
log=$(mktemp)
forget=$log
trap 'rm -f $forget' EXIT
trap 'exit 130' INT TERM
if [ ! -e "$policy" ] || grep -qs "of whatsapp-qr" "$policy"; then # ours, of a run that was killed
    forget="$log $policy"
    printf '#!/bin/sh\n# of whatsapp-qr: no package starts a service while it installs\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
echo "Installing:$missing (apt-get)"
wanted=
for name in $missing; do [ "$name" = prometheus ] || wanted="$wanted $name"; done
# shellcheck disable=SC2086 # several packages
{
    apt-get update && apt-get install --yes --no-install-recommends $wanted &&
        { [ "$wanted" = "$missing" ] || promtool_alone; }
} >"$log" 2>&1 </dev/null || {
    tail -n 20 "$log" >&2
    echo "apt-get could not install:$missing" >&2
    exit 1
}

for part in "$@"; do
    has "$part" || { echo "$(package "$part") was installed, but is not usable" >&2; exit 1; }
done
