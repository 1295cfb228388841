# Whether the server answers; not yet while it still loads.
set -eu
VALKEYCLI_AUTH=$(cat /run/valkey/operator)
export VALKEYCLI_AUTH
tls=/etc/bulkhead/tls
answer=$(valkey-cli --user operator --no-auth-warning -t 2 \
  --tls --cacert $tls/ca.crt --cert $tls/tls.crt --key $tls/tls.key PING)
[ "$answer" = PONG ]
