#!/usr/bin/env bash
# All tests, and then those of `make test` once more as other machines would run them.
#
#   tests/deep.sh                 everything: hours
#   tests/deep.sh load order      these parts alone; --list names them
#
# One line a part, with its verdict and seconds. What a part printed is in .deep/PART.txt. Ends with
# 1 if any part failed.
set -u
cd "$(dirname "$0")/.." || exit 1

PARTS="all default avx2 sse4_2 mkl-avx2 x86-64 one-core load order"
quick() { make --no-print-directory quick alone; }
busy=()
rest() {
  if [ "${#busy[@]}" -gt 0 ]; then kill "${busy[@]}" 2>/dev/null; wait "${busy[@]}" 2>/dev/null; fi
  busy=()
}
trap rest EXIT
trap 'exit 130' INT TERM

run() {
  case "$1" in
    all) make --no-print-directory test-all ;;
    default) ATEN_CPU_CAPABILITY=default quick ;;
    avx2) ATEN_CPU_CAPABILITY=avx2 quick ;;
    sse4_2) MKL_ENABLE_INSTRUCTIONS=SSE4_2 quick ;;
    mkl-avx2) MKL_ENABLE_INSTRUCTIONS=AVX2 quick ;;
    x86-64) NUMBA_CPU_NAME=x86-64 quick ;;
    one-core) taskset -c 0 make --no-print-directory quick alone WORKERS=1 ;;
    load) quick ;;
    order) PYTHONHASHSEED=random GRADSTEP_TEST_ORDER=$order quick ;;
  esac
}

[ "${1:-}" = --list ] && { echo "$PARTS"; exit 0; }
for part in "$@"; do
  case " $PARTS " in *" $part "*) ;; *) echo "tests/deep.sh: no part $part; there are: $PARTS" >&2; exit 2 ;; esac
done
mkdir -p .deep
order=${GRADSTEP_TEST_ORDER:-$RANDOM}
failed=0
for part in ${*:-$PARTS}; do
  began=$(date +%s)
  if [ "$part" = load ]; then
    for _ in 1 2 3 4 5 6 7 8; do (while :; do :; done) & busy+=($!); done
  fi
  name=$part
  [ "$part" = order ] && name="order (GRADSTEP_TEST_ORDER=$order)"
  if run "$part" >".deep/$part.txt" 2>&1; then verdict=passed; else verdict=FAILED; failed=1; fi
  rest
  echo "$name: $verdict, $(($(date +%s) - began)) s"
done
exit "$failed"
