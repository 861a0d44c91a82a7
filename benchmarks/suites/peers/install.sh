#!/usr/bin/env bash
# Installs the other engines into a virtual environment: a few minutes, 5 GB (most of it CUDA libraries that PyTorch's
# wheel links to and a CPU run never calls).
# usage: benchmarks/suites/peers/install.sh VENV
set -euo pipefail
venv=$1
python3 -m venv "$venv"
"$venv/bin/pip" install torch==2.13.0 transformers==5.23.0 gguf==0.19.0

# Built here, for this CPU. GCC 12's _tile_loadconfig claims to read 8 bytes, so GCC drops the stores to the rest of the
# tile configuration and llama.cpp's AMX kernels die of a protection fault: the stores are kept by these flags.
# No cache: pip would take a wheel that was built with other options.
export CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" CFLAGS="-fno-dse -fno-tree-dse" CXXFLAGS="-fno-dse -fno-tree-dse"
CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) "$venv/bin/pip" install --no-cache-dir --no-binary llama-cpp-python llama-cpp-python==0.3.36
echo "$CMAKE_ARGS, $CXXFLAGS, $(c++ --version | head -1)" >"$venv/llama.cpp-build"
