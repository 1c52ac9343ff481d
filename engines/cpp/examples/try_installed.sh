#!/bin/sh
# Builds the examples against an installed library, as another project would: with find_package and with pkg-config.
# usage: try_installed.sh PREFIX FOLDER
set -eu
prefix=$(cd "$1" && pwd) here=$(cd "$(dirname "$0")" && pwd)
cmake -S "$here" -B "$2" -G Ninja -DCMAKE_PREFIX_PATH="$prefix" > /dev/null
cmake --build "$2" > /dev/null
PKG_CONFIG_PATH=$prefix/lib/pkgconfig
export PKG_CONFIG_PATH
# pkg-config's output is meant to be split into words
# shellcheck disable=SC2046
cc -std=c11 -Wall -Wextra -Werror "$here/embed_c.c" -o "$2/embed_pkg_config" $(pkg-config --cflags --libs r2mrf_deploy) \
  -Wl,-rpath,"$prefix/lib"
artifact=$(dirname "$2")/cpp/tests/artifacts/weighted.onnx
"$2/embed" "$artifact" "$2/map.pgm"
"$2/embed_c" "$artifact"
"$2/embed_pkg_config" "$artifact"
# two frames, and a map of one byte for each pixel
head -c 24576 /dev/urandom | "$2/camera" "$artifact" 64 64 "$2/maps.gray"
test "$(wc -c < "$2/maps.gray")" -eq 8192
