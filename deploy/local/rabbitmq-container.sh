#!/bin/sh
# A private RabbitMQ in a container, in the foreground: reachable on loopback only, its data in a volume of its own.
#
#   rabbitmq-container.sh DIR PORT       (DIR names the container and its volume; DIR/container says how)
#   rabbitmq-container.sh --usable       (exit status 0 if a Docker engine answers)
#   rabbitmq-container.sh --remove DIR   (ends what a killed run left running; the data stays)
#
# TERM or INT stops the broker and removes the container; the volume stays.
set -eu

name_of() {
    echo "whatsapp-qr-$(printf %s "$1" | cksum | cut -d ' ' -f 1)"
}

case "${1:-}" in
--usable) command -v docker >/dev/null && timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; exit ;;
--remove) docker rm --force "$(name_of "$2")" >/dev/null 2>&1 || true; exit 0 ;;
esac
[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }

name=$(name_of "$1")
mkdir -p "$1"
echo "$name" >"$1/container"
docker rm --force "$name" >/dev/null 2>&1 || true
trap 'docker stop --time 20 "$name" >/dev/null 2>&1 || true' TERM INT HUP
# RabbitMQ keeps its data under its host name, so that is fixed.
docker run --rm --name "$name" --hostname whatsapp-qr --publish "127.0.0.1:$2:5672" \
    --env "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-rabbit max_message_size 1048576" \
    --volume "$name:/var/lib/rabbitmq" rabbitmq:4 &
client=$!
status=0
wait "$client" || status=$?
while kill -0 "$client" 2>/dev/null; do
    status=0
    wait "$client" || status=$?
done
exit "$status"
