#!/bin/sh
# Runs the three steps, each in a sandbox of its own without network, and hands their files on through the folder `results`:
#
#   sh run.sh [CELLKEEP]       default: cellkeep
#
# A step that fails ends the pipeline with its exit code; what the steps before have left is in `results`.
set -eu
cellkeep=${1:-cellkeep}
steps=$(cd "$(dirname "$0")" && pwd)
mkdir -p results

"$cellkeep" exec "$steps/prepare.py" --artifacts results --return-file measurements.csv
"$cellkeep" exec "$steps/analyse.R" --file results/measurements.csv --artifacts results --return-file p-value.txt
"$cellkeep" exec "$steps/report.sh" --file results/measurements.csv --file results/p-value.txt \
    --artifacts results --return-file report.md
