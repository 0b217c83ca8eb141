#!/bin/sh
# Makes the secret that every host of a cluster shares, where there is none: readable by its owner
# only. `make token` calls it.   token.sh [FILE]
set -eu
file=${1:-.secrets/ray_token}
uid=$(id -u) gid=$(id -g)
# Containers run as user 1000; root's token is handed to that user, another user's containers run
# as that user (.env is read by compose).
if [ "$uid" -eq 0 ]; then owner=1000:1000; else owner=$uid:$gid; fi

if [ ! -s "$file" ]; then
  mkdir -p "$(dirname "$file")"
  chmod 700 "$(dirname "$file")"
  (umask 077 && od -An -tx1 -N32 /dev/urandom | tr -d ' \n' > "$file.new")
  mv "$file.new" "$file"
  echo "Made $file"
fi
chmod 600 "$file"
chown "$owner" "$file"
if [ "$uid" -ne 0 ] && [ "$uid" -ne 1000 ] && ! grep -qs '^QFLEET_UID=' .env; then
  printf 'QFLEET_UID=%s\nQFLEET_GID=%s\n' "$uid" "$gid" >> .env
  echo "Your user id, $uid, is in .env: the containers run as you and can read the token"
fi
