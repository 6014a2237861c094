#!/bin/sh
# Copy the night books to the disk in the oil store. Runs at noon, when the batteries are full and Tomas is asleep.
set -eu
target=/mnt/oilstore/nightbooks
mountpoint -q /mnt/oilstore || { echo "the oil store's disk is not plugged in" >&2; exit 1; }
rsync --archive --delete-after --backup --backup-dir="$target/.old/$(date +%F)" /srv/nightbooks/ "$target/"
# Keep ninety days of what was overwritten. In 2022 thirty were not enough.
find "$target/.old" -mindepth 1 -maxdepth 1 -mtime +90 -exec rm -rf {} +
