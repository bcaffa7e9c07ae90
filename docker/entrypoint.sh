#!/bin/sh
# For every NAME_FILE in the environment that points into the secrets' folder, sets NAME to that file's content, then runs
# the command: the convention of the PostgreSQL image, so that no secret stands in a container's own configuration.
# Only that folder: SSL_CERT_FILE and its like mean their file and are left alone.
set -eu

secrets=${AFFINERY_SECRETS:-/run/secrets}

for name in $(env | sed -n "s|^\([A-Z][A-Z0-9_]*\)_FILE=$secrets/.*|\1|p"); do
    eval "file=\$${name}_FILE"
    if [ ! -r "$file" ]; then
        echo "${name}_FILE names $file, which cannot be read. Is the secret given to this service?" >&2
        exit 1
    fi
    eval "$name=\$(cat \"\$file\")"
    # shellcheck disable=SC2163
    export "$name"
    unset "${name}_FILE"
done

exec "$@"
