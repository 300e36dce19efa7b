#!/usr/bin/env bash
# Two traders meet, by the command line: trade.sh 127.0.0.1:50050 nats://127.0.0.1:4222 [symbol]
#
# `matchbus` must be on the PATH: `. .venv/bin/activate`. A refusal or a failure ends the script, by the exit
# code of its command. Everything the script keeps is in a folder of its own and gone in the end.
set -euo pipefail
if (($# < 2)); then
    echo "usage: trade.sh 127.0.0.1:50050 nats://127.0.0.1:4222 [symbol]" >&2
    exit 2
fi
exchange=$1 nats=$2 symbol=${3:-AAPL}
XDG_CONFIG_HOME=$(mktemp -d)
export XDG_CONFIG_HOME
trap 'rm -rf "$XDG_CONFIG_HOME"' EXIT

# One field of the object on stdin; jq does the same where there is one.
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

run=$(date +%s)
maker=maker-$run taker=taker-$run
matchbus register "$maker" --engine 1 --exchange "$exchange" --nats "$nats"
matchbus register "$taker" --exchange "$exchange" --nats "$nats"

# An id of one's own makes a command safe to repeat: the second time it enters nothing.
for _ in 1 2; do
    quote=$(matchbus submit sell 10 "$symbol" 101.00 --context "$maker" --client-order-id quote --json)
    echo "quote is $(field status <<< "$quote"), again: $(field duplicate <<< "$quote")"
done
matchbus submit buy 4 "$symbol" 101.00 --ioc --context "$taker"
matchbus book "$symbol" --consolidated

if ! matchbus submit buy 0 "$symbol" 101.00 --context "$taker"; then echo "nobody buys nothing"; fi

matchbus cancel --client-order-id quote --context "$maker"
for name in "$maker" "$taker"; do matchbus fills --context "$name"; done
