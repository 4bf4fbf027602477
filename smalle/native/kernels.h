/* The text encoder and the decode steps, for one set of instructions: smalle.c includes this file once for each.

The including file defines KERNELS (a name, which every function and type here gets as a suffix), PRODUCTS (how bytes
are multiplied) and WIDTH (floats in a vector register). */

#ifndef NAME
#define PASTE(a, b) a##_##b
#define EXPAND(a, b) PASTE(a, b)
#define NAME(x) EXPAND(x, KERNELS)
#define floats NAME(floats)
#define ints NAME(ints)
#define exponential NAME(exponential)
#define silu NAME(silu)
#define softplus_of_minus NAME(softplus_of_minus)
#define ordered NAME(ordered)
#define highest NAME(highest)
#define log_sigmoid NAME(log_sigmoid)
#define add_rows NAME(add_rows)
#define dot NAME(dot)
#define normalise NAME(normalise)
#define quantised NAME(quantised)
#define add_products NAME(add_products)
#define eight_bits NAME(eight_bits)
#define single NAME(single)
#define product NAME(product)
#define columns_of_product NAME(columns_of_product)
#define next_product NAME(next_product)
#define compute NAME(compute)
#define multiply NAME(multiply)
#define width_of_next NAME(width_of_next)
#define feed_forward NAME(feed_forward)
#define recur NAME(recur)
#define write_bands NAME(write_bands)
#define add_bands NAME(add_bands)
#define recur_pending NAME(recur_pending)
#define recurrence NAME(recurrence)
#define recur_head NAME(recur_head)
#define block NAME(block)
#define attend NAME(attend)
#define cross_attention NAME(cross_attention)
#define take_steps NAME(take_steps)
#define turn NAME(turn)
#define text_layer NAME(text_layer)
#define read_text NAME(read_text)
#define folding NAME(folding)
#define fold_rows NAME(fold_rows)
#define fold NAME(fold)
#define all_bands NAME(all_bands)
#define largest NAME(largest)
#define token_of NAME(token_of)
#define draw NAME(draw)
#define multiply_alone NAME(multiply_alone)
#endif

#define PARTS (LANES / WIDTH) /* registers that hold 16 columns */
#define SIGNED (PRODUCTS == AVX2 || PRODUCTS == NEON || PRODUCTS == NEON_DOT)
#define OFFSET (SIGNED ? 0 : 128) /* what `add_products` leaves in each weight */
typedef int32_t ints __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef float floats __attribute__((vector_size(4 * WIDTH), aligned(4)));

/* e^x, to 2e-7 of it; 0 below -87 */
static inline float exponential(float x) {
    x = least(most(x * 1.44269504f, -126.0f), 127.0f);
    float whole = rintf(x), part = x - whole;
    float p = 1.5353362e-4f;
    p = p * part + 1.3398874e-3f;
    p = p * part + 9.6184373e-3f;
    p = p * part + 5.5503324e-2f;
    p = p * part + 2.4022648e-1f;
    p = p * part + 6.9314720e-1f;
    p = p * part + 1.0f;
    union { int32_t i; float f; } power = {((int32_t)whole + 127) << 23};
    return p * power.f;
}

static inline float silu(float x) { return x / (1 + exponential(-x)); }

/* A logarithm of 1 + e^-x, to 1e-6, x >= 0: by 2 atanh(e / (2 + e)) */
static inline float softplus_of_minus(float x) {
    float e = exponential(-x), s = e / (2 + e), s2 = s * s;
    float p = 0.0909090909f;
    p = p * s2 + 0.1111111111f;
    p = p * s2 + 0.1428571429f;
    p = p * s2 + 0.2f;
    p = p * s2 + 0.3333333333f;
    return 2 * s * (1 + s2 * p);
}

/* A number as an integer, which has the same order: a compiler finds the largest of integers in vectors */
static inline int32_t ordered(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    return bits ^ (bits >> 31 & 0x7fffffff);
}

/* The largest of numbers, or of their magnitudes, as `ordered` ones */
static inline int32_t highest(const float *x, int count, int magnitudes) {
    int32_t peak = INT32_MIN;
    for (int i = 0; i < count; i++) {
        int32_t one = ordered(magnitudes ? fabsf(x[i]) : x[i]);
        peak = one > peak ? one : peak;
    }
    return peak;
}

static inline float log_sigmoid(float x) { return least(x, 0) - softplus_of_minus(fabsf(x)); }

/* out (size) += the weighted sum of `count` rows of a table (count, size) */
static void add_rows(float *restrict out, const float *weights, const float *restrict table, int count, int size) {
    int n = 0;
    for (; n + 4 <= count; n += 4) {
        const float *a = table + (size_t)n * size, *b = a + size, *c = b + size, *d = c + size;
        float wa = weights[n], wb = weights[n + 1], wc = weights[n + 2], wd = weights[n + 3];
        for (int i = 0; i < size; i++) out[i] += wa * a[i] + wb * b[i] + wc * c[i] + wd * d[i];
    }
    for (; n < count; n++) {
        const float *a = table + (size_t)n * size;
        for (int i = 0; i < size; i++) out[i] += weights[n] * a[i];
    }
}

static float dot(const float *a, const float *b, int size) {
    float sum = 0;
    for (int i = 0; i < size; i++) sum += a[i] * b[i];
    return sum;
}

/* The next norm of the stream over x (count, size) -> y; where there is none, y is x */
static void normalise(const char **at, const float *x, float *y, int count, int size, float eps) {
    const struct part *part = next_part(at);
    if (!part->kind) {
        memmove(y, x, sizeof(float) * count * size);
        return;
    }
    const float *weight = take(at, 4 * size), *bias = part->kind == LAYER_NORM ? take(at, 4 * size) : 0;
    for (int m = 0; m < count; m++, x += size, y += size) {
        float mean = 0, square = 0;
        if (bias) {
            for (int i = 0; i < size; i++) mean += x[i];
            mean /= size;
        }
        for (int i = 0; i < size; i++) square += (x[i] - mean) * (x[i] - mean);
        float scale = 1 / sqrtf(square / size + eps);
        for (int i = 0; i < size; i++) y[i] = (x[i] - mean) * scale * weight[i] + (bias ? bias[i] : 0);
    }
}

/* Vectors (count, size) as input: rounded into scratch, each block of 128 with its scale and sum */
static struct input quantised(const float *x, int count, int size, char **scratch) {
    int wide = up(size, BLOCK), blocks = wide / BLOCK;
    struct input input = {.values = x, .bits = room_for(scratch, (size_t)count * wide)};
    input.scales = room_for(scratch, sizeof(float) * count * blocks);
    input.sums = room_for(scratch, sizeof(int32_t) * count * blocks);
    for (int m = 0; m < count; m++)
        for (int b = 0; b < blocks; b++) {
            const float *from = x + (size_t)m * size + b * BLOCK;
            int8_t *to = input.bits + (size_t)m * wide + b * BLOCK;
            int here = size - b * BLOCK < BLOCK ? size - b * BLOCK : BLOCK, sum = 0;
            int32_t bits = highest(from, here, 1);
            float peak;
            memcpy(&peak, &bits, 4);
            float scale = peak ? 127 / peak : 0;
            for (int i = 0; i < here; i++) to[i] = (int8_t)rintf(least(most(from[i] * scale, -127), 127)); /* or NaN */
            memset(to + here, 0, BLOCK - here);
            for (int i = 0; i < here; i++) sum += to[i];
            input.scales[m * blocks + b] = peak / 127;
            input.sums[m * blocks + b] = sum;
        }
    return input;
}

/* sum + the products of WIDTH groups of 4 weights, bytes around 128, with the 4 signed bytes of x. Exact: weights lie
   in 1..255, values in -127..127, so that two products fit into AVX2's 16 bits once their signs are taken apart */
static inline __attribute__((always_inline)) ints add_products(ints sum, const uint8_t *w, const int8_t *x) {
#if PRODUCTS == SSE2 /* bytes 0 and 2 of each group in halves of words, then 1 and 3 */
    __m128i weights = _mm_loadu_si128((const __m128i *)w), bytes = _mm_set1_epi16(255);
    __m128i even = _mm_set1_epi32((uint16_t)x[0] | (int32_t)((uint32_t)x[2] << 16));
    __m128i odd = _mm_set1_epi32((uint16_t)x[1] | (int32_t)((uint32_t)x[3] << 16));
    __m128i products = _mm_madd_epi16(_mm_and_si128(weights, bytes), even);
    products = _mm_add_epi32(products, _mm_madd_epi16(_mm_srli_epi16(weights, 8), odd));
    return (ints)_mm_add_epi32((__m128i)sum, products);
#elif PRODUCTS == NEON
    int32_t four;
    memcpy(&four, x, 4);
    int8x16_t weights = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(w), vdupq_n_u8(128)));
    int8x16_t values = vreinterpretq_s8_s32(vdupq_n_s32(four));
    int16x8_t low = vmull_s8(vget_low_s8(weights), vget_low_s8(values)), high = vmull_high_s8(weights, values);
    return sum + (ints)vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
#elif PRODUCTS == PLAIN
    for (int n = 0; n < WIDTH; n++)
        sum[n] += w[4 * n] * x[0] + w[4 * n + 1] * x[1] + w[4 * n + 2] * x[2] + w[4 * n + 3] * x[3];
    return sum;
#else
    int32_t four;
    memcpy(&four, x, 4);
#if PRODUCTS == AVX512_VNNI
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, _mm512_loadu_si512(w), _mm512_set1_epi32(four));
#elif PRODUCTS == AVX_VNNI
    __m256i weights = _mm256_loadu_si256((const __m256i *)w);
    return (ints)_mm256_dpbusd_avx_epi32((__m256i)sum, weights, _mm256_set1_epi32(four));
#elif PRODUCTS == AVX2
    __m256i weights = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)w), _mm256_set1_epi8(-128));
    __m256i values = _mm256_sign_epi8(_mm256_set1_epi32(four), weights);
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), values);
    return (ints)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#elif PRODUCTS == NEON_DOT
    int8x16_t weights = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(w), vdupq_n_u8(128)));
    return (ints)vdotq_s32((int32x4_t)sum, weights, vreinterpretq_s8_s32(vdupq_n_s32(four)));
#endif
#endif
}

/* 16 columns of a matrix in 8 bits for each of `count` vectors: w holds for each block of 128 rows 4 rows of each
   column, the next 4, ..., then the columns' scales */
static inline __attribute__((always_inline)) void eight_bits(
    int count, const uint8_t *w, const float *bias, struct input x, int in, int first, floats (*y)[PARTS]) {
    enum { MOST = 2 };
    int wide = up(in, BLOCK), blocks = wide / BLOCK;
    int chains = count * PARTS < 4 ? 2 : 1; /* a sum alone would wait for itself */
    for (int m = 0; m < count; m++)
        for (int p = 0; p < PARTS; p++) y[m][p] = bias ? *(const floats *)(bias + p * WIDTH) : (floats){0};
    for (int b = 0; b < blocks; b++) {
        const int8_t *bits = x.bits + (size_t)first * wide + b * BLOCK;
        int rest = in - b * BLOCK, size = rest < BLOCK ? up(rest, LANES) : BLOCK;
        ints sums[TILE][PARTS][MOST] = {{{{0}}}};
        for (int k = 0; k < size; k += 4 * chains)
            for (int c = 0; c < chains; c++)
                for (int p = 0; p < PARTS; p++, w += 4 * WIDTH) {
                    if (count <= 2) fetch(w, p * WIDTH); /* more vectors give the processor time to do so itself */
                    for (int m = 0; m < count; m++)
                        sums[m][p][c] = add_products(sums[m][p][c], w, bits + (size_t)m * wide + k + 4 * c);
                }
        for (int m = 0; m < count; m++) {
            int at = (first + m) * blocks + b;
            for (int p = 0; p < PARTS; p++) {
                ints sum = (chains > 1 ? sums[m][p][0] + sums[m][p][1] : sums[m][p][0]) - OFFSET * x.sums[at];
                floats scales = *(const floats *)(w + 4 * p * WIDTH) * x.scales[at];
                y[m][p] += __builtin_convertvector(sum, floats) * scales;
            }
        }
        w += 4 * LANES;
    }
}

/* The same of a matrix in single precision: x (count, in) */
static inline __attribute__((always_inline)) void single(
    int count, const uint8_t *w, const float *bias, const float *x, int in, floats (*y)[PARTS]) {
    for (int m = 0; m < count; m++)
        for (int p = 0; p < PARTS; p++) y[m][p] = bias ? *(const floats *)(bias + p * WIDTH) : (floats){0};
    for (int k = 0; k < in; k++)
        for (int p = 0; p < PARTS; p++, w += 4 * WIDTH)
            for (int m = 0; m < count; m++) y[m][p] += *(const floats *)w * x[(size_t)m * in + k];
}

/* A matrix times x (count, in) -> y (count, stride), or added to that, in items of some tiles of 16 columns */
struct product {
    const uint8_t *tiles;
    const float *bias;
    struct input x;
    float *y;
    int in, out, eight, count, stride, add, items, columns;
};

static void columns_of_product(const void *job, int item) {
    const struct product *p = job;
    for (; item >= p->items; p++) item -= p->items;
    int in = p->in, first = item * p->columns, end = first + p->columns < p->out ? first + p->columns : p->out;
    size_t tile = to_line(tile_size(in, p->eight));
    for (int n = first; n < end; n += LANES) {
        const uint8_t *w = p->tiles + n / LANES * tile;
        const float *b = p->bias ? p->bias + n : 0;
        int width = end - n < LANES ? end - n : LANES;
        for (int m = 0, here; m < p->count; m += here) {
            floats sums[TILE][PARTS];
            int left = p->count - m;
            const float *values = p->x.values + (size_t)m * in;
            here = left >= TILE ? TILE : left > 1 ? 2 : 1; /* which the compiler knows: sums stay in registers */
            if (p->eight && here == 1) eight_bits(1, w, b, p->x, in, m, sums);
            else if (p->eight && here == 2) eight_bits(2, w, b, p->x, in, m, sums);
            else if (p->eight) eight_bits(TILE, w, b, p->x, in, m, sums);
            else if (here == 1) single(1, w, b, values, in, sums);
            else if (here == 2) single(2, w, b, values, in, sums);
            else single(TILE, w, b, values, in, sums);
            for (int i = 0; i < here; i++) {
                float *to = p->y + (size_t)(m + i) * p->stride + n;
                if (width < LANES) {
                    const float *from = (const float *)sums[i];
                    for (int j = 0; j < width; j++) to[j] = p->add ? to[j] + from[j] : from[j];
                } else {
                    for (int q = 0; q < PARTS; q++, to += WIDTH)
                        *(floats *)to = p->add ? *(floats *)to + sums[i][q] : sums[i][q];
                }
            }
        }
    }
}

/* The next matrix of the stream times x, still to be computed */
static struct product next_product(const char **at, struct input x, int count, float *y, int stride, int add) {
    const struct part *part = next_part(at);
    int in = part->in, out = part->out, eight = part->kind == 8;
    size_t tile = to_line(tile_size(in, eight));
    int tiles = up(out, LANES) / LANES, each = (int)(ITEM / (tile * (3 + count)) + 1);
    const float *bias = part->biased ? take(at, 4 * up(out, LANES)) : 0;
    const uint8_t *first = take(at, tile * tiles);
    int items = (tiles + each - 1) / each;
    return (struct product){first, bias, x, y, in, out, eight, count, stride, add, items, each * LANES};
}

static void compute(struct team *team, const struct product *products, int number) {
    int items = 0;
    for (int n = 0; n < number; n++) items += products[n].items;
    share(team, items, columns_of_product, products);
}

static void multiply(struct team *team, const char **at, struct input x, int count, float *y, int stride, int add) {
    struct product product = next_product(at, x, count, y, stride, add);
    compute(team, &product, 1);
}

static int width_of_next(const char *at) { return ((const struct part *)at)->out; }

/* x (count, size) += SwiGLU of its norm */
static void feed_forward(struct team *team, const char **at, float *x, int count, int size, float eps, char *scratch) {
    float *normed = room_for(&scratch, sizeof(float) * count * size);
    normalise(at, x, normed, count, size, eps);
    struct input input = quantised(normed, count, size, &scratch);
    int inner = width_of_next(*at);
    float *gate = room_for(&scratch, sizeof(float) * count * inner);
    float *hidden = room_for(&scratch, sizeof(float) * count * inner);
    struct product both[2];
    both[0] = next_product(at, input, count, gate, inner, 0);
    both[1] = next_product(at, input, count, hidden, inner, 0);
    compute(team, both, 2);
    for (int i = 0; i < count * inner; i++) hidden[i] *= silu(gate[i]);
    multiply(team, at, quantised(hidden, count, inner, &scratch), count, x, size, 1);
}

/* One step of one head: state (K, V) += k v after its decay; out = q state */
static void recur(float *out, const float *q, const float *k, const float *v, const float *decay, float *state,
                  int keys, int values) {
    memset(out, 0, 4 * values);
    for (int i = 0; i < keys; i++, state += values)
        for (int j = 0; j < values; j++) {
            state[j] = state[j] * decay[i] + k[i] * v[j];
            out[j] += q[i] * state[j];
        }
}

/* A state's bands, what steps read of it: 64 columns by 64 columns, for every two rows a word of each column, the upper
   half of the first row's number below that of the second's. The second is rounded so that its word as it is, the other
   half with it, is the nearest number: then it need not be parted. */
static void write_bands(uint32_t *bands, const float *first, const float *second, int row, int keys, int values) {
    for (int j = 0; j < values; j += BAND) {
        uint32_t *restrict to = bands + (size_t)j * keys / 2 + (size_t)row / 2 * BAND;
        for (int n = 0; n < BAND; n++) {
            uint32_t low, high;
            memcpy(&low, first + j + n, 4);
            memcpy(&high, second + j + n, 4);
            low = (low + 0x8000) >> 16;
            high = (high & 0x7fffffff) >= 0x10000 ? high - low + 0x8000 : 0;
            to[n] = (high & 0xffff0000) | low;
        }
    }
}

/* out (values) += weights (K) times a state in bands */
static void add_bands(float *out, const float *weights, const uint32_t *bands, int keys, int values) {
    for (int j = 0; j < values; j += BAND) {
        floats sums[BAND / WIDTH];
        for (int i = 0; i < BAND / WIDTH; i++) sums[i] = *(const floats *)(out + j + i * WIDTH);
        for (int k = 0; k < keys; k += 2, bands += BAND)
            for (int i = 0; i < BAND / WIDTH; i++) {
                fetch(bands + i * WIDTH, i * WIDTH);
                ints words = *(const ints *)(bands + i * WIDTH);
                sums[i] += weights[k] * (floats)(words << 16) + weights[k + 1] * (floats)words;
            }
        for (int i = 0; i < BAND / WIDTH; i++) *(floats *)(out + j + i * WIDTH) = sums[i];
    }
}

/* The same where the state has pending updates (`PendingUpdates` of cache_smalle.py). `slot`: where this step's goes */
static void recur_pending(float *out, const float *q, const float *k, const float *v, const float *now, void *const *s,
                         size_t head, int slot, int keys, int values, float *scaled) {
    const uint32_t *bands = (const uint32_t *)s[0] + head * keys * values / 2;
    float *decay = (float *)s[1] + head * keys, *old_keys = (float *)s[2] + head * PENDING * keys;
    float *old = (float *)s[3] + head * PENDING * values, scores[PENDING];
    memset(out, 0, 4 * values);
    for (int i = 0; i < keys; i++) decay[i] *= now[i], scaled[i] = q[i] * decay[i];
    for (int n = slot + 1; n < PENDING; n++)
        for (int i = 0; i < keys; i++) old_keys[n * keys + i] *= now[i];
    memcpy(old_keys + slot * keys, k, 4 * keys);
    memcpy(old + slot * values, v, 4 * values);
    for (int n = slot; n < PENDING; n++) scores[n] = dot(q, old_keys + n * keys, keys);
    add_bands(out, scaled, bands, keys, values);
    add_rows(out, scores + slot, old + slot * values, PENDING - slot, values);
}

/* The recurrence of a block, head by head: q, k, decay (rows * steps, heads * keys), v, out (..., heads * values) */
struct recurrence {
    const struct step *s;
    const float *q, *k, *v, *decay;
    float *out, *scaled;
    void *const *state;
    int heads, keys, values;
};

static void recur_head(const void *job, int which) {
    const struct recurrence *r = job;
    int steps = r->s->steps, keys = r->keys, values = r->values, row = which / r->heads, head = which % r->heads;
    for (int t = 0; t < steps; t++) {
        size_t at = ((size_t)row * steps + t) * r->heads + head;
        const float *q = r->q + at * keys, *k = r->k + at * keys, *v = r->v + at * values, *now = r->decay + at * keys;
        float *out = r->out + at * values, *scaled = r->scaled + which * keys, *state = r->state[0];
        if (r->s->pending)
            recur_pending(out, q, k, v, now, r->state, which, r->s->room - 1 - t, keys, values, scaled);
        else
            recur(out, q, k, v, now, state + (size_t)which * keys * values, keys, values);
    }
}

/* One block of `LinearAttentionBlock` over x (rows * steps, size), which it changes, and its state */
static void block(const struct step *s, struct team *team, const char **at, float *x, int size, int heads,
                  void *const *state, char *scratch) {
    int count = s->rows * s->steps;
    float *normed = room_for(&scratch, sizeof(float) * count * size);
    normalise(at, x, normed, count, size, s->eps);
    struct input input = quantised(normed, count, size, &scratch);
    int keys = width_of_next(*at);
    float *q = room_for(&scratch, sizeof(float) * count * keys), *k = room_for(&scratch, sizeof(float) * count * keys);
    struct product all[5];
    all[0] = next_product(at, input, count, q, keys, 0);
    all[1] = next_product(at, input, count, k, keys, 0);
    int values = width_of_next(*at), deep = keys / heads, broad = values / heads;
    float *v = room_for(&scratch, sizeof(float) * count * values);
    float *gate = room_for(&scratch, sizeof(float) * count * values);
    all[2] = next_product(at, input, count, v, values, 0);
    all[3] = next_product(at, input, count, gate, values, 0);
    int rank = width_of_next(*at);
    float *low = room_for(&scratch, sizeof(float) * count * rank);
    float *decay = room_for(&scratch, sizeof(float) * count * keys);
    all[4] = next_product(at, input, count, low, rank, 0);
    compute(team, all, 5);
    multiply(team, at, quantised(low, count, rank, &scratch), count, decay, keys, 0);
    for (int i = 0; i < count * keys; i++)
        decay[i] = exponential(most(log_sigmoid(decay[i]) / s->normalizer, s->strongest));
    float *mixed = room_for(&scratch, sizeof(float) * count * values);
    struct recurrence r = {s, q, k, v, decay, mixed, room_for(&scratch, sizeof(float) * s->rows * keys), state,
                           heads, deep, broad};
    share(team, s->rows * heads, recur_head, &r);
    normalise(at, mixed, mixed, count * heads, broad, s->eps);
    for (int i = 0; i < count * values; i++) mixed[i] *= silu(gate[i]);
    multiply(team, at, quantised(mixed, count, values, &scratch), count, x, size, 1);
    feed_forward(team, at, x, count, size, s->eps, scratch);
}

/* softmax(query keys^T / sqrt(size)) over the tokens that are unmasked; zeros where none is */
static void attend(float *weights, const float *query, const float *keys, const uint8_t *mask, int tokens, int size) {
    float peak = -INFINITY, sum = 0, scale = 1 / sqrtf(size);
    for (int n = 0; n < tokens; n++) {
        weights[n] = mask[n] ? dot(query, keys + (size_t)n * size, size) * scale : -1e30f;
        peak = most(peak, weights[n]);
    }
    for (int n = 0; n < tokens; n++) sum += weights[n] = mask[n] ? exponential(weights[n] - peak) : 0;
    for (int n = 0; n < tokens; n++) weights[n] /= sum ? sum : 1;
}

/* Position-Aware Cross-Attention, equations 5, 7 and 8: adds to x (rows * steps, hidden) what it reads in the text */
static void cross_attention(const struct step *s, struct team *team, const char **at, float *x, void *const *state,
                            char *scratch) {
    int count = s->rows * s->steps, size = s->hidden, small = s->position_size, tokens = s->tokens;
    float *query = room_for(&scratch, sizeof(float) * count * size);
    float *place = room_for(&scratch, sizeof(float) * count * small);
    float *first = room_for(&scratch, sizeof(float) * tokens);
    multiply(team, at, quantised(x, count, size, &scratch), count, query, size, 0);
    normalise(at, query, query, count, size, s->eps);
    memset(place, 0, sizeof(float) * count * small);
    for (int m = 0; m < count; m++) {
        size_t text = (size_t)(m / s->steps) * tokens;
        attend(first, query + (size_t)m * size, s->text_keys + text * size, s->text_mask + text, tokens, size);
        add_rows(place + (size_t)m * small, first, s->positions + text * small, tokens, small);
    }
    block(s, team, at, place, small, s->position_heads, state, scratch);
    normalise(at, place, place, count, small, s->eps);
    for (int i = 0; i < count * small; i++) place[i] *= s->gain;
    for (int m = 0; m < count; m++) {
        size_t text = (size_t)(m / s->steps) * tokens;
        float *alignment = s->alignment + (size_t)m * tokens;
        attend(alignment, place + (size_t)m * small, s->positions + text * small, s->text_mask + text, tokens, small);
        add_rows(x + (size_t)m * size, alignment, s->text_values + text * size, tokens, size);
    }
}

static void take_steps(const struct step *s, struct team *team) {
    int count = s->rows * s->steps, size = s->hidden, each = s->pending ? 4 : 1;
    char *scratch = s->scratch;
    const char *at = s->weights;
    void *const *state = s->states;
    float *x = room_for(&scratch, sizeof(float) * count * size);
    float *last = room_for(&scratch, sizeof(float) * s->rows * size);
    memset(x, 0, sizeof(float) * count * size);
    for (int m = 0; m < count; m++)
        for (int q = 0; q < s->codebooks; q++) {
            const float *from = s->embedding + ((size_t)q * s->vocabulary + s->codes[m * s->codebooks + q]) * size;
            for (int i = 0; i < size; i++) x[(size_t)m * size + i] += from[i];
        }
    for (int n = 0; n < s->before; n++, state += each) block(s, team, &at, x, size, s->heads, state, scratch);
    normalise(&at, x, x, count, size, s->eps);
    cross_attention(s, team, &at, x, state, scratch);
    state += each;
    for (int n = 0; n < s->after; n++, state += each) block(s, team, &at, x, size, s->heads, state, scratch);
    for (int row = 0; row < s->rows; row++)
        memcpy(last + (size_t)row * size, x + ((size_t)(row + 1) * s->steps - 1) * size, sizeof(float) * size);
    normalise(&at, last, last, s->rows, size, s->eps);
    multiply(team, &at, quantised(last, s->rows, size, &scratch), s->rows, s->logits, s->codebooks * s->vocabulary, 0);
}

/* Rotates vectors (tokens, size) of one head of a text by their rotary positions, and lays them side by side */
static void turn(const struct text *s, const float *x, float *to, int size) {
    int half = s->turned / 2;
    for (int n = 0; n < s->tokens; n++, x += s->hidden, to += size) {
        const float *cosine = s->cosines + (size_t)n * half, *sine = s->sines + (size_t)n * half;
        memcpy(to, x, sizeof(float) * size);
        for (int i = 0; i < half; i++) {
            to[i] = x[i] * cosine[i] - x[i + half] * sine[i];
            to[i + half] = x[i + half] * cosine[i] + x[i] * sine[i];
        }
    }
}

/* One `TransformerLayer` over the text */
static void text_layer(const struct text *s, struct team *team, const char **at, char *scratch) {
    int count = s->tokens, size = s->hidden, broad = size / s->heads;
    float *normed = room_for(&scratch, sizeof(float) * count * size), *parts[3];
    normalise(at, s->x, normed, count, size, s->eps);
    struct input input = quantised(normed, count, size, &scratch);
    struct product all[3];
    for (int n = 0; n < 3; n++) {
        parts[n] = room_for(&scratch, sizeof(float) * count * size);
        all[n] = next_product(at, input, count, parts[n], size, 0);
    }
    compute(team, all, 3);
    float *query = room_for(&scratch, sizeof(float) * count * broad);
    float *key = room_for(&scratch, sizeof(float) * count * broad);
    float *value = room_for(&scratch, sizeof(float) * count * broad);
    float *weights = room_for(&scratch, sizeof(float) * count);
    memset(normed, 0, sizeof(float) * count * size);
    for (int first = 0; first < size; first += broad) {
        turn(s, parts[0] + first, query, broad);
        turn(s, parts[1] + first, key, broad);
        for (int n = 0; n < count; n++)
            memcpy(value + (size_t)n * broad, parts[2] + first + (size_t)n * size, sizeof(float) * broad);
        for (int n = 0; n < count; n++) {
            attend(weights, query + (size_t)n * broad, key, s->mask, count, broad);
            add_rows(normed + first + (size_t)n * size, weights, value, count, broad);
        }
    }
    multiply(team, at, quantised(normed, count, size, &scratch), count, s->x, size, 1);
    feed_forward(team, at, s->x, count, size, s->eps, scratch);
}

static void read_text(const struct text *s, struct team *team) {
    int count = s->tokens, size = s->hidden;
    char *scratch = s->scratch;
    const char *at = s->weights;
    for (int n = 0; n < s->layers; n++) text_layer(s, team, &at, scratch);
    normalise(&at, s->x, s->x, count, size, s->eps);
    struct input input = quantised(s->x, count, size, &scratch);
    multiply(team, &at, input, count, s->keys, size, 0);
    normalise(&at, s->keys, s->keys, count, size, s->eps);
    multiply(team, &at, input, count, s->values, size, 0);
    normalise(&at, s->values, s->values, count, size, s->eps);
}

/* The state (heads, K, V) of `PendingUpdates` after these are added -> out, which may be the state itself, and its
   bands. K, V: multiples of 4 and 64 */
struct folding {
    int keys, values;
    const float *state, *decay, *old_keys, *old;
    float *out;
    uint32_t *bands;
};

static void fold_rows(const void *job, int item) {
    enum { ROWS = 4, WIDE = WIDTH == 16 ? 4 : 2 }; /* as many sums as there are registers for */
    const struct folding *f = job;
    int keys = f->keys, values = f->values, slices = up(keys, FOLDED) / FOLDED;
    int h = item / slices, first = item % slices * FOLDED, end = first + FOLDED < keys ? first + FOLDED : keys;
    size_t size = (size_t)keys * values, start = h * size + (size_t)first * values;
    const float *state = f->state + start, *decay = f->decay + (size_t)h * keys + first;
    const float *old_keys = f->old_keys + (size_t)h * PENDING * keys, *old = f->old + (size_t)h * PENDING * values;
    float *out = f->out + start;
    for (int i = first; i < end; i += ROWS, state += ROWS * values, out += ROWS * values, decay += ROWS) {
        for (int j = 0; j < values; j += WIDE * WIDTH) {
            floats sums[ROWS][WIDE];
            for (int r = 0; r < ROWS; r++)
                for (int c = 0; c < WIDE; c++)
                    sums[r][c] = *(const floats *)(state + r * values + j + c * WIDTH) * decay[r];
            for (int r = 0; r < ROWS; r++) /* of the next rows, while these are worked on */
                for (int c = 0; c < WIDE; c++) __builtin_prefetch(state + (ROWS + r) * values + j + c * WIDTH, 1);
            for (int n = 0; n < PENDING; n++) {
                floats row[WIDE];
                for (int c = 0; c < WIDE; c++) row[c] = *(const floats *)(old + n * values + j + c * WIDTH);
                for (int r = 0; r < ROWS; r++)
                    for (int c = 0; c < WIDE; c++) sums[r][c] += old_keys[n * keys + i + r] * row[c];
            }
            for (int r = 0; r < ROWS; r++)
                for (int c = 0; c < WIDE; c++) *(floats *)(out + r * values + j + c * WIDTH) = sums[r][c];
        }
        for (int r = 0; r < ROWS; r += 2)
            write_bands(f->bands + h * size / 2, out + r * values, out + (r + 1) * values, i + r, keys, values);
    }
}

static void fold(struct team *team, int heads, int keys, int values, const float *state, const float *decay,
                 const float *old_keys, const float *old, float *out, uint32_t *bands) {
    struct folding f = {keys, values, state, decay, old_keys, old, out, bands};
    share(team, heads * (up(keys, FOLDED) / FOLDED), fold_rows, &f);
}

/* The bands of a state (heads, K, V) */
static void all_bands(int heads, int keys, int values, const float *state, uint32_t *bands) {
    for (int h = 0; h < heads; h++, bands += keys * values / 2)
        for (int i = 0; i < keys; i += 2, state += 2 * values)
            write_bands(bands, state, state + values, i, keys, values);
}

/* The k-th largest of numbers, as `ordered` ones, found bit by bit */
static int32_t largest(const float *x, int count, int k) {
    int32_t found = INT32_MIN;
    for (uint32_t bit = 1u << 31; bit; bit >>= 1) {
        int32_t tried = (int32_t)((uint32_t)found ^ bit);
        int above = 0;
        for (int i = 0; i < count; i++) above += ordered(x[i]) >= tried;
        if (above >= k) found = tried;
    }
    return found;
}

/* The next token of a codebook from its scores (V), of which only the top_k count: as `draw` of generation_smalle.py,
   whose exponentially distributed numbers these random bits (V) are; null: the likeliest token */
static int token_of(const float *scores, const int64_t *random, int vocabulary, int top_k, float temperature) {
    int32_t peak = highest(scores, vocabulary, 0), low = INT32_MIN;
    int best = 0;
    while (ordered(scores[best]) != peak) best++;
    if (!random) return best;
    float likeliest = scores[best], first = -1;
    if (top_k > 0 && top_k < vocabulary) low = largest(scores, vocabulary, top_k);
    for (int v = 0; v < vocabulary; v++) {
        if (ordered(scores[v]) < low) continue;
        float wait = (float)-log1p(-(double)(random[v] & ((1LL << 53) - 1)) * 0x1p-53);
        float chance = exponential((scores[v] - likeliest) / temperature) / wait;
        if (chance > first) best = v, first = chance;
    }
    return best;
}

/* The tokens that follow the step just taken, whose logits this changes, and where in the text that read */
static void draw(const struct step *s, const struct drawing *d) {
    int rows = s->rows / (d->guided ? 2 : 1), vocabulary = s->vocabulary;
    size_t every = (size_t)rows * s->codebooks;
    for (int row = 0; row < rows; row++) {
        const int64_t *random = d->random + (size_t)row * vocabulary;
        for (int q = 0; q < s->codebooks; q++) {
            size_t at = (size_t)row * s->codebooks + q;
            float *scores = s->logits + at * vocabulary;
            if (d->guided)
                for (int v = 0; v < vocabulary; v++)
                    scores[v] += (d->scale - 1) * (scores[v] - scores[v + every * vocabulary]);
            for (int v = 0; v < SPECIALS && v < vocabulary; v++)
                if (v != STOP || q || !d->may_end) scores[v] = -INFINITY;
            int sampled = d->top_k[q] != 1, ended = q < d->ended[row];
            d->next[at] = ended ? STOP
                        : token_of(scores, sampled ? random : 0, vocabulary, d->top_k[q], d->temperature[q]);
            if (d->guided) d->next[at + every] = d->next[at];
            if (sampled) random += (size_t)rows * vocabulary;
        }
        const size_t text = (size_t)row * s->tokens;
        d->positions[row] = dot(s->alignment + text, d->places + text, s->tokens);
    }
}

/* A matrix as packed times x (count, in) -> y (count, out): for tests */
static void multiply_alone(const char *packed, const float *x, int count, float *y, char *scratch) {
    const struct part *part = (const struct part *)packed;
    int out = part->out;
    multiply(0, &packed, quantised(x, count, part->in, &scratch), count, y, out, 0);
}

#include "vocos.h"

static const struct kernels NAME(kernels) = {
    TEXT(KERNELS), take_steps, read_text, fold, all_bands, draw, multiply_alone, decode_block,
};
#undef PARTS
#undef SIGNED
#undef OFFSET
#undef KERNELS
#undef PRODUCTS
#undef WIDTH
