#!/usr/bin/env bash
# prepare.sh PYTHON FOLDER: makes what `make gpu` needs, once: software drivers of Debian (12 or 13), and a
# llama-cpp-python with Vulkan in FOLDER/site, which stands before the ordinary one on PYTHONPATH. Its wheel is built
# once for a user (15 minutes on two cores) and kept in ~/.cache/ayaedge-gpu; nothing else outside FOLDER is touched
# but Debian's own packages.
set -euo pipefail
python=$1 folder=$2
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

packages=(glslc libvulkan1 mesa-vulkan-drivers chromium g++ cmake spirv-headers)
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if ((${#missing[@]})); then
    if ((EUID)); then
        echo "run as root once: apt-get install --no-install-recommends ${missing[*]}" >&2
        exit 1
    fi
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

# llama.cpp needs Vulkan headers from 1.3.261 on; Debian 12 has 1.3.239, so those of Debian 13 are unpacked here.
# Which mirror the machine uses, and how it gets there, is apt's own configuration.
headers=$folder/headers
if [ ! -e "$headers/usr/include/vulkan/vulkan.hpp" ]; then
    apt=$folder/apt
    mkdir -p "$apt/lists/partial" "$apt/archives/partial"
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | sed -n 1p)
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb [signed-by=$keys] $mirror trixie main" >"$apt/trixie.list"
    own=(-o "Dir::Etc::SourceList=$apt/trixie.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache::Archives=$apt/archives"
        -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=)
    apt-get "${own[@]}" update -qq
    (cd "$apt" && rm -f libvulkan-dev_*.deb && apt-get "${own[@]}" -qq download libvulkan-dev)
    rm -rf "$headers"
    dpkg-deb -x "$apt"/libvulkan-dev_*.deb "$headers.new"
    mv "$headers.new" "$headers"
    rm -rf "$apt"
fi

# The version that the ordinary environment has, so that nothing but the backend differs.
version=$("$python" -c 'from importlib.metadata import version; print(version("llama-cpp-python"))')
site=$folder/site
if [ ! -e "$site/llama_cpp_python-$version.dist-info" ] || [ ! -e "$site/llama_cpp/lib/libggml-vulkan.so" ]; then
    # What the wheel depends on is in the folder's name: processor, compiler and glibc (pip's own cache would hand
    # out a build without Vulkan).
    kept=${XDG_CACHE_HOME:-$HOME/.cache}/ayaedge-gpu/$version-$(printf '%s\n' \
        "$(grep -m1 '^flags' /proc/cpuinfo)" "$(c++ --version)" "$(ldd --version)" | sha256sum | cut -c1-16)
    if ! compgen -G "$kept/*.whl" >/dev/null; then
        include=$headers/usr/include
        loader=$(dpkg -L libvulkan1 | grep 'libvulkan\.so\.1$')
        rm -rf "$folder/wheel"
        CMAKE_ARGS="-DGGML_VULKAN=on -DVulkan_INCLUDE_DIR=$include -DVulkan_LIBRARY=$loader" \
            CFLAGS="-I$include" CXXFLAGS="-I$include" CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) \
            "$python" -m pip wheel --quiet --no-deps --no-cache-dir --no-binary llama-cpp-python \
            --wheel-dir "$folder/wheel" "llama-cpp-python==$version"
        mkdir -p "$(dirname "$kept")"
        rm -rf "$kept"
        mv "$folder/wheel" "$kept"
    fi
    rm -rf "$site" "$site.new"
    "$python" -m pip install --quiet --no-deps --no-index --target "$site.new" "$kept"/*.whl
    test -e "$site.new/llama_cpp/lib/libggml-vulkan.so"
    mv "$site.new" "$site"
fi
