/* The text encoder and the decode steps of a Small-E of GLA blocks, in 8 bits: what runtime_smalle.py calls. One thread
   computes, for large models with the helpers of threads.h. kernels.h, included once for each set of instructions,
   holds the computation; the one that suits the processor is chosen when the library is loaded, so that one library
   serves every processor of an architecture.

   All weights lie in one stream in the order in which a step reads them, so that a step is little more than one pass
   over memory. Every part of the stream begins at a multiple of 64 bytes with a `struct part` that says what follows.
   Activations are single precision; before a matrix in 8 bits they are rounded in blocks of 128 values, each with a
   scale. Several steps of several rows may be taken at once: a prompt. Nothing is kept between calls. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#elif defined __aarch64__
#include <arm_neon.h>
#ifdef __linux__
#include <sys/auxv.h>
#endif
#endif

#ifdef _WIN32
#define PUBLIC __declspec(dllexport)
#else
#define PUBLIC __attribute__((visibility("default")))
#endif

/* Numbers too small for single precision's full digits count as zero meanwhile, which keeps this fast */
#ifdef __x86_64__
static unsigned flush(void) {
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);
    return before;
}
#define unflush _mm_setcsr
#else
static unsigned flush(void) { return 0; }
#define unflush (void)
#endif

#include "threads.h"

enum { LANES = 16, BLOCK = 128, TILE = 4, PENDING = 16, BAND = 64, AHEAD = 4096 };
enum { ITEM = 1 << 16, FOLDED = 64, LAYER_NORM = 1, RMS_NORM = 2 };
enum { STOP = 2, SPECIALS = 3 }; /* tokens of every codebook before its codes */

/* What a step is; runtime_smalle.py has the same. Rows are texts, N tokens of a text; tensors as in SmallEState */
struct step {
    int32_t rows, steps, tokens, codebooks, vocabulary, hidden, heads, position_size, position_heads, before, after;
    int32_t pending, room; /* whether states have pending updates, and how many more they may have (PendingUpdates) */
    int32_t threads;
    float eps, normalizer, strongest, gain;
    const char *weights;
    const float *embedding; /* (codebooks * vocabulary, hidden) */
    const int64_t *codes; /* (rows, steps, codebooks) */
    const float *text_keys, *text_values, *positions; /* (rows, N, ...) */
    const uint8_t *text_mask; /* (rows, N) */
    void **states; /* of each block (B, H, K, V), written over; or the four of `PendingUpdates`, of which bands stay */
    float *logits, *alignment; /* (rows, codebooks, vocabulary) of the last step, (rows, steps, N) */
    char *scratch; /* as many bytes as `working_memory` says */
};

/* How the tokens are drawn that follow a step of B texts of N tokens; with `guided`, as many rows without a text stand
   behind, and `scale` says how far to go away from these */
struct drawing {
    int32_t guided, may_end;
    float scale;
    const int32_t *top_k; /* of each codebook, 0: all tokens, 1: the likeliest */
    const float *temperature;
    const int64_t *random; /* bits (S, B, vocabulary) for the S codebooks that are sampled */
    const int32_t *ended; /* (B,) codebooks of each row that have ended */
    const float *places; /* (B, N) */
    int64_t *next; /* (rows, codebooks) */
    float *positions; /* (B,): the mean of the places, where the step read */
};

/* How a text is read: x (N, hidden), its embeddings, which this changes; cosines and sines (N, turned / 2) of rotary
   positions */
struct text {
    int32_t tokens, hidden, heads, layers, turned, threads;
    float eps;
    const char *weights;
    float *x;
    const uint8_t *mask; /* (N,) */
    const float *cosines, *sines;
    float *keys, *values; /* (N, hidden), the result */
    char *scratch;
};

/* What stands before each part of the stream */
struct part {
    int32_t kind, in, out, biased; /* kind: 8 or 32 bits of a matrix; of a norm 0 (none), LAYER_NORM, RMS_NORM */
    int32_t unused[12];
};

/* Vectors that matrices are multiplied by: as they are, and in 8 bits */
struct input {
    const float *values;
    int8_t *bits;
    float *scales;
    int32_t *sums;
};

struct vocos; /* vocos.h */

/* The computation for one set of instructions; see the public functions below */
struct kernels {
    const char *name;
    void (*run_steps)(const struct step *, struct team *);
    void (*run_text)(const struct text *, struct team *);
    void (*run_fold)(struct team *, int, int, int, const float *, const float *, const float *, const float *, float *,
                     uint32_t *);
    void (*run_bands)(int, int, int, const float *, uint32_t *);
    void (*run_draw)(const struct step *, const struct drawing *);
    void (*run_multiply)(const char *, const float *, int, float *, char *);
    int (*run_vocos)(const struct vocos *, const float *, int, int, char *, float *, char *);
};

static inline float least(float a, float b) { return a < b ? a : b; } /* fminf is slow: it minds NaN */
static inline float most(float a, float b) { return a > b ? a : b; }
static inline int up(int n, int to) { return (n + to - 1) / to * to; }
static inline size_t to_line(size_t bytes) { return (bytes + 63) / 64 * 64; }

/* Bytes of 16 columns of a matrix, in 8 bits with their scales or in single precision */
static inline size_t tile_size(int in, int eight) {
    return eight ? (size_t)up(in, LANES) * LANES + (size_t)up(in, BLOCK) / BLOCK * 4 * LANES : (size_t)in * 4 * LANES;
}

/* Asks for memory that is read soon, once for each line of 16 numbers of 4 bytes: a pass over memory is a third faster
   than with what the processor foresees */
static inline void fetch(const void *from, int number) {
    if (number % 16 == 0) __builtin_prefetch((const char *)from + AHEAD);
}

static inline const struct part *next_part(const char **at) {
    const struct part *part = (const struct part *)*at;
    *at += sizeof *part;
    return part;
}

static inline const void *take(const char **at, size_t bytes) {
    const void *here = *at;
    *at += to_line(bytes);
    return here;
}

static inline void *room_for(char **scratch, size_t bytes) {
    void *here = *scratch;
    *scratch += to_line(bytes);
    return here;
}

/* kernels.h for each set of instructions. PRODUCTS: */
#define PLAIN 0
#define SSE2 1
#define AVX2 2
#define AVX_VNNI 3
#define AVX512_VNNI 4
#define NEON 5
#define NEON_DOT 6

#define AS_TEXT(x) #x
#define TEXT(x) AS_TEXT(x)
#define PRAGMA(x) _Pragma(#x)
#ifdef __clang__
#define BEGIN(instructions) PRAGMA(clang attribute push(__attribute__((target(instructions))), apply_to = function))
#define END PRAGMA(clang attribute pop)
#else
#define BEGIN(instructions) PRAGMA(GCC push_options) PRAGMA(GCC target(instructions))
#define END PRAGMA(GCC pop_options)
#endif

#define KERNELS plain /* what every processor of the architecture has */
#if defined __x86_64__
#define PRODUCTS SSE2
#elif defined __aarch64__
#define PRODUCTS NEON
#else
#define PRODUCTS PLAIN
#endif
#define WIDTH 4
#include "kernels.h"

#if defined __x86_64__
BEGIN("avx2,fma")
#define KERNELS avx2
#define PRODUCTS AVX2
#define WIDTH 8
#include "kernels.h"
END

#if defined __clang__ ? __clang_major__ >= 12 : __GNUC__ >= 11
#define HAS_AVX_VNNI
BEGIN("avx2,fma,avxvnni")
#define KERNELS avx_vnni
#define PRODUCTS AVX_VNNI
#define WIDTH 8
#include "kernels.h"
END
#endif

BEGIN("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#define KERNELS avx512_vnni
#define PRODUCTS AVX512_VNNI
#define WIDTH 16
#include "kernels.h"
END
#elif defined __aarch64__
#ifdef __clang__
BEGIN("dotprod")
#else
BEGIN("arch=armv8.2-a+dotprod")
#endif
#define KERNELS neon_dot
#define PRODUCTS NEON_DOT
#define WIDTH 4
#include "kernels.h"
END
#endif

#if defined __x86_64__
/* Bits of the registers that the operating system saves: XCR0 */
static unsigned saved_registers(void) {
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static int has(const struct kernels *kernels) {
    unsigned a, b, c, d, seven_a, seven_b, seven_c;
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27, AVX2_BIT = 1 << 5, VNNI_BIT = 1 << 11, AVX_VNNI_BIT = 1 << 4 };
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    if (kernels == &kernels_plain) return 1;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & FMA) || !(c & OSXSAVE) || (saved_registers() & 6) != 6) return 0;
    if (!__get_cpuid_count(7, 0, &seven_a, &seven_b, &seven_c, &d) || !(seven_b & AVX2_BIT)) return 0;
    if (kernels == &kernels_avx2) return 1;
    if (kernels == &kernels_avx512_vnni)
        return (seven_b & avx512) == avx512 && seven_c & VNNI_BIT && (saved_registers() & 0xe6) == 0xe6;
    return seven_a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & AVX_VNNI_BIT;
}
#elif defined __aarch64__ && defined __linux__
static int has(const struct kernels *kernels) { return kernels == &kernels_plain || getauxval(AT_HWCAP) & 1 << 20; }
#elif defined __aarch64__ && defined __APPLE__
static int has(const struct kernels *kernels) { return 1; } /* since the first of them */
#else
static int has(const struct kernels *kernels) { return kernels == &kernels_plain; }
#endif

static const struct kernels *const fastest_first[] = {
#if defined __x86_64__
    &kernels_avx512_vnni,
#ifdef HAS_AVX_VNNI
    &kernels_avx_vnni,
#endif
    &kernels_avx2,
#elif defined __aarch64__
    &kernels_neon_dot,
#endif
    &kernels_plain,
};
static const struct kernels *chosen = &kernels_plain;

/* Chooses the kernels of this name, or where it is empty the fastest that this processor has; returns their name, null
   where it has none of this name */
PUBLIC const char *smalle_choose(const char *name) {
    for (size_t n = 0; n < sizeof fastest_first / sizeof *fastest_first; n++)
        if ((!*name || !strcmp(name, fastest_first[n]->name)) && has(fastest_first[n])) {
            chosen = fastest_first[n];
            return chosen->name;
        }
    return 0;
}

PUBLIC void smalle_steps(const struct step *s) {
    unsigned before = flush();
    struct team *team = gather(s->threads);
    chosen->run_steps(s, team);
    dismiss(team);
    unflush(before);
}

PUBLIC void smalle_text(const struct text *s) {
    unsigned before = flush();
    struct team *team = gather(s->threads);
    chosen->run_text(s, team);
    dismiss(team);
    unflush(before);
}

PUBLIC void smalle_fold(int threads, int heads, int keys, int values, const float *state, const float *decay,
                        const float *old_keys, const float *old, float *out, uint32_t *bands) {
    unsigned before = flush();
    struct team *team = gather(threads);
    chosen->run_fold(team, heads, keys, values, state, decay, old_keys, old, out, bands);
    dismiss(team);
    unflush(before);
}

PUBLIC void smalle_bands(int heads, int keys, int values, const float *state, uint32_t *bands) {
    chosen->run_bands(heads, keys, values, state, bands);
}

PUBLIC void smalle_draw(const struct step *s, const struct drawing *d) { chosen->run_draw(s, d); }

PUBLIC void smalle_multiply(const char *packed, const float *x, int count, float *y, char *scratch) {
    chosen->run_multiply(packed, x, count, y, scratch);
}

/* Decodes a block of features (count, channels), the `last` or not: the samples that are complete -> out; how many */
PUBLIC int smalle_vocos(const struct vocos *v, const float *features, int count, int last, char *state, float *out,
                        char *scratch) {
    unsigned before = flush();
    count = chosen->run_vocos(v, features, count, last, state, out, scratch);
    unflush(before);
    return count;
}

/* The stream is written by the next two; each returns the bytes of its part, and writes nothing where `to` is null. */

/* A norm of this kind */
PUBLIC int64_t smalle_pack_norm(int kind, int size, const float *weight, const float *bias, char *to) {
    size_t each = to_line(4 * (size_t)size), all = sizeof(struct part) + (kind ? (bias ? 2 : 1) * each : 0);
    if (!to) return all;
    memset(to, 0, all);
    *(struct part *)to = (struct part){.kind = kind, .in = size};
    if (kind) memcpy(to += sizeof(struct part), weight, 4 * (size_t)size);
    if (kind && bias) memcpy(to + each, bias, 4 * (size_t)size);
    return all;
}

/* 128 rows of a column (in) in 8 bits around 128 -> every 64th byte of `to`, four by four; returns their scale */
static float pack_column(const float *column, int count, float scale, uint8_t *to) {
    uint8_t bits[BLOCK];
    float peak = 0;
    for (int k = 0; k < count; k++) peak = most(peak, fabsf(column[k] * scale));
    float factor = peak ? 127 / peak * scale : 0;
    memset(bits, 128, BLOCK);
    for (int k = 0; k < count; k++) bits[k] = (uint8_t)(lrintf(column[k] * factor) + 128);
    for (int k = 0; k < count; k += 4) memcpy(to + k * LANES, bits + k, 4);
    return peak / 127;
}

/* A linear layer, weight (out, in) times `scale`, in 8 bits or in single precision */
PUBLIC int64_t smalle_pack_matrix(int in, int out, int eight, float scale, const float *weight, const float *bias,
                                  char *to) {
    size_t tile = tile_size(in, eight), head = sizeof(struct part) + (bias ? to_line(4 * (size_t)up(out, LANES)) : 0);
    size_t all = head + to_line(tile) * (up(out, LANES) / LANES);
    if (!to) return all;
    memset(to, 0, all);
    *(struct part *)to = (struct part){.kind = eight ? 8 : 32, .in = in, .out = out, .biased = bias != 0};
    if (bias) memcpy(to + sizeof(struct part), bias, 4 * (size_t)out);
    to += head;
    for (int n = 0; n < out; n += LANES, to += to_line(tile)) {
        uint8_t *at = (uint8_t *)to;
        int here = out - n < LANES ? out - n : LANES;
        const float *columns = weight + (size_t)n * in;
        if (eight)
            for (int k = 0; k < in; k += BLOCK) {
                int rows = in - k < BLOCK ? in - k : BLOCK, size = up(rows, LANES) * LANES;
                memset(at, 128, size);
                float *scales = (float *)(at + size);
                for (int j = 0; j < here; j++)
                    scales[j] = pack_column(columns + (size_t)j * in + k, rows, scale, at + 4 * j);
                at += size + 4 * LANES;
            }
        else
            for (int k = 0; k < in; k++)
                for (int j = 0; j < here; j++)
                    ((float *)to)[(size_t)k * LANES + j] = columns[(size_t)j * in + k] * scale;
    }
    return all;
}
