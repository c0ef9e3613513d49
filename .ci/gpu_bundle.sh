#!/bin/sh
# Run the GPU tests and measurements of this bundle, without network: sh run.sh
#
# The machine has Python, pip, torch with CUDA and, for the kernels, CuPy and Triton; all else is in
# wheels/. What came of it is brought back as one archive, results.tar.gz, within 25 minutes. Exits
# with 1 where a step failed.
set -u
cd "$(dirname "$0")" || exit 1
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
out=$PWD/results
site=$PWD/site
rm -rf "$out" "$site" results.tar.gz
mkdir "$out"
"$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
    --find-links wheels --target "$site" wheels/*.whl || exit 1
export PYTHONPATH="$site:tests" PYTHONUNBUFFERED=1
failed=0

# step NAME SECONDS COMMAND...: its output goes to NAME.log, its status to the summary.
step() {
    name=$1 seconds=$2
    shift 2
    timeout "$seconds" "$@" >"$out/$name.log" 2>&1
    status=$?
    [ "$status" -eq 0 ] || failed=1
    echo "$name: exit status $status, $(tail -n 1 "$out/$name.log")" | tee -a "$out/summary"
}

tests() {
    name=$1 seconds=$2
    shift 2
    step "$name" "$seconds" "$PYTHON" -m pytest -q -ra -p no:cacheprovider -W default "$@"
}

nvidia-smi --query-gpu=name,driver_version,clocks.sm,memory.total --format=csv >"$out/machine" 2>&1
# Of the lab the benchmark takes its meter of memory alone: the rest needs what is not here.
step doctor 60 env IMPLICITCORE_DISABLE_PLUGINS=lab "$PYTHON" -m implicitcore plugins doctor
tests kernels 90 plugins/implicitcore-cupy/tests/test_gpu.py
tests gpu 150 tests/gpu -k "not triton"
tests triton 300 tests/gpu -k triton --timeout 280
tests launches 60 tests/backends/test_launches.py
step backends 200 "$PYTHON" -m implicitcore bench backend --device "$DEVICE" \
    --json "$out/backends.json" \
    ${QUICK:+--quick}
[ "$DEVICE" = cuda ] && step benchmark 500 "$PYTHON" -m benchmarks.gpu --output "$out"
tar -czf results.tar.gz results
echo "$PWD/results.tar.gz"
exit "$failed"
