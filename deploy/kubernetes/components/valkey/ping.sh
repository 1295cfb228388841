# Whether the server answers; not yet while it still loads.
set -eu
VALKEYCLI_AUTH=$(cat /run/valkey/operator)
export VALKEYCLI_AUTH
[ "$(valkey-cli --user operator --no-auth-warning -t 2 PING)" = PONG ]
