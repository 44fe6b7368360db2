#!/bin/sh
# Prints every Secret that staging and production need, with new random passwords; nothing of it is kept.
#
#   deploy/kubernetes/secrets.sh whatsapp-qr | kubectl create -f -        (the argument is the namespace)
#
# `create`, not `apply`: what exists is left alone, because servers keep the passwords that they were given.
set -eu
[ $# = 1 ] || { echo "usage: $0 NAMESPACE" >&2; exit 2; }
namespace=$1

random() { openssl rand -hex 24; }
owner=$(random)
rows=$(random)
hash=$(random)
webhook=whsec_$(openssl rand -base64 32)

secret() { # name, type; the keys follow on standard input
    printf -- '---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  namespace: %s\ntype: %s\nstringData:\n' "$1" "$namespace" "$2"
    sed 's/^/  /'
}

# A broker user: name and password for its operator, the URL for the process.
user() { # name
    password=$(random)
    printf 'username: %s\npassword: "%s"\n' "$1" "$password"
    printf 'AMQP_URL: amqp://%s:%s@whatsapp-qr-rabbitmq:5672/\n' "$1" "$password"
}

database() { printf 'DATABASE_URL: postgresql://%s:%s@whatsapp-qr-postgres-rw:5432/whatsapp_qr\n' "$1" "$2"; }

{
    user whatsapp-qr-ingress
    database whatsapp_qr "$rows"
    printf 'API_KEYS: "%s"\nWEBHOOK_SECRET: %s\nLOG_HASH_KEY: "%s"\n' "$(random)" "$webhook" "$hash"
} | secret whatsapp-qr-ingress Opaque

for role in session-consumer conversation-consumer outbound-consumer; do
    {
        user "whatsapp-qr-$role"
        database whatsapp_qr "$rows"
        printf 'LOG_HASH_KEY: "%s"\n' "$hash"
    } | secret "whatsapp-qr-$role" Opaque
done

# The gateway signs its calls with it.
printf 'WEBHOOK_SECRET: %s\n' "$webhook" | secret whatsapp-qr-service Opaque

# The jobs, and whoever types commands.
database whatsapp_qr_owner "$owner" | secret whatsapp-qr-migrate Opaque
user whatsapp-qr-topology | secret whatsapp-qr-topology Opaque
{ user whatsapp-qr-operator && database whatsapp_qr "$rows"; } | secret whatsapp-qr-operator Opaque

keda=$(random)
printf 'username: whatsapp-qr-keda\npassword: "%s"\nhost: http://whatsapp-qr-keda:%s@whatsapp-qr-rabbitmq.%s.svc:15672/\n' \
    "$keda" "$keda" "$namespace" | secret whatsapp-qr-keda Opaque

printf 'username: whatsapp_qr_owner\npassword: "%s"\n' "$owner" | secret whatsapp-qr-postgres-owner kubernetes.io/basic-auth
printf 'username: whatsapp_qr\npassword: "%s"\n' "$rows" | secret whatsapp-qr-postgres-service kubernetes.io/basic-auth
