#!/usr/bin/env bash
# Starts the service, trains and predicts over HTTP, scores the predictions and the code, and prints the total.
#
#   DATA=<folder or URL>   holds df_train.csv, df_test.csv, df_movies.csv and perhaps df_test_ratings.csv
#   ENDPOINT=<url>         a server that speaks the public challenge's protocol: it gives the data and takes the
#                          result; a final slash is optional
#   PORT=<number>          port of the server, 9876 by default
#   CHALLENGE_ENCODER      hub name or folder; if unset, the service's default if it is cached or the hub can be
#                          reached, else the small encoder in this repository
#   CHALLENGE_TEACH and the README's other settings, except the API key, the catalogue and the models folder, are
#                          passed on
#
# Without DATA and ENDPOINT it uses the demo data. A run keeps its files in .run/, which the next run deletes;
# submission.json and result.json are written beside this script.
set -euo pipefail

unset CDPATH PYTHONHOME PYTHONPATH FORCE_COLOR MYPY_FORCE_COLOR
# These may be another server's: this run must not train on its catalogue or replace its model.
unset CHALLENGE_API_KEY CHALLENGE_CATALOGUE CHALLENGE_MODELS
export NO_COLOR=1

caller=$PWD
endpoint=${ENDPOINT:+${ENDPOINT%/}/}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
tools=$root/.env/bin
run=$root/.run
port=${PORT:-9876}
url=http://127.0.0.1:$port
number=0
title='the start'
told=
child=
server=
watchdog=
data=
encoder=
encoder_note=

# --- Steps, failures and processes -------------------------------------------------------------------------------

step() {
    number=$((number + 1))
    title=$1
    printf '[%2d/10] %s\n' "$number" "$title"
}

note() {
    printf '        %s\n' "$1"
}

fail() {
    told=yes
    printf 'run.sh: failed at %s: %s\n' "$(place)" "$1" >&2
    exit 1
}

place() {
    if [ "$number" -gt 0 ]; then
        printf '[%2d/10] ' "$number"
    fi
    printf '%s' "$title"
}

# Runs the small programs below, without the user's Python settings and with text in UTF-8.
python() {
    "$tools/python" -I -X utf8 "$@"
}

# Stops a process and all that it started, which form a process group.
stop_group() {
    local leader=$1
    kill -TERM -- "-$leader" 2>/dev/null || return 0
    for _ in {1..50}; do
        kill -0 -- "-$leader" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL -- "-$leader" 2>/dev/null || true
}

stop_server() {
    if [ -n "$server" ]; then
        stop_group "$server"
        wait "$server" 2>/dev/null || true
        server=
    fi
    if [ -n "$watchdog" ]; then
        stop_group "$watchdog"
        wait "$watchdog" 2>/dev/null || true
        watchdog=
    fi
}

finish() {
    local status=$?
    trap '' INT TERM HUP PIPE
    if [ -n "$child" ]; then
        stop_group "$child"
        wait "$child" 2>/dev/null || true
    fi
    stop_server
    if [ "$status" -gt 128 ]; then
        printf 'run.sh: stopped at %s by a signal\n' "$(place)" >&9
    elif [ "$status" -ne 0 ] && [ -z "$told" ]; then
        printf 'run.sh: failed at %s (exit status %d)\n' "$(place)" "$status" >&9
    fi
    exit "$status"
}

# Runs a command in the background, so that a signal to this script need not wait for its end.
attend() {
    local status=0
    set -m
    "$@" </dev/null 9>&- &
    child=$!
    set +m
    wait "$child" || status=$?
    child=
    return "$status"
}

# The same with a limit in seconds: macOS has no timeout command.
attend_within() {
    local limit=$1
    shift
    # shellcheck disable=SC2016 # The inner shell is to expand these.
    attend bash -c '
        limit=$1
        shift
        "$@" &
        for ((tick = 0; tick < limit * 10; tick++)); do
            kill -0 $! 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL $! 2>/dev/null && exit 124
        wait $!
    ' bash "$limit" "$@" 2>/dev/null
}

# Stops the server if this script is killed before it can do so itself.
watch() {
    while kill -0 "$1"; do
        sleep 1
    done
    stop_group "$2"
}

# --- Before the first step ---------------------------------------------------------------------------------------

check_port() {
    case $port in
    '' | *[!0-9]*) fail "PORT is no number: $port" ;;
    esac
    python - "$port" <<'PYTHON' || fail "port $port is busy or can't be used"
import socket
import sys

address = ("127.0.0.1", int(sys.argv[1]))
with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind(address)
    except (OSError, OverflowError) as error:
        sys.exit(f"{address[0]}:{address[1]}: {error}")
# Some systems let a program bind beside one that listens on all addresses.
with socket.socket() as probe:
    probe.settimeout(2)
    try:
        probe.connect(address)
        sys.exit(f"{address[0]}:{address[1]}: another program listens there")
    except ConnectionRefusedError:
        pass
PYTHON
}

# Sets $data to the folder that the data comes from; it stays empty when the data comes over HTTP.
choose_data() {
    if [ -n "$endpoint" ]; then
        return
    fi
    case ${DATA:-} in
    http://* | https://*) return ;;
    '') data=$root/challenge/demo ;;
    /*) data=$DATA ;;
    *) data=$caller/$DATA ;;
    esac
    data=$(cd "$data" 2>/dev/null && pwd -P) || fail "there is no folder ${DATA:-challenge/demo}"
    case $data/ in
    "$run"/*) fail "DATA lies in .run, which is deleted now; copy it elsewhere" ;;
    esac
}

git_setting() {
    git -C "$root" config "user.$1" 2>/dev/null || true
}

# The public challenge wants a name and an e-mail address; in a terminal, those that git lacks are asked for.
identify() {
    username=$(git_setting name)
    email=$(git_setting email)
    if [ -t 0 ] && [ -n "$endpoint" ]; then
        [ -n "$username" ] || read -r -p 'Name: ' username || true
        [ -n "$email" ] || read -r -p 'E-mail: ' email || true
    fi
}

prepare() {
    [ -x "$tools/uvicorn" ] || fail "there is no .env yet; run ./init.sh first"
    command -v curl >/dev/null || fail "curl is needed"
    check_port
    choose_data
    identify
    # The server runs in .run, so relative paths are made absolute. What came by the environment is exported already.
    if [ -n "${CHALLENGE_ENCODER:-}" ] && [ -d "$caller/$CHALLENGE_ENCODER" ]; then
        CHALLENGE_ENCODER=$(cd "$caller/$CHALLENGE_ENCODER" && pwd -P)
    fi
    if [ -n "${CHALLENGE_TEACH:-}" ] && [ -f "$caller/$CHALLENGE_TEACH" ]; then
        CHALLENGE_TEACH=$caller/$CHALLENGE_TEACH
    fi
    rm -rf "$run"
    rm -f "$root/submission.json" "$root/result.json"
    mkdir "$run"
    cd "$run"
}

# --- Data --------------------------------------------------------------------------------------------------------

# Downloads a URL to a file, and sets $answered to the HTTP status.
http_get() {
    attend curl --silent --show-error --location --retry 2 --connect-timeout 15 --speed-limit 1 --speed-time 60 \
        --output "$2" --write-out '%{http_code}' "$1" >status.txt 2>curl.err ||
        fail "could not get $1: $(cat curl.err)"
    answered=$(cat status.txt)
}

download() {
    http_get "$1" "$2"
    case $answered in
    2??) ;;
    *) fail "$1 answered $answered: $(head -c 500 "$2")" ;;
    esac
}

get_from_endpoint() {
    local name
    for name in train test movies; do
        download "$endpoint${name}_url" "$name.url"
        # The URL comes as plain text or as a JSON string.
        python - "$name.url" >"$name.location" <<'PYTHON'
import json
import pathlib
import sys

text = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8").strip()
print(json.loads(text) if text.startswith('"') else text)
PYTHON
        download "$(cat "$name.location")" "df_$name.csv"
    done
}

get_from_url() {
    local name
    for name in train test movies; do
        download "${DATA%/}/df_$name.csv" "df_$name.csv"
    done
    http_get "${DATA%/}/df_test_ratings.csv" df_test_ratings.csv
    case $answered in
    2??) ;;
    403 | 404 | 410) rm -f df_test_ratings.csv ;; # Some stores answer 403 for a missing file.
    *) fail "${DATA%/}/df_test_ratings.csv answered $answered" ;;
    esac
}

get_from_folder() {
    local name
    for name in train test movies test_ratings; do
        if [ -e "$data/df_$name.csv" ]; then
            attend cp "$data/df_$name.csv" "df_$name.csv" || fail "could not copy $data/df_$name.csv"
        elif [ "$name" != test_ratings ]; then
            fail "$data holds no df_$name.csv"
        fi
    done
}

get_data() {
    local name
    if [ -n "$endpoint" ]; then
        step "Getting the data from $endpoint"
        get_from_endpoint
    elif [ -z "$data" ]; then
        step "Getting the data from $DATA"
        get_from_url
    else
        step "Getting the data from $data"
        get_from_folder
    fi
    for name in train test movies; do
        [ -s "df_$name.csv" ] || fail "df_$name.csv is empty"
    done
}

# --- The server --------------------------------------------------------------------------------------------------

# Whether the default encoder is cached or the hub can be reached now, without the hub client's patient retries.
default_encoder_in_reach() {
    attend_within 15 "$tools/python" -c '
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

name, files = "distilbert-base-uncased", ("config.json", "model.safetensors", "tokenizer.json")
if not all(isinstance(try_to_load_from_cache(name, file), str) for file in files):
    get_hf_file_metadata(hf_hub_url(name, files[1]), timeout=5)
' >/dev/null
}

choose_encoder() {
    if [ -n "${CHALLENGE_ENCODER:-}" ]; then
        encoder=$CHALLENGE_ENCODER
    elif default_encoder_in_reach; then
        encoder=distilbert-base-uncased
    else
        encoder=$root/challenge/assets/mini-distilbert
        encoder_note='the hub is out of reach'
        export CHALLENGE_ENCODER=$encoder
    fi
    encoder=${encoder#"$root"/}
    note "encoder: $encoder${encoder_note:+ ($encoder_note)}"
}

start_server() {
    step "Starting the server on port $port"
    choose_encoder
    set -m
    "$tools/uvicorn" --app-dir "$root" challenge:app --host 127.0.0.1 --port "$port" \
        >server.log 2>&1 </dev/null 9>&- &
    server=$!
    watch "$$" "$server" >/dev/null 2>&1 </dev/null 9>&- &
    watchdog=$!
    set +m
}

show_log() {
    printf 'The end of .run/server.log:\n' >&2
    tail -n 20 server.log >&2
}

ask_server() {
    attend curl -q --silent --show-error --noproxy '*' "$@"
}

server_lives() {
    kill -0 "$server" 2>/dev/null
}

wait_for_server() {
    step 'Waiting until the server is up'
    local deadline=$((SECONDS + 60))
    until ask_server --fail --max-time 2 "$url/health/live" >/dev/null 2>&1 && server_lives; do
        if ! server_lives; then
            show_log
            fail 'the server ended'
        elif [ "$SECONDS" -ge "$deadline" ]; then
            show_log
            fail 'the server was not up after 60 seconds'
        fi
        sleep 0.1
    done
}

# Posts a file, writes the answer to the file $3, and sets $seconds to the time it took.
post_file() {
    local path=$1 file=$2 answer=$3 status kind
    if ! ask_server --form "file=@$file" --output "$answer" --write-out '%{http_code} %{time_total} %{content_type}' \
        "$url$path" >curl.out 2>curl.err; then
        show_log
        fail "POST $path got no answer: $(cat curl.err)"
    fi
    read -r status seconds kind <curl.out || true
    case $status in
    2??) ;;
    *) fail "POST $path answered $status $kind: $(head -c 2000 "$answer")" ;;
    esac
    note "$(LC_ALL=C printf '%.1f s' "$seconds")"
}

# Prints the report of the training, one line for each part.
show_report() {
    python - <<'PYTHON'
import json
import pathlib

text = pathlib.Path("report.json").read_text(encoding="utf-8", errors="replace")
try:
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in json.loads(text).items()]
except (AttributeError, ValueError):
    lines = [text[:1500]]
for line in lines:
    print(f"        {line}")
PYTHON
}

train() {
    step 'Training on df_train.csv'
    post_file /ratings/train df_train.csv report.json
    train_seconds=$seconds
    show_report
}

predict() {
    step 'Predicting df_test.csv'
    post_file /ratings/predict df_test.csv predictions.json
    predict_seconds=$seconds
    cp predictions.json "$root/submission.json"
}

# --- Code quality ------------------------------------------------------------------------------------------------

# Runs a tool over the package; sets $errors to the number of lines of its output that match the pattern.
# The tool has crashed if its status is above $found, that of findings, or not 0 although nothing was found.
count_errors() {
    local pattern=$1 found=$2 tool=$3 status=0
    shift 3
    attend "$tools/$tool" "$@" >"$run/$tool.log" 2>&1 || status=$?
    errors=$(grep -c -E "$pattern" "$run/$tool.log" || true)
    if [ "$status" -gt "$found" ] || { [ "$status" -ne 0 ] && [ "$errors" -eq 0 ]; }; then
        tail -n 20 "$run/$tool.log" >&2
        fail "$tool could not check the code (exit status $status)"
    fi
}

# Counts the .py files outside challenge/, leaving out the folders of tools.
count_strays() {
    find . -type d \( -path ./challenge -o -name .env -o -name .run -o -name .git -o -name .venv -o -name .tox \
        -o -name .nox -o -name '.*_cache' -o -name .hypothesis -o -name .ipynb_checkpoints -o -name .idea \
        -o -name .vscode \) -prune -o -name '*.py' -print | wc -l | tr -d ' '
}

measure_quality() {
    step 'Measuring the code quality'
    cd "$root"
    files=$(count_strays)
    count_errors ':[0-9]+:[0-9]+: [A-Z]+[0-9]+ ' 1 flake8 challenge
    flake8=$errors
    # Each line that isort would add or remove, even a blank one, is an error, so a moved import counts twice.
    count_errors '^(\+($|[^+])|-($|[^-]))' 0 isort challenge --diff --quiet
    isort=$errors
    count_errors '^ +D[0-9]+: |: Cannot parse file' 1 pydocstyle challenge
    pydocstyle=$errors
    count_errors ': error: ' 1 mypy --config-file setup.cfg challenge
    mypy=$errors
    # Code counts even if it looks generated or duplicates another file.
    attend "$tools/pygount" challenge --suffix py --folders-to-skip '[...],tests' --duplicates \
        --generated '[regex](?!)' --format json --out "$run/pygount.json" >"$run/pygount.log" 2>&1 ||
        fail "pygount could not count the code: $(tail -n 1 "$run/pygount.log")"
    cd "$run"
    note "files $files, flake8 $flake8, isort $isort, pydocstyle $pydocstyle, mypy $mypy errors"
}

# --- Scores ------------------------------------------------------------------------------------------------------

score_predictions() {
    step 'Scoring the predictions'
    python - >mse.txt <<'PYTHON' || fail 'the predictions cannot be scored'
import csv
import json
import math
import pathlib
import sys


def rows(name):
    with open(name, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


predictions = json.loads(pathlib.Path("predictions.json").read_text(encoding="utf-8"))
expected = [str(row) for row in range(len(rows("df_test.csv")))]
if not isinstance(predictions, dict) or predictions.keys() != set(expected):
    sys.exit(f"the predictions are not one for each of the {len(expected)} rows of df_test.csv")
for row, value in predictions.items():
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        sys.exit(f"the prediction for row {row} is no number: {value!r}")
if pathlib.Path("df_test_ratings.csv").exists():
    try:
        truth = [float(row["rating"]) for row in rows("df_test_ratings.csv")]
    except (KeyError, TypeError, ValueError) as error:
        sys.exit(f"df_test_ratings.csv has no numeric column rating: {error}")
    if len(truth) != len(expected) or not truth:
        sys.exit(f"df_test_ratings.csv has {len(truth)} rows, df_test.csv {len(expected)}")
    print(math.fsum((predictions[row] - rating) ** 2 for row, rating in zip(expected, truth)) / len(truth))
PYTHON
    mse=$(cat mse.txt)
    note "MSE ${mse:-unknown, as there is no df_test_ratings.csv}"
}

combine_scores() {
    step 'Combining the scores'
    python - "$root/result.json" "$username" "$email" "$encoder${encoder_note:+ ($encoder_note)}" \
        "$train_seconds" "$predict_seconds" "$mse" "$files" "$flake8" "$isort" "$pydocstyle" "$mypy" <<'PYTHON' ||
import json
import math
import os
import pathlib
import sys

path, username, email, encoder, train_seconds, predict_seconds, mse, *counts = sys.argv[1:]
sloc = json.loads(pathlib.Path("pygount.json").read_text(encoding="utf-8"))["summary"]["totalCodeCount"]
if sloc == 0:
    sys.exit("there is no code in challenge/")
strays, *errors = map(int, counts)
quality = {"files": [0.0 if strays else 1.0, strays]}
for tool, count in zip(("flake8", "isort", "pydocstyle", "mypy"), errors):
    quality[tool] = [math.exp(-8 * count / sloc), count]
quality["lines"] = [min(1.0, math.exp(-sloc / 800 + 0.125)), sloc]
quality_score = math.prod(score for score, _ in quality.values()) ** (1 / len(quality))
predictive_score = min(1.0, max(0.0, 1 - min(float(mse) - 0.5, 1.5) / 1.5)) if mse else None
result = {
    "username": username,
    "email": email,
    "code_quality": quality,
    "code_quality_score": quality_score,
    "sloc": sloc,
    "encoder": encoder,
    "train_seconds": float(train_seconds),
    "predict_seconds": float(predict_seconds),
    "mse": float(mse) if mse else None,
    "predictive_score": predictive_score,
    "total": math.sqrt(quality_score * predictive_score) if mse else None,
    "predictions": json.loads(pathlib.Path("predictions.json").read_text(encoding="utf-8")),
}
evaluation = {key: result[key] for key in ("username", "email", "code_quality", "predictions")}
pathlib.Path("evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
pathlib.Path("result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
os.replace("result.json", path)
PYTHON
        fail 'the scores cannot be combined'
}

print_box() {
    python - "$root/result.json" <<'PYTHON'
import json
import pathlib
import sys

result = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))


def percent(score):
    return "unknown" if score is None else f"{100 * score:.2f} %"


def line(name, value, extra=""):
    return f"{name:<16}{value:>12}{extra:>14}"


parts = []
for name, (score, count) in result["code_quality"].items():
    unit = "SLOC" if name == "lines" else "stray" if name == "files" else "error" if count == 1 else "errors"
    parts.append(line("  " + name, percent(score), f"{count} {unit:<6}"))
mse = "unknown" if result["mse"] is None else f"{result['mse']:.4f}"
blocks = [
    [line("Code quality", percent(result["code_quality_score"])), *parts],
    [line("Predictive", percent(result["predictive_score"])), line("  MSE", mse)],
    [
        line("Train", f"{result['train_seconds']:.1f} s"),
        line("Predict", f"{result['predict_seconds']:.1f} s"),
        f"Encoder         {result['encoder']}",
    ],
]
if result["total"] is not None:
    blocks.append([line("Total", percent(result["total"]))])
width = max(len(text) for block in blocks for text in block)
rule = "─" * (width + 2)
print(f"┌{rule}┐")
print(f"\n├{rule}┤\n".join("\n".join(f"│ {text:<{width}} │" for text in block) for block in blocks))
print(f"└{rule}┘")
PYTHON
}

evaluate() {
    attend curl --silent --show-error --location --connect-timeout 15 --max-time 600 \
        --header 'Content-Type: application/json' --data-binary @evaluation.json \
        --output evaluated.json --write-out '%{http_code}' "${endpoint}eval/" >status.txt 2>curl.err ||
        fail "could not reach ${endpoint}eval/: $(cat curl.err)"
    case $(cat status.txt) in
    2??) ;;
    *) fail "${endpoint}eval/ answered $(cat status.txt): $(head -c 2000 evaluated.json)" ;;
    esac
    python - <<'PYTHON' || fail "${endpoint}eval/ answered no text: $(head -c 2000 evaluated.json)"
import json
import pathlib

print(json.loads(pathlib.Path("evaluated.json").read_text(encoding="utf-8"))["text"])
PYTHON
}

report() {
    step 'Reporting the result'
    print_box
    if [ -n "$endpoint" ]; then
        evaluate
    fi
}

main() {
    # For finish: a signal may come while the error output of a command goes to a file.
    exec 9>&2
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    trap 'exit 141' PIPE
    prepare
    get_data
    start_server
    wait_for_server
    train
    predict
    step 'Stopping the server'
    stop_server
    measure_quality
    score_predictions
    combine_scores
    report
}

main
