#!/usr/bin/env bash
# Lays out ONNX Runtime for CMake in a folder: headers from Debian 13, which earlier releases of Debian do not have, and the
# library of a Python package. Nothing is installed: headers.sh FOLDER PYTHON
set -euo pipefail
root=$(realpath -m "$1")
library=$("$2" -c '
import glob, importlib.util
(folder,) = importlib.util.find_spec("onnxruntime").submodule_search_locations
print(*glob.glob(folder + "/capi/libonnxruntime.so.1*"))')
mkdir -p "$root"/apt/lists/partial "$root"/apt/cache/archives/partial "$root/lib"
cd "$root/apt"
touch status
# The first entry of this machine's own sources, for another release.
sed -e '/^$/,$d' -e '/^#/d' -e 's/^Suites: .*/Suites: trixie/' /etc/apt/sources.list.d/debian.sources > debian.sources
cat > apt.conf <<END
Dir::Etc::sourcelist "$root/apt/debian.sources";
Dir::Etc::sourceparts "-";
Dir::State::lists "$root/apt/lists";
Dir::State::status "$root/apt/status";
Dir::Cache "$root/apt/cache";
APT::Sandbox::User "root";
END
export APT_CONFIG=$root/apt/apt.conf
apt-get update --quiet --quiet
apt-get download --quiet --quiet libonnxruntime-dev nlohmann-json3-dev
for package in *.deb; do dpkg-deb --extract "$package" files; done
rm -rf "$root/include"
cp -r files/usr/include "$root/include"
ln -sf "$library" "$root/lib/libonnxruntime.so.1"
