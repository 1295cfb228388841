# Gives each user the digest of its password, and becomes the server.
set -eu
umask 077
: "${CONFIGURATION:=/etc/valkey}" "${PASSWORDS:=/etc/bulkhead/valkey}" "${STATE:=/run/valkey}"

digest() {
  password=$(cat "$1")
  [ -n "$password" ] || { echo "$1 is empty" >&2; exit 1; }
  printf %s "$password" | sha256sum | cut -d ' ' -f 1
}

# The operator's is made anew at each start: only the probes use it.
head -c 32 /dev/urandom | sha256sum | cut -d ' ' -f 1 > "$STATE/operator"
operator=$(digest "$STATE/operator")
ratelimit=$(digest "$PASSWORDS/ratelimit/password")
app_proxy=$(digest "$PASSWORDS/app-proxy/password")
sed -e "s/@operator@/$operator/" -e "s/@ratelimit@/$ratelimit/" -e "s/@app_proxy@/$app_proxy/" \
  "$CONFIGURATION/users.acl" > "$STATE/users.acl"

exec valkey-server "$CONFIGURATION/valkey.conf"
