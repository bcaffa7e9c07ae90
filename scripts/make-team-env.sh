#!/bin/sh
# Writes .env for docker-compose.yml: .env.example with every empty secret filled with fresh random characters.
set -eu

cd "$(dirname "$0")/.."
if [ -e .env ]; then
    echo ".env is already there and is kept. Remove it for fresh secrets (the databases keep the old ones)." >&2
    exit 0
fi

umask 077
# Written aside and moved, so that an interrupted run leaves no .env with half its secrets.
trap 'rm -f .env.new' EXIT
while IFS= read -r line || [ -n "$line" ]; do
    case $line in
        \#* | '') printf '%s\n' "$line" ;;
        *=) printf '%s%s\n' "$line" "$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" ;;
        *) printf '%s\n' "$line" ;;
    esac
done <.env.example >.env.new
mv .env.new .env
echo "Wrote .env with fresh secrets. Next: docker compose up --build --detach" >&2
