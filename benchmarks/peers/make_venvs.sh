#!/bin/sh
# One virtual environment per peer, beside the scripts; safe to repeat. Called by `make bench`.
# PYTHON and TORCH_INDEX_URL mean what they mean in the Makefile.
set -eu
cd "$(dirname "$0")"
PYTHON=${PYTHON:-python3}
# Empty stays empty on purpose: unquoted below, it is then no argument at all.
INDEX=${TORCH_INDEX_URL:+--extra-index-url $TORCH_INDEX_URL}

# make_venv NAME REQUIREMENT...: the stamp holds the requirements, so a changed list reinstalls.
make_venv() {
  name=$1
  shift
  stamp=.venv-$name/.installed
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$*" ]; then
    return
  fi
  echo "Installing the peer $name: $*"
  "$PYTHON" -m venv --clear ".venv-$name"
  # shellcheck disable=SC2086
  ".venv-$name/bin/python" -m pip install --disable-pip-version-check --quiet $INDEX "$@"
  echo "$*" >"$stamp"
}

# Gymnasium's version is left to Stable-Baselines3, which caps it.
make_venv sb3 torch==2.13.0 stable-baselines3==2.9.2 "gymnasium[classic-control,box2d]"
make_venv cleanrl torch==2.13.0 numpy==2.4.6 "gymnasium[classic-control]==1.4.0"
