#!/bin/sh
# Installs a build into a new prefix and uses it as an outside project would: run.sh BUILD SOURCE CMAKE CC OPENCL
set -eu
build=$1 source=$2 cmake=$3 cc=$4 opencl=$5
here=$source/tests/package
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
prefix=$room/prefix

fail() {
    echo "FAILED: $*"
    exit 1
}
quietly() { "$@" >"$room/log" 2>&1 || { cat "$room/log" && fail "$*"; }; }
right() { [ "$("$@")" = right ] || fail "$*: the answer is wrong"; }

quietly "$cmake" --install "$build" --prefix "$prefix"
config=$(find "$prefix" -name clattn-config.cmake)
pc=$(find "$prefix" -name clattn.pc)
shared=$(find "$prefix" -name libclattn.so)
static=$(find "$prefix" -name libclattn.a)
[ -n "$config" ] || fail "clattn-config.cmake is not installed"
[ -n "$pc" ] || fail "clattn.pc is not installed"
[ -f "$prefix/include/clattn/clattn.h" ] || fail "clattn.h is not installed"
! grep -rq "$source" "$prefix/include" "$config" "$(dirname "$config")" "$pc" || fail "the source's path is installed"

# ---- find_package
use_cmake() { # target
    quietly "$cmake" -S "$here" -B "$room/$1" -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_C_COMPILER="$cc" \
        -DTARGET_NAME="clattn::$1"
    quietly "$cmake" --build "$room/$1"
    right "$room/$1/main"
    echo "find_package, clattn::$1: right"
}
use_cmake clattn
[ -z "$static" ] || use_cmake clattn_static

# ---- pkg-config
use_pkg_config() { # name, flags of pkg-config
    name=$1
    shift
    # shellcheck disable=SC2046
    quietly "$cc" -std=c11 "$here/main.c" -o "$room/$name" $(PKG_CONFIG_PATH=$(dirname "$pc") pkg-config --cflags --libs "$@" clattn)
    right env LD_LIBRARY_PATH="$(dirname "$pc")/.." "$room/$name"
    echo "pkg-config $*: right"
}
if command -v pkg-config >/dev/null; then
    PKG_CONFIG_PATH=$(dirname "$pc") pkg-config --exact-version=0.1.0 clattn || fail "clattn.pc has another version"
    use_pkg_config pc-shared
    if [ -n "$static" ]; then
        # only the archive is there, so -lclattn is it
        [ -z "$shared" ] || mv "$(dirname "$shared")"/libclattn.so* "$room"
        use_pkg_config pc-static --static
        ! ldd "$room/pc-static" | grep -q libclattn || fail "the static program needs libclattn.so"
        [ -z "$shared" ] || mv "$room"/libclattn.so* "$(dirname "$shared")"
    fi
else
    echo "SKIPPED: package: no pkg-config"
fi

# ---- what the shared library shows
if [ -n "$shared" ]; then
    nm -D --defined-only "$shared" | awk '{print $3}' | sed 's/@.*//' >"$room/names"
    ! grep -v '^clattn_[a-z]' "$room/names" || fail "libclattn.so exports these besides clattn_ names"
    grep -qx clattn_attention "$room/names" || fail "libclattn.so does not export clattn_attention"
    # every function of the headers, and none other
    cat "$prefix"/include/clattn/*.h | sed -n '/^ *CLATTN_API/s/.*[ *]\(clattn_[a-z_]*\)(.*/\1/p' | sort >"$room/declared"
    sort "$room/names" | diff "$room/declared" - || fail "declared (<) and exported (>) names differ"
    readelf -d "$shared" | grep -q 'SONAME.*\[libclattn.so.0\]' || fail "SONAME is not libclattn.so.0"
    ! readelf -d "$shared" | grep -q 'R.*PATH' || fail "libclattn.so was installed with an RPATH"
    echo "libclattn.so: $(wc -l <"$room/names") names"
fi

# ---- without OpenCL
if [ "$opencl" = 1 ]; then
    quietly "$cmake" -S "$source" -B "$room/none" -DCLATTN_OPENCL=OFF -DCLATTN_TESTS=OFF -DCLATTN_EXAMPLES=OFF \
        -DCLATTN_PROGRAM=OFF -DCLATTN_WERROR=ON -DCMAKE_C_COMPILER="$cc" -DCMAKE_C_FLAGS=-O1
    quietly "$cmake" --build "$room/none" --parallel 2
    quietly "$cmake" --install "$room/none" --prefix "$room/none-prefix"
    [ ! -e "$room/none-prefix/include/clattn/opencl.h" ] || fail "opencl.h is installed without OpenCL"
    prefix=$room/none-prefix
    room_of_none=$room/none-use
    quietly "$cmake" -S "$here" -B "$room_of_none" -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_C_COMPILER="$cc" \
        -DTARGET_NAME=clattn::clattn
    quietly "$cmake" --build "$room_of_none"
    right "$room_of_none/main"
    ! ldd "$room_of_none/main" | grep -q libOpenCL || fail "libOpenCL is linked with CLATTN_OPENCL=OFF"
    echo "without OpenCL: right"
fi
echo "package: good"
