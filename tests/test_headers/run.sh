#!/bin/sh
# Compiles each public header alone, as C and as C++, with every compiler that is there: run.sh SOURCE OPENCL COMPILER
set -eu
source=$1 opencl=$2 own=$3
here=$source/tests/test_headers
good=0 bad=0

compile() { # compiler language standard header
    if "$1" -x "$2" -std="$3" -Wall -Wextra -Wpedantic -Werror -Wshadow -fsyntax-only -I "$source/include" \
        "-DHEADER=<clattn/$4>" "$here/header.c"; then
        good=$((good + 1))
    else
        echo "FAILED: $1 -std=$3 <clattn/$4>"
        bad=$((bad + 1))
    fi
}

headers='status.h types.h clattn.h'
[ "$opencl" = 0 ] || headers="$headers opencl.h"
[ "$(cd "$source/include/clattn" && echo *)" = "clattn.h opencl.h status.h types.h" ] || {
    echo "FAILED: include/clattn holds other headers than are tested"
    bad=1
}
for header in $headers; do
    for compiler in "$own" gcc clang; do
        if ! command -v "$compiler" >/dev/null; then
            echo "SKIPPED: headers: no $compiler"
            continue
        fi
        for standard in c11 c17; do compile "$compiler" c "$standard" "$header"; done
    done
    for compiler in g++ clang++; do
        if ! command -v "$compiler" >/dev/null; then
            echo "SKIPPED: headers: no $compiler"
            continue
        fi
        for standard in c++11 c++17; do compile "$compiler" c++ "$standard" "$header"; done
    done
done
echo "headers: $good good, $bad bad"
[ "$bad" = 0 ] && [ "$good" -gt 0 ]
