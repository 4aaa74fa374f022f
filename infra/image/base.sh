#!/usr/bin/env bash
# Usage: infra/image/base.sh FOLDER VERSION SUITE
# Makes what stands in for the image python:VERSION-slim-SUITE where no registry can be reached: a minimal Debian from the
# mirror that apt uses here, with this machine's Python of that version in /usr/local, where the real one has its own.
set -euo pipefail

FOLDER=$1 VERSION=$2 SUITE=$3
# What the interpreter and its standard library load, and what the real image has besides.
PACKAGES=ca-certificates,netbase,tzdata,libbz2-1.0,libexpat1,libffi8,liblzma5,libncursesw6,libreadline8,libsqlite3-0,libssl3,libuuid1,zlib1g

stop() {
  printf 'failed  %s\n' "$1" >&2
  exit 1
}

# Debian's own Python has no ensurepip, so it could make no virtual environment in the image.
interpreter() {
  local candidate
  for candidate in "python$VERSION" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$VERSION".*/"bin/python$VERSION"; do
    if "$candidate" -c 'import ensurepip, sqlite3, ssl' 2>/dev/null; then
      "$candidate" -c 'import sys; print(sys.base_prefix)'
      return
    fi
  done
  stop "no registry can be reached, and there is no complete python$VERSION here to make the base image of (pyenv install $VERSION)"
}

command -v debootstrap >/dev/null ||
  stop "no registry can be reached, and debootstrap is missing (Debian, Ubuntu: sudo apt-get install debootstrap)"
prefix=$(interpreter)
mirror=$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' | awk '$1 == "Debian" {print $2; exit}')
[[ -n $mirror ]] || stop "apt knows no Debian mirror here (sudo apt-get update, on Debian)"

debootstrap --variant=minbase --include="$PACKAGES" "$SUITE" "$FOLDER" "$mirror" >"$FOLDER.log" 2>&1 ||
  stop "debootstrap did not finish: $(tail -n 3 "$FOLDER.log")"
rm -rf "$FOLDER"/var/cache/apt/archives/*.deb "$FOLDER"/var/lib/apt/lists/*
cp -a "$prefix/bin/python$VERSION" "$FOLDER/usr/local/bin/"
cp -a "$prefix/lib/python$VERSION" "$FOLDER/usr/local/lib/"
find "$prefix/lib" -maxdepth 1 -name "libpython$VERSION*.so*" -exec cp -a {} "$FOLDER/usr/local/lib/" \;
# This machine's packages are not the image's.
find "$FOLDER/usr/local/lib/python$VERSION" -depth \( -path '*/site-packages/*' -o -name test -o -name __pycache__ \) \
  -exec rm -rf {} +
ln -s "python$VERSION" "$FOLDER/usr/local/bin/python3"
ln -s python3 "$FOLDER/usr/local/bin/python"
chroot "$FOLDER" ldconfig
