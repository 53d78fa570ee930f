#!/usr/bin/env bash
# Takes a picture of each of TensorBoard's pages on a run or a comparison, with Debian's chromium:
#   examples/screenshots.sh runs/digits screenshots
set -euo pipefail
runs=${1:?give a run folder} out=$(mkdir -p "${2:?give a folder for the pictures}" && cd "$2" && pwd)
port=${PORT:-6077}
tensorboard=${TENSORBOARD:-$(dirname "$0")/../.venv/bin/tensorboard}

"$tensorboard" --logdir "$runs" --port "$port" --load_fast false 2> "$out/tensorboard.log" &
server=$!
trap 'kill $server' EXIT
for _ in $(seq 60); do
    curl --silent --fail --output /dev/null "localhost:$port/data/runs" && break
    sleep 1
done
sleep 10 # until the runs are read

for page in timeseries scalars custom_scalars images histograms text hparams; do
    # without software GL the charts stay empty
    chromium --headless --no-sandbox --enable-unsafe-swiftshader --disable-background-networking \
        --window-size=1400,1200 --virtual-time-budget=30000 \
        --screenshot="$out/$page.png" "http://localhost:$port/#$page" 2> /dev/null
    echo "$out/$page.png"
done
