#!/bin/sh
# Run the GPU tests and measurements of this bundle, without network: sh run.sh [STEP...]
#
# The machine has Python, pip, torch with CUDA and, for the kernels, CuPy and Triton; all else is in
# wheels/. What came of it is brought back as one archive, results.tar.gz, within 25 minutes: it is
# written anew after each step, and no step may take longer than is left of BUDGET seconds. Where a
# command may not take so long, STEPs are run one by one (doctor kernels counts gpu triton backends
# benchmark launches): results of others stay. Exits with 1 where a step failed, and with 2 where
# there is no GPU.
#
# DEVICE=cpu sh run.sh is a dry run, which asks for no GPU: the same steps, small, and the kernels
# in Triton's interpreter, compiled for GPUs that are not there, and as C++ where g++ is. It times
# nothing that means anything. Without a GPU that is what is run, and then the exit status is 2.
set -u
cd "$(dirname "$0")" || exit 1
PYTHON=${PYTHON:-python3}
end=$(($(date +%s) + ${BUDGET:-1440}))
wanted=$*
out=$PWD/results
site=$PWD/site
[ -n "$wanted" ] || rm -rf "$out" "$site" results.tar.gz
mkdir -p "$out"
[ -d "$site" ] || "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile \
    --no-cache-dir --disable-pip-version-check --find-links wheels --target "$site" \
    wheels/*.whl || exit 1
export PYTHONPATH="$site:tests" PYTHONUNBUFFERED=1
# Of the lab the benchmark takes its meter of memory alone: the rest needs what is not here.
export IMPLICITCORE_DISABLE_PLUGINS=lab
failed=0

say() {
    echo "$*" | tee -a "$out/summary"
    tar -czf results.new results && mv results.new results.tar.gz
}

# left NAME SECONDS: seconds that a step may take, in $seconds; false where it is not to run.
left() {
    case " ${wanted:-$1} " in *" $1 "*) ;; *) return 1 ;; esac
    seconds=$((end - $(date +%s)))
    [ "$seconds" -lt "$2" ] || seconds=$2
    [ "$seconds" -gt 0 ] && return 0
    failed=$((failed > 1 ? failed : 1))
    say "$1: not run, no time was left"
    return 1
}

# step NAME SECONDS COMMAND...: its output goes to NAME.log, its status to the summary. What hangs
# is ended with all that it started.
step() {
    name=$1
    left "$name" "$2" || return 0
    shift 2
    began=$(date +%s)
    timeout -k 10 "$seconds" "$@" >"$out/$name.log" 2>&1
    status=$?
    [ "$status" -eq 0 ] || failed=$((failed > 1 ? failed : 1))
    took=$(($(date +%s) - began))
    say "$name: exit status $status, $took of $seconds s, $(tail -n 1 "$out/$name.log")"
}

# tests NAME SECONDS ARGUMENTS...: each test is named in the log before it runs, and where one hangs
# its stack; shortly before the end pytest stops by itself, and says what failed.
tests() {
    name=$1 most=$2
    left "$name" "$most" || return 0
    shift 2
    soon=$((seconds * 4 / 5))
    step "$name" "$most" "$PYTHON" -m pytest -v -ra -p no:cacheprovider -W default \
        --session-timeout "$soon" -o faulthandler_timeout=60 "$@"
}

FINDS='import torch; raise SystemExit(not torch.cuda.is_available())'
asked=${DEVICE:-cuda} DEVICE=cpu
if [ "$asked" = cuda ]; then
    if "$PYTHON" -c "$FINDS" >"$out/torch.log" 2>&1; then
        DEVICE=cuda
    else
        failed=2
        say "NO GPU: torch finds no CUDA device, so this is a dry run on the CPU"
        tail -n 1 "$out/torch.log"
    fi
else
    say "A dry run on the CPU, as DEVICE=$asked asks for"
fi

nvidia-smi --query-gpu=name,driver_version,clocks.sm,memory.total --format=csv >"$out/machine" 2>&1
step doctor 60 "$PYTHON" -m implicitcore plugins doctor
if [ "$DEVICE" = cuda ]; then
    tests kernels 90 plugins/implicitcore-cupy/tests/test_gpu.py
    step counts 120 "$PYTHON" -m benchmarks.gpu_launches --output "$out"
    tests gpu 240 tests/gpu -k "not triton"
    tests triton 270 tests/gpu -k triton
    step backends 180 "$PYTHON" -m implicitcore bench backend --device cuda \
        --dtype float32 --dtype bfloat16 --shape 16x64 --shape 256x128 --shape 100000x2 \
        --shape 1x16384 --shape 32x8192 --shape 1x20000000 --json "$out/backends.json" \
        ${QUICK:+--quick}
    step benchmark 420 "$PYTHON" -m benchmarks.gpu --output "$out" ${QUICK:+--quick}
    tests launches 60 tests/backends/test_launches.py
else
    step counts 120 "$PYTHON" -m benchmarks.gpu_launches --device cpu --output "$out"
    tests gpu 60 plugins/implicitcore-cupy/tests/test_gpu.py tests/gpu
    tests cupy 240 plugins/implicitcore-cupy/tests/test_root_iteration.py \
        plugins/implicitcore-cupy/tests/test_graphs.py -m "not slow"
    step backends 60 "$PYTHON" -m implicitcore bench backend --device cpu --quick \
        --dtype float32 --dtype bfloat16 --json "$out/backends.json"
    step benchmark 240 "$PYTHON" -m benchmarks.gpu --device cpu --quick --output "$out"
    tests launches 90 tests/backends/test_launches.py
    tests triton 600 plugins/implicitcore-triton/tests/test_processes.py --timeout 280
fi
say "done, exit status $failed"
echo "$PWD/results.tar.gz"
exit "$failed"
