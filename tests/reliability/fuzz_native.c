/* Fuzzes the native library with libFuzzer under AddressSanitizer and UBSan: shapes, tokens, masks, kernels and weights
   that may be damaged (NaN, infinity, any bits). Every tensor and the working memory have exactly the bytes that
   runtime_smalle.py gives them. native.py beside this file compiles and runs it.

   An input is one byte for the function, one for the kernels, the shapes, and then values; where it ends, a generator
   of random numbers goes on. */

#include "../../smalle/native/smalle.c"

#include <stdlib.h>

static const uint8_t *next, *end;
static uint64_t seed;
static int wild; /* whether numbers may be any bits */
static void *owned[256];
static int owns;

static uint32_t random_bits(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 32);
}

static int number(int least, int most) {
    uint32_t bits = next < end ? *next++ : random_bits();
    return least + (int)(bits % (uint32_t)(most - least + 1));
}

static float value(void) {
    uint32_t bits = random_bits();
    float x;
    if (wild && bits % 64 == 0) {
        bits = next + 4 <= end ? (next += 4, next[-4] | next[-3] << 8 | next[-2] << 16 | (uint32_t)next[-1] << 24)
                               : bits % 128 ? 0x7fc00000u : random_bits();
        memcpy(&x, &bits, 4);
        return x;
    }
    return (float)(int32_t)bits / 2147483648.0f;
}

static void *own(size_t bytes) { return owned[owns++] = malloc(bytes ? bytes : 1); }

static float *values(size_t count) {
    float *x = own(4 * count);
    for (size_t n = 0; n < count; n++) x[n] = value();
    return x;
}

static uint8_t *mask(size_t count) {
    uint8_t *x = own(count);
    for (size_t n = 0; n < count; n++) x[n] = (uint8_t)number(0, 1);
    return x;
}

/* A stream of weights that grows part by part */
static char *stream;
static size_t size;

static void grow(size_t bytes) { stream = realloc(stream, size += bytes); }

static void matrix(int in, int out) {
    int eight = number(0, 1);
    float *weight = values((size_t)in * out), *bias = number(0, 1) ? values(out) : 0;
    size_t before = size;
    grow(smalle_pack_matrix(in, out, eight, 0.5f, weight, bias, 0));
    smalle_pack_matrix(in, out, eight, 0.5f, weight, bias, stream + before);
}

static void norm(int width) {
    int kind = number(0, 2);
    float *weight = values(width), *bias = kind == LAYER_NORM ? values(width) : 0;
    size_t before = size;
    grow(smalle_pack_norm(kind, kind ? width : 0, weight, bias, 0));
    smalle_pack_norm(kind, kind ? width : 0, weight, bias, stream + before);
}

static void pack_feed_forward(int width, int inner) {
    norm(width), matrix(width, inner), matrix(width, inner), matrix(inner, width);
}

static void pack_block(int width, int keys, int broad, int heads, int rank, int inner) {
    norm(width), matrix(width, keys), matrix(width, keys), matrix(width, broad), matrix(width, broad);
    matrix(width, rank), matrix(rank, keys), norm(broad / heads), matrix(broad, width), pack_feed_forward(width, inner);
}

/* `working_memory` of runtime_smalle.py */
static char *scratch_for(double widths, int vectors, int tokens) {
    return own((size_t)(32 * vectors * (widths + 256)) + 16 * tokens + (1 << 15));
}

static void fuzz_steps(void) {
    struct step s = {.eps = 1e-5f, .normalizer = 16, .strongest = -5, .gain = 8, .threads = number(1, 3)};
    s.pending = number(0, 1);
    s.hidden = s.pending ? 64 * number(1, 2) : 8 * number(1, 12), s.heads = s.hidden == 64 ? 1 : number(1, 2);
    s.position_size = s.pending ? 64 : 8 * number(1, 6), s.position_heads = s.pending ? 1 : number(1, 2);
    double expand_k = number(1, 4) / 4.0, expand_v = s.pending ? number(1, 2) : number(1, 4) / 2.0;
    int rank = number(1, 24), inner = number(1, 90), small_inner = number(1, 90);
    s.rows = number(1, 3), s.steps = number(1, 5), s.tokens = number(1, 9), s.codebooks = number(1, 4);
    s.vocabulary = number(4, 40), s.before = number(0, 2), s.after = number(0, 2), wild = number(0, 1);
    int keys = (int)(s.hidden * expand_k), broad = (int)(s.hidden * expand_v);
    int small_keys = (int)(s.position_size * expand_k), small_broad = (int)(s.position_size * expand_v);
    if (s.pending && (keys / s.heads % 4 || small_keys / s.position_heads % 4)) return; /* `unsupported` */
    for (int n = 0; n < s.before; n++) pack_block(s.hidden, keys, broad, s.heads, rank, inner);
    norm(s.hidden), matrix(s.hidden, s.hidden), norm(s.hidden);
    pack_block(s.position_size, small_keys, small_broad, s.position_heads, rank, small_inner), norm(s.position_size);
    for (int n = 0; n < s.after; n++) pack_block(s.hidden, keys, broad, s.heads, rank, inner);
    norm(s.hidden), matrix(s.hidden, s.codebooks * s.vocabulary);

    int blocks = s.before + 1 + s.after, count = s.rows * s.steps;
    void *states[4 * 5];
    for (int n = 0; n < blocks; n++) {
        int here = n == s.before, heads = s.rows * (here ? s.position_heads : s.heads);
        size_t deep = (here ? small_keys / s.position_heads : keys / s.heads);
        size_t wide = (here ? small_broad / s.position_heads : broad / s.heads);
        float *state = values(heads * deep * wide);
        if (!s.pending) {
            states[n] = state;
            continue;
        }
        uint32_t *bands = own(2 * heads * deep * wide);
        smalle_bands(heads, (int)deep, (int)wide, state, bands);
        states[4 * n] = bands, states[4 * n + 1] = values(heads * deep);
        states[4 * n + 2] = values(heads * PENDING * deep), states[4 * n + 3] = values(heads * PENDING * wide);
    }
    int64_t *codes = own(8 * (size_t)count * s.codebooks);
    for (int n = 0; n < count * s.codebooks; n++) codes[n] = number(0, s.vocabulary - 1);
    size_t text = (size_t)s.rows * s.tokens;
    s.weights = stream, s.states = states, s.codes = codes;
    s.embedding = values((size_t)s.codebooks * s.vocabulary * s.hidden);
    s.text_keys = values(text * s.hidden), s.text_values = values(text * s.hidden);
    s.positions = values(text * s.position_size), s.text_mask = mask(text);
    s.logits = own(4 * (size_t)s.rows * s.codebooks * s.vocabulary), s.alignment = own(4 * (size_t)count * s.tokens);
    double widths = (s.hidden + s.position_size) * (1 + expand_k + expand_v) + inner + small_inner + rank;
    s.scratch = scratch_for(widths, count, s.tokens);
    for (int n = 0, calls = number(1, 3); n < calls && (!s.pending || s.steps * (n + 1) <= PENDING); n++) {
        s.room = s.pending ? PENDING - s.steps * n : -1;
        smalle_steps(&s);
    }
}

static void fuzz_text(void) {
    struct text s = {.eps = 1e-5f, .tokens = number(1, 20), .heads = number(1, 3), .layers = number(0, 3)};
    s.threads = number(1, 3);
    int each = 2 * number(1, 16), inner = number(1, 90);
    s.hidden = s.heads * each, s.turned = 2 * number(0, each / 2), wild = number(0, 1);
    for (int n = 0; n < s.layers; n++) {
        norm(s.hidden);
        for (int part = 0; part < 4; part++) matrix(s.hidden, s.hidden);
        pack_feed_forward(s.hidden, inner);
    }
    norm(s.hidden), matrix(s.hidden, s.hidden), norm(s.hidden), matrix(s.hidden, s.hidden), norm(s.hidden);
    size_t all = (size_t)s.tokens * s.hidden, turned = (size_t)s.tokens * (s.turned / 2);
    s.weights = stream, s.x = values(all), s.mask = mask(s.tokens), s.cosines = values(turned);
    s.sines = values(turned), s.keys = own(4 * all), s.values = own(4 * all);
    double least_expand = 0.25; /* of a checkpoint; working memory counts the decoder's widths, too */
    s.scratch = scratch_for((s.hidden + 2) * (1 + 2 * least_expand) + inner + 4 + 1, s.tokens, s.tokens);
    smalle_text(&s);
}

static void fuzz_fold(void) {
    int heads = number(1, 3), keys = 4 * number(1, 16), broad = 64 * number(1, 3);
    wild = number(0, 1);
    float *state = values((size_t)heads * keys * broad), *decay = values((size_t)heads * keys);
    float *old_keys = values((size_t)heads * PENDING * keys), *old = values((size_t)heads * PENDING * broad);
    uint32_t *bands = own(2 * (size_t)heads * keys * broad);
    float *out = number(0, 1) ? state : own(4 * (size_t)heads * keys * broad);
    smalle_fold(number(1, 3), heads, keys, broad, state, decay, old_keys, old, out, bands);
}

static void fuzz_draw(void) {
    int32_t top_k[4], ended[3];
    float temperature[4], positions[3];
    struct drawing d = {.guided = number(0, 1), .may_end = number(0, 1), .top_k = top_k, .temperature = temperature};
    int texts = number(1, 3), sampled = 0;
    struct step s = {.rows = texts * (1 + d.guided), .codebooks = number(1, 4), .vocabulary = number(3, 70)};
    s.tokens = number(1, 9), wild = number(0, 1);
    for (int q = 0; q < s.codebooks; q++) {
        top_k[q] = number(0, 80), temperature[q] = number(1, 200) / 100.0f;
        sampled += top_k[q] != 1;
    }
    for (int row = 0; row < texts; row++) ended[row] = number(0, s.codebooks + 1);
    size_t all = (size_t)s.rows * s.codebooks, read = (size_t)texts * s.tokens;
    s.logits = values(all * s.vocabulary), s.alignment = values((size_t)s.rows * s.tokens), d.places = values(read);
    d.random = (const int64_t *)values(2 * (size_t)sampled * texts * s.vocabulary);
    int64_t *tokens = own(8 * all);
    d.scale = *values(1), d.ended = ended, d.positions = positions, d.next = tokens;
    smalle_draw(&s, &d);
    for (size_t n = 0; n < all; n++)
        if (tokens[n] < 0 || tokens[n] >= s.vocabulary) abort();
}

static void fuzz_multiply(void) {
    int in = number(1, 255), out = number(1, 60), count = number(1, 9), wide = up(in, BLOCK);
    wild = number(0, 1);
    matrix(in, out);
    float *x = values((size_t)count * in), *y = own(4 * (size_t)count * out);
    char *scratch = own(to_line((size_t)count * wide) + 2 * to_line(4 * (size_t)count * wide / BLOCK));
    smalle_multiply(stream, x, count, y, scratch);
}

static size_t matrix_floats(int in, int out) { return up(out, LANES) * (1 + (size_t)in); }

/* What a convolution, its ConvNeXt blocks and a norm take */
static size_t stack_floats(struct stack s, int channels) {
    size_t each = 3 * up(s.size, LANES) + up(s.kernel * s.size, LANES);
    each += matrix_floats(s.size, s.inner) + matrix_floats(s.inner, s.size);
    return matrix_floats(channels * s.kernel, s.size) + s.layers * each + 2 * up(s.size, LANES);
}

static struct stack any_stack(int ahead) {
    struct stack s = {.layers = number(1, 3), .size = number(1, 40), .inner = number(1, 60)};
    s.kernel = 3 + 2 * number(0, 2), s.ahead = ahead ? ahead : s.kernel / 2;
    return s;
}

static void fuzz_vocos(void) {
    struct vocos v = {.channels = number(1, 20), .backbone = any_stack(0), .rate = 24000, .noise_frames = 16};
    if (number(0, 1)) v.refiner = any_stack(1);
    v.upsampling = number(1, 2), v.harmonic = number(0, 1), v.hop = 2 * number(1, 8), v.n_fft = v.hop * 2 * number(1, 2);
    v.trim = v.harmonic || number(0, 1) ? (v.n_fft - v.hop) / 2 : v.n_fft / 2, wild = number(0, 1);
    int bins = v.n_fft / 2 + 1, width = v.harmonic ? 3 * bins + 1 : 2 * bins, hop = v.hop * v.upsampling;
    size_t weights = stack_floats(v.backbone, v.channels) + 2 * up(v.backbone.size, LANES);
    weights += matrix_floats(v.backbone.size, v.upsampling * width);
    if (v.refiner.size) weights += stack_floats(v.refiner, v.channels) + matrix_floats(v.refiner.size, v.channels);
    float *roots = own(8 * (size_t)v.n_fft);
    for (int n = 0; n < v.n_fft; n++) {
        roots[2 * n] = (float)cos(6.283185307179586 * n / v.n_fft);
        roots[2 * n + 1] = (float)sin(6.283185307179586 * n / v.n_fft);
    }
    v.weights = values(weights), v.window = values(v.n_fft), v.roots = roots;
    v.noise = values((size_t)2 * bins * v.noise_frames);
    char *state = own(smalle_vocos_begin(&v, 0));
    smalle_vocos_begin(&v, state);
    int ahead = (1 + v.backbone.layers) * v.backbone.ahead + (1 + v.refiner.layers) * v.refiner.ahead;
    for (int block = 0, blocks = number(0, 3); block <= blocks; block++) {
        int last = block == blocks, count = number(last && block ? 0 : 1, 12);
        size_t most_samples = (size_t)(count + ahead + 4) * hop + 2 * v.n_fft;
        float *out = own(4 * most_samples), *features = values((size_t)count * v.channels);
        int samples = smalle_vocos(&v, features, count, last, state, out, own(smalle_vocos_memory(&v, count)));
        if (samples < 0 || (size_t)samples > most_samples) abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length) {
    static void (*const functions[])(void) = {fuzz_steps, fuzz_text, fuzz_fold, fuzz_draw, fuzz_multiply,
                                             fuzz_vocos};
    next = data, end = data + length, seed = 1, stream = 0, size = 0, owns = 0, wild = 0;
    for (size_t n = 0; n < length; n++) seed = seed * 31 + data[n];
    int function = number(0, 5), which = number(0, sizeof fastest_first / sizeof *fastest_first - 1);
    if (!has(fastest_first[which])) which = sizeof fastest_first / sizeof *fastest_first - 1;
    smalle_choose(fastest_first[which]->name);
    functions[function]();
    for (int n = 0; n < owns; n++) free(owned[n]);
    free(stream);
    return 0;
}
