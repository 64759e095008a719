#!/bin/sh
# Suffix decoding for vLLM, from arctic-inference's sources: what benchmarks/vllm.py compares with, and nothing else.
#
#   tools/suffix_decoding.sh [ENVIRONMENT]      # .venv-vllm unless told; needs a C++20 compiler, takes half a minute
#
# The package itself builds CUDA kernels and patches vLLM when it is imported. vLLM's own `suffix` needs one module.
set -eu
python=${1:-.venv-vllm}/bin/python
sources=$(mktemp -d)
trap 'rm -rf "$sources"' EXIT
value() { "$python" -c "import sysconfig; print($1)"; }
"$python" -m pip download -q --disable-pip-version-check --no-deps --no-build-isolation --no-binary arctic-inference \
  -d "$sources" arctic-inference==0.3.0
echo "7f22e3e1b1071c6061c0d6951be17c0fb50b08d06d6e543144c8f52faba60a36  $sources/arctic_inference-0.3.0.tar.gz" |
  sha256sum --check --quiet
tar xzf "$sources/arctic_inference-0.3.0.tar.gz" -C "$sources" --strip-components=1
"$python" -m pip install -q --disable-pip-version-check --no-deps --target "$sources/nb" nanobind==2.9.2
target=$(value 'sysconfig.get_path("platlib")')/arctic_inference
mkdir -p "$target/suffix_decoding"
c++ -O3 -DNDEBUG -std=c++20 -shared -fPIC -fvisibility=hidden -fno-strict-aliasing \
  -I"$(value 'sysconfig.get_path("include")')" -I"$sources/nb/nanobind/include" -I"$sources/nb/nanobind/ext/robin_map/include" \
  "$sources/nb/nanobind/src/nb_combined.cpp" "$sources/csrc/suffix_decoding/bindings.cc" \
  "$sources/csrc/suffix_decoding/suffix_tree.cc" \
  -o "$target/suffix_decoding/_C$(value 'sysconfig.get_config_var("EXT_SUFFIX")')"
cp "$sources/arctic_inference/__init__.py" "$sources/LICENSE" "$target/"
cp "$sources/arctic_inference/suffix_decoding/__init__.py" "$sources/arctic_inference/suffix_decoding/cache.py" \
  "$target/suffix_decoding/"
"$python" -c 'from arctic_inference.suffix_decoding import SuffixDecodingCache'
echo "suffix decoding is in $target"
