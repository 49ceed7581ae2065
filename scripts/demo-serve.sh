#!/bin/sh
# Starts a server in the background for `make demo`, and prints the link of its page and how to stop it.
# Usage: demo-serve.sh CELLKEEP FOLDER. FOLDER holds the log and the process id, so that the next demo can stop this server.
set -eu
cellkeep=$1 folder=$2
log=$folder/serve.log pid_file=$folder/serve.pid

# Stop the server of an earlier demo, unless its process id now belongs to another program.
if [ -f "$pid_file" ]; then
    pid=$(cat "$pid_file")
    if grep -q cellkeep "/proc/$pid/cmdline" 2>/dev/null; then
        kill "$pid"
        while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
    fi
fi

# Set the token here, because the server shows a token that it creates only once.
token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
CELLKEEP_TOKEN=$token setsid "$cellkeep" serve --listen 127.0.0.1:0 >"$log" 2>&1 </dev/null &
pid=$!
echo "$pid" >"$pid_file"
until grep -q '^cellkeep serves ' "$log"; do
    if ! kill -0 "$pid" 2>/dev/null; then
        echo "demo: the server of the page did not start:" >&2
        cat "$log" >&2
        exit 0
    fi
    sleep 0.1
done
address=$(sed -n 's/^cellkeep serves //p' "$log" | sed 's/#.*//; s,/$,,')
cat <<EOF

The page is at   $address/#token=$token
Stop it with     kill $pid        (its sessions stay alive; \`$cellkeep serve\` continues them)
EOF
