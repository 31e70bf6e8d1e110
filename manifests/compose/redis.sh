#!/bin/sh
# Writes the one user down, then becomes Redis.
set -eu
umask 077
printf 'user default off\nuser horizon on >%s resetchannels &system:events &cache:invalidate ~presence:* ~ratelimit:* ~failures:* ~lockout:* ~cache:* +@all -@admin -@dangerous +info\n' \
    "$REDIS_PASSWORD" > /acl/users.acl
exec redis-server /etc/redis/redis.conf
