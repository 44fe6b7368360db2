#!/bin/sh
# Prints the Secrets of staging and production that are not there yet, with new random passwords; nothing of it is kept.
#
#   deploy/kubernetes/secrets.sh whatsapp-qr | kubectl create -f -        (the argument is the namespace)
#
# What exists is left alone, because servers keep the passwords that they were given, and what several Secrets share is
# read from it: so a second run fits the first, and a later release adds what it needs.
set -eu
[ $# = 1 ] || { echo "usage: $0 NAMESPACE" >&2; exit 2; }
namespace=$1

existing=$(kubectl -n "$namespace" get secrets -o name)
exists() { printf '%s\n' "$existing" | grep -qx "secret/$1"; }

homes='ingress service postgres-owner postgres-service'
found='' missing=''
for name in $homes; do
    exists "whatsapp-qr-$name" || missing="$missing whatsapp-qr-$name"
done
for name in $homes session-consumer conversation-consumer outbound-consumer migrate operator; do
    ! exists "whatsapp-qr-$name" || found="$found whatsapp-qr-$name"
done
[ -z "$found" ] || [ -z "$missing" ] || {
    echo "there is$found, but not$missing: what they share is not known. Restore those, or delete all of them." >&2
    exit 1
}

random() { openssl rand -hex 24; }
signing_key() { printf whsec_ && openssl rand -base64 32; }

# What several Secrets have in common: as it is, or new.
shared() { # the Secret that has it, key, what makes it
    exists "$1" || { "$3"; return; }
    kubectl -n "$namespace" get secret "$1" -o "go-template={{.data.$2 | base64decode}}"
}
owner=$(shared whatsapp-qr-postgres-owner password random)
rows=$(shared whatsapp-qr-postgres-service password random)
hash=$(shared whatsapp-qr-ingress LOG_HASH_KEY random)
webhook=$(shared whatsapp-qr-service WEBHOOK_SECRET signing_key)

# The operators see only Secrets with these labels, or see only in these that something changed.
broker=rabbitmq.com/topology-operator
postgres=cnpg.io/reload

secret() { # name, the label of who reads it besides its process, type; the keys follow on standard input
    if exists "$1"; then cat >/dev/null; return; fi
    printf -- '---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  namespace: %s\n' "$1" "$namespace"
    printf '  labels:\n    app.kubernetes.io/part-of: whatsapp-qr\n'
    [ -z "${2:-}" ] || printf '    %s: "true"\n' "$2"
    printf 'type: %s\nstringData:\n' "${3:-Opaque}"
    sed 's/^/  /'
}

# A broker user: name and password for its operator, the URL for the process.
user() { # name, host
    password=$(random)
    printf 'username: %s\npassword: "%s"\n' "$1" "$password"
    printf 'AMQP_URL: amqp://%s:%s@%s:5672/\n' "$1" "$password" "${2:-whatsapp-qr-rabbitmq}"
}

database() { printf 'DATABASE_URL: postgresql://%s:%s@whatsapp-qr-postgres-rw:5432/whatsapp_qr\n' "$1" "$2"; }

{
    user whatsapp-qr-ingress
    database whatsapp_qr "$rows"
    printf 'API_KEYS: "%s"\nWEBHOOK_SECRET: %s\nLOG_HASH_KEY: "%s"\n' "$(random)" "$webhook" "$hash"
} | secret whatsapp-qr-ingress "$broker"

for role in session-consumer conversation-consumer outbound-consumer; do
    {
        user "whatsapp-qr-$role"
        database whatsapp_qr "$rows"
        printf 'LOG_HASH_KEY: "%s"\n' "$hash"
    } | secret "whatsapp-qr-$role" "$broker"
done

# The gateway signs its calls with it.
printf 'WEBHOOK_SECRET: %s\n' "$webhook" | secret whatsapp-qr-service

# The jobs, and whoever types commands outside of the pods.
database whatsapp_qr_owner "$owner" | secret whatsapp-qr-migrate
user whatsapp-qr-topology | secret whatsapp-qr-topology "$broker"
{ user whatsapp-qr-operator && database whatsapp_qr "$rows"; } | secret whatsapp-qr-operator "$broker"

# Clients, in namespaces of their own.
for client in ai-worker event-subscriber; do
    user "$client" "whatsapp-qr-rabbitmq.$namespace.svc" | secret "$client" "$broker"
done

keda=$(random)
printf 'username: whatsapp-qr-keda\npassword: "%s"\nhost: http://whatsapp-qr-keda:%s@whatsapp-qr-rabbitmq.%s.svc:15672/\n' \
    "$keda" "$keda" "$namespace" | secret whatsapp-qr-keda "$broker"

printf 'username: whatsapp_qr_owner\npassword: "%s"\n' "$owner" |
    secret whatsapp-qr-postgres-owner "$postgres" kubernetes.io/basic-auth
printf 'username: whatsapp_qr\npassword: "%s"\n' "$rows" |
    secret whatsapp-qr-postgres-service "$postgres" kubernetes.io/basic-auth
