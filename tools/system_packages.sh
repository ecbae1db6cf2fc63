#!/bin/sh
# Makes sure that the system has what pip cannot install: `rendering` (OpenGL without a screen) or `browser`.
# As root on Debian or Ubuntu it installs; anywhere else it says in one line what to type, and fails.
set -eu

loads() { "${PYTHON:-python3}" -c "import ctypes, sys; ctypes.CDLL(sys.argv[1])" "$1" 2>/dev/null; }

case "$1" in
rendering)
    [ "$(uname)" = Linux ] || exit 0 # macOS renders with what it has
    { loads libEGL.so.1 && loads libGL.so.1; } && exit 0
    what="OpenGL without a screen"
    packages="libegl1 libgl1 libgl1-mesa-dri libgles2"
    optional="libosmesa6"
    ;;
browser)
    for browser in chromium chromium-browser google-chrome; do
        command -v "$browser" >/dev/null && exit 0
    done
    what="Chromium (tests look at the report in it)"
    packages="chromium chromium-driver"
    optional=""
    ;;
*)
    echo "usage: $0 rendering|browser" >&2
    exit 2
    ;;
esac

if ! command -v apt-get >/dev/null; then
    echo "$what is missing: install it with this system's package manager (Debian calls it: $packages)" >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    echo "$what is missing. Type: sudo apt-get update && sudo apt-get install -y $packages" >&2
    exit 1
fi
echo "Installing $what: $packages"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
for package in $optional; do # newer releases have dropped it
    if apt-cache show "$package" >/dev/null 2>&1; then packages="$packages $package"; fi
done
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $packages >/dev/null
