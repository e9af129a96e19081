#!/bin/sh
# Stands in for `apptainer exec [--nv] --bind A:B[,...] --pwd DIR IMAGE COMMAND...`, with a real
# container around the command: a root of its own, in which only IMAGE, a few folders of the system
# and what is bound are to be seen. Needs root. The "image" is the Python environment $IMAGE_HOLDS.
set -eu
[ "$1" = exec ] || exit 9
shift
case "$1" in --nv) echo "apptainer: --nv" >&2; shift ;; esac
[ "$1" = --bind ] && binds=$2 && [ "$3" = --pwd ] && folder=$4 && image=$5 || exit 9
shift 5
[ -f "$image" ] || { echo "FATAL: could not open image $image" >&2; exit 255; }
export binds folder image APPTAINER_CONTAINER="$image"
# shellcheck disable=SC2016
exec unshare --mount sh -c '
    set -eu
    root=$(mktemp -d)
    mount -t tmpfs none "$root"
    show() { if [ -e "$1" ]; then
        if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$(dirname "$root$2")"; touch "$root$2"; fi
        mount --rbind "$1" "$root$2"
    fi; }
    for place in /usr /etc /dev /proc /sys; do show $place $place; done
    for link in /bin /sbin /lib /lib64; do [ -L $link ] && cp -P $link "$root$link"; done
    mkdir "$root/tmp"
    OLD_IFS=$IFS; IFS=:
    for place in $IMAGE_HOLDS; do show "$place" "$place"; done
    IFS=,
    for bind in $binds; do show "${bind%%:*}" "$(echo "$bind" | cut -d: -f2)"; done
    IFS=$OLD_IFS
    exec chroot "$root" env --chdir="$folder" PATH="$IMAGE_PATH" "$@"
' sh "$@"
