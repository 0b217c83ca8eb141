#!/bin/sh
# qfleet-job COMMAND…: submits COMMAND as a Ray job (RAY_ADDRESS) and follows its log. When this
# script is stopped, the job is stopped first and has RAY_JOB_STOP_WAIT_TIME_S (of the head) to
# write its last checkpoint: a container that ends, ends its run in order.
# Exit code: 0 when the job succeeded or was stopped from here, else 1; summary.json says more.
set -eu
id="qfleet-$(date +%Y%m%d-%H%M%S)-$$"
stopped=
trap 'stopped=1; ray job stop "$id"' TERM INT HUP

ray job submit --submission-id "$id" -- "$@" &
follower=$!
code=0
wait "$follower" || code=$?
# A signal ends `wait` too, after its trap: then the job has ended, and its log comes to an end.
if [ -n "$stopped" ]; then wait "$follower" || true; code=0; fi
[ "$code" -eq 0 ] || code=1
exit "$code"
