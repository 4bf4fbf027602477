/* Vocos, with or without the codec's refiner before it, for one set of instructions: kernels.h includes this file once
   for each. Single precision; vectors lie frame after frame.

   Blocks of features go in, the samples that they complete come out. What later blocks need is kept in a state: a
   sequence of `struct rows`. Weights are floats in the order of their use; every part begins at a multiple of 16. */

#ifndef gelu
/* A convolution and ConvNeXt blocks; ahead: inputs after its own that each output depends on */
struct stack {
    int32_t layers, size, inner, kernel, ahead;
};

/* A decoder; library_smalle.py has the same. refiner.size: 0 without a refiner */
struct vocos {
    struct stack refiner, backbone;
    int32_t channels, n_fft, hop, upsampling, harmonic, trim, rate, noise_frames; /* hop: between spectral frames */
    const float *weights, *window, *roots, *noise; /* roots: cosine and sine of each part of n_fft of a turn */
};

/* Rows of floats in a state */
struct rows {
    int32_t count, capacity, width, unused;
    float values[];
};

static inline struct rows *next_rows(char **state) {
    struct rows *rows = (struct rows *)*state;
    *state += to_line(sizeof *rows + sizeof(float) * rows->capacity * rows->width);
    return rows;
}

static inline const float *next_floats(const float **at, int count) {
    const float *here = *at;
    *at += up(count, LANES);
    return here;
}

/* Frames that a block of `count` may complete at most */
static inline int most_rows(const struct vocos *v, int count) {
    int refiner = v->refiner.size ? (1 + v->refiner.layers) * v->refiner.ahead : 0;
    return count + refiner + (1 + v->backbone.layers) * v->backbone.ahead;
}

/* Adds rows of zeros to a state whose size is known so far; to: null while it is measured */
static void begin_rows(char *to, int64_t *size, int count, int capacity, int width) {
    struct rows rows = {.count = count, .capacity = capacity, .width = width};
    int64_t bytes = to_line(sizeof rows + sizeof(float) * capacity * width);
    if (to) {
        memset(to + *size, 0, bytes);
        memcpy(to + *size, &rows, sizeof rows);
    }
    *size += bytes;
}

static void begin_stack(char *to, int64_t *size, struct stack s, int channels) {
    for (int n = 0; n <= s.layers; n++)
        begin_rows(to, size, s.kernel - 1 - s.ahead, s.kernel - 1, n ? s.size : channels);
}

/* The state before the first block -> `to`, where that is not null; returns its bytes */
PUBLIC int64_t smalle_vocos_begin(const struct vocos *v, char *to) {
    int64_t size = 0;
    int bins = v->n_fft / 2 + 1, rest = v->n_fft - v->hop;
    if (v->refiner.size) {
        begin_rows(to, &size, 0, (1 + v->refiner.layers) * v->refiner.ahead, v->channels);
        begin_stack(to, &size, v->refiner, v->channels);
    }
    begin_stack(to, &size, v->backbone, v->channels);
    begin_rows(to, &size, 0, 2, rest);
    if (v->harmonic) {
        begin_rows(to, &size, 0, v->n_fft / v->hop + 2, 3 * bins + 1);
        begin_rows(to, &size, 0, 1, 2);
        begin_rows(to, &size, 0, 2, 1);
        begin_rows(to, &size, rest / 2, v->n_fft, 1);
    }
    return size;
}

/* Bytes of working memory for a block of `count` frames */
PUBLIC int64_t smalle_vocos_memory(const struct vocos *v, int count) {
    int64_t rows = most_rows(v, count), frames = rows * v->upsampling, bins = v->n_fft / 2 + 1, floats = 4096;
    const struct stack *stacks[] = {&v->refiner, &v->backbone};
    for (int n = 0; n < 2; n++) floats += (rows + stacks[n]->kernel) * (3 * stacks[n]->size + stacks[n]->inner);
    floats += (rows + v->backbone.kernel + v->refiner.kernel) * 4 * v->channels;
    floats += (2 * frames + v->n_fft / v->hop + 4) * (3 * bins + 1) + 5 * (frames + 4) * v->hop + 8 * v->n_fft;
    return 4 * (floats + 4 * (int64_t)v->n_fft * LANES);
}

#define gelu NAME(gelu)
#define cosine_and_sine NAME(cosine_and_sine)
#define columns NAME(columns)
#define matrix NAME(matrix)
#define norm NAME(norm)
#define windows NAME(windows)
#define convolution NAME(convolution)
#define convnext NAME(convnext)
#define refine NAME(refine)
#define apply_backbone NAME(apply_backbone)
#define fourier NAME(fourier)
#define pulses_of NAME(pulses_of)
#define excitation NAME(excitation)
#define from_polar NAME(from_polar)
#define spectra NAME(spectra)
#define overlapped NAME(overlapped)
#define synthesize NAME(synthesize)
#define decode_block NAME(decode_block)
#endif

#define GROUP (WIDTH == 16 ? 8 : WIDTH == 8 ? 6 : PRODUCTS == SSE2 ? 2 : 4) /* rows whose sums fit into registers */

/* The error function is off by 1.5e-7 at most (Abramowitz and Stegun 7.1.26) */
static inline float gelu(float x) {
    float size = fabsf(x), z = size * 0.70710678f, t = 1 / (1 + 0.3275911f * z);
    float p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    return 0.5f * (x + size * (1 - p * t * exponential(-z * z)));
}

/* Polynomials of the Cephes library over an eighth of a turn */
static inline void cosine_and_sine(float angle, float *cosine, float *sine) {
    angle = most(least(angle, 1e6f), -1e6f); /* beyond, or where it is NaN, no number would be right */
    double turns = rint(angle * 0.63661977236758134);
    int32_t quarter = (int32_t)turns;
    float x = (float)(angle - turns * 1.5707963267948966), z = x * x;
    float s = x + x * z * (-1.6666654611e-1f + z * (8.3321608736e-3f - z * 1.9515295891e-4f));
    float c = 1 - 0.5f * z + z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
    float first = quarter & 1 ? s : c, second = quarter & 1 ? c : s;
    *cosine = (quarter + 1) & 2 ? -first : first;
    *sine = quarter & 2 ? -second : second;
}

/* 16 columns of a matrix w (in, 16) times `count` rows of x -> y, or added to that; the last `width` columns of 16.
   ahead: weights (in, 16) to fetch meanwhile */
static inline __attribute__((always_inline)) void columns(
    int count, const float *w, const float *ahead, const float *bias, const float *x, int step, int in, float *y,
    int out, int width, int add) {
    floats sums[GROUP][PARTS];
    for (int m = 0; m < count; m++)
        for (int p = 0; p < PARTS; p++) sums[m][p] = *(const floats *)(bias + p * WIDTH);
    for (int k = 0; k < in; k++, w += LANES, ahead += LANES) {
        __builtin_prefetch(ahead, 0, 2);
        floats row[PARTS]; /* first, or a compiler keeps more than there are registers for */
        for (int p = 0; p < PARTS; p++) row[p] = *(const floats *)(w + p * WIDTH);
        for (int m = 0; m < count; m++)
            for (int p = 0; p < PARTS; p++) sums[m][p] += row[p] * x[(size_t)m * step + k];
    }
    for (int m = 0; m < count; m++, y += out) {
        if (width < LANES) {
            const float *from = (const float *)sums[m];
            for (int j = 0; j < width; j++) y[j] = add ? y[j] + from[j] : from[j];
        } else {
            for (int p = 0; p < PARTS; p++) {
                floats *to = (floats *)(y + p * WIDTH);
                *to = add ? *to + sums[m][p] : sums[m][p];
            }
        }
    }
}

/* The next bias and matrix of the stream times rows of x, `step` floats apart -> y (count, out), or added to that */
static void matrix(const float **at, const float *x, int step, int count, int in, float *y, int out, int add) {
    const float *bias = next_floats(at, out);
    for (int n = 0; n < out; n += LANES) {
        const float *w = next_floats(at, in * LANES);
        int width = out - n < LANES ? out - n : LANES;
        for (int m = 0, here; m < count; m += here) {
            const float *from = x + (size_t)m * step, *ahead = m ? w : w + in * LANES;
            float *to = y + (size_t)m * out + n;
            int left = count - m;
            here = left >= GROUP ? GROUP : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            if (here == GROUP) columns(GROUP, w, ahead, bias + n, from, step, in, to, out, width, add);
            else if (here == 4) columns(4, w, ahead, bias + n, from, step, in, to, out, width, add);
            else if (here == 2) columns(2, w, ahead, bias + n, from, step, in, to, out, width, add);
            else columns(1, w, ahead, bias + n, from, step, in, to, out, width, add);
        }
    }
}

/* The next LayerNorm of the stream over x (count, size), in place */
static void norm(const float **at, float *x, int count, int size) {
    const float *weight = next_floats(at, size), *bias = next_floats(at, size);
    for (int m = 0; m < count; m++, x += size) {
        float mean = 0, square = 0;
        for (int i = 0; i < size; i++) mean += x[i];
        mean /= size;
        for (int i = 0; i < size; i++) square += (x[i] - mean) * (x[i] - mean);
        float scale = 1 / sqrtf(square / size + 1e-6f);
        for (int i = 0; i < size; i++) x[i] = (x[i] - mean) * scale * weight[i] + bias[i];
    }
}

/* Kept rows, `count` new ones and `after` zeros, one after the other; returns how many windows of `size` rows, `step`
   rows apart, they have, and keeps what later ones need */
static int windows(struct rows *kept, const float *x, int count, int after, int size, int step, float **joined,
                   char **scratch) {
    int width = kept->width, all = kept->count + count + after, ready = all < size ? 0 : (all - size) / step + 1;
    float *to = *joined = room_for(scratch, sizeof(float) * all * width);
    memcpy(to, kept->values, sizeof(float) * kept->count * width);
    memcpy(to + (size_t)kept->count * width, x, sizeof(float) * count * width);
    memset(to + (size_t)(kept->count + count) * width, 0, sizeof(float) * after * width);
    kept->count = all - ready * step;
    if (kept->count > kept->capacity) kept->count = 0; /* of the last block, which has nothing after it */
    memcpy(kept->values, to + (size_t)ready * step * width, sizeof(float) * kept->count * width);
    return ready;
}

/* `ChunkedConv1d` of x (count, in) -> y (T', out) of the T' positions that are complete */
static int convolution(const float **at, char **state, const float *x, int count, struct stack s, int last, float *y,
                       char *scratch) {
    struct rows *kept = next_rows(state);
    float *joined;
    int ready = windows(kept, x, count, last ? s.ahead : 0, s.kernel, 1, &joined, &scratch);
    matrix(at, joined, kept->width, ready, s.kernel * kept->width, y, s.size, 0);
    return ready;
}

/* `ConvNeXtBlock` of x (count, size) -> over it, (T', size) of the T' positions that are complete */
static int convnext(const float **at, char **state, float *x, int count, struct stack s, int last, char *scratch) {
    int size = s.size, back = s.kernel - 1 - s.ahead;
    float *joined;
    int ready = windows(next_rows(state), x, count, last ? s.ahead : 0, s.kernel, 1, &joined, &scratch);
    float *y = room_for(&scratch, sizeof(float) * ready * size);
    float *inner = room_for(&scratch, sizeof(float) * ready * s.inner);
    const float *bias = next_floats(at, size), *taps = next_floats(at, s.kernel * size);
    for (int m = 0; m < ready; m++) {
        float *restrict to = y + (size_t)m * size;
        memcpy(to, bias, sizeof(float) * size);
        for (int k = 0; k < s.kernel; k++) {
            const float *from = joined + (size_t)(m + k) * size, *tap = taps + k * size;
            for (int i = 0; i < size; i++) to[i] += tap[i] * from[i];
        }
    }
    norm(at, y, ready, size);
    matrix(at, y, size, ready, size, inner, s.inner, 0);
    for (int i = 0; i < ready * s.inner; i++) inner[i] = gelu(inner[i]);
    memcpy(x, joined + (size_t)back * size, sizeof(float) * ready * size);
    matrix(at, inner, s.inner, ready, s.inner, x, size, 1); /* this has the scale of each channel */
    return ready;
}

/* `LatentRefiner` of x (count, channels) -> over it, of the frames that are complete */
static int refine(const struct vocos *v, const float **at, char **state, float *x, int count, int last, char *scratch) {
    struct rows *waiting = next_rows(state);
    int all = waiting->count + count, width = v->channels, ready;
    float *latents = room_for(&scratch, sizeof(float) * all * width);
    float *y = room_for(&scratch, sizeof(float) * most_rows(v, all) * v->refiner.size);
    memcpy(latents, waiting->values, sizeof(float) * waiting->count * width);
    memcpy(latents + waiting->count * width, x, sizeof(float) * count * width);
    ready = convolution(at, state, x, count, v->refiner, last, y, scratch);
    for (int n = 0; n < v->refiner.layers; n++) ready = convnext(at, state, y, ready, v->refiner, last, scratch);
    norm(at, y, ready, v->refiner.size);
    waiting->count = all - ready;
    memcpy(waiting->values, latents + ready * width, sizeof(float) * waiting->count * width);
    memcpy(x, latents, sizeof(float) * ready * width);
    matrix(at, y, v->refiner.size, ready, v->refiner.size, x, width, 1); /* these have the scales of the latents */
    return ready;
}

/* `VocosBackbone` of x (count, channels) -> y (T', size) */
static int apply_backbone(const struct vocos *v, const float **at, char **state, const float *x, int count, int last,
                    float *y, char *scratch) {
    int ready = convolution(at, state, x, count, v->backbone, last, y, scratch);
    norm(at, y, ready, v->backbone.size);
    for (int n = 0; n < v->backbone.layers; n++) ready = convnext(at, state, y, ready, v->backbone, last, scratch);
    norm(at, y, ready, v->backbone.size);
    return ready;
}

/* Fourier transforms of 16 complex signals side by side: re, im (n, 16) in place, without a factor; the inverse where
   re and im change places. Stockham's, a pass for each factor of n; `other`: as large as re and im */
static void fourier(const struct vocos *v, float *re, float *im, float *other) {
    float *from[2] = {re, im}, *to[2] = {other, other + v->n_fft * LANES};
    int n = v->n_fft, step = 1;
    for (int radix; n > 1; n /= radix, step *= radix) {
        for (radix = n % 4 ? 2 : 4; n % radix; radix++) {}
        int part = n / radix;
        for (int k = 0; k < part; k++)
            for (int q = 0; q < step; q++)
                for (int j = 0; j < radix; j++) {
                    float r[LANES] = {0}, i[LANES] = {0};
                    for (int b = 0; b < radix; b++) { /* a root of unity of the radix, and the twiddle factor */
                        int turn = (j * b % radix * part + j * k) * step % v->n_fft;
                        float c = v->roots[2 * turn], s = v->roots[2 * turn + 1];
                        const float *x = from[0] + (q + step * (k + b * part)) * LANES;
                        const float *y = from[1] + (q + step * (k + b * part)) * LANES;
                        for (int l = 0; l < LANES; l++) r[l] += x[l] * c + y[l] * s;
                        for (int l = 0; l < LANES; l++) i[l] += y[l] * c - x[l] * s;
                    }
                    int at = (q + step * (radix * k + j)) * LANES;
                    memcpy(to[0] + at, r, sizeof r);
                    memcpy(to[1] + at, i, sizeof i);
                }
        for (int side = 0; side < 2; side++) {
            float *swap = from[side];
            from[side] = to[side];
            to[side] = swap;
        }
    }
    if (from[0] != re) {
        memcpy(re, from[0], sizeof(float) * v->n_fft * LANES);
        memcpy(im, from[1], sizeof(float) * v->n_fft * LANES);
    }
}

/* `pulse_train` of a frame, between those before and after it, f0 in Hz */
static void pulses_of(const struct vocos *v, const float *f0, double *phase, float *out) {
    double cycles = 0; /* in single precision, rounding would add up to a turn of the high harmonics */
    for (int i = 0; i < v->hop; i++) {
        float place = (i + 0.5f) / v->hop - 0.5f;
        float hertz = f0[1] + least(place, 0) * (f0[1] - f0[0]) + most(place, 0) * (f0[2] - f0[1]);
        hertz = most(hertz, 20);
        cycles += hertz / v->rate;
        double turns = *phase + cycles, angle = 6.283185307179586 * (turns - rint(turns));
        double harmonics = floorf((float)(0.46 * v->rate) / hertz), half = sin(angle / 2);
        out[i] = (float)(fabs(half) < 1e-6 ? harmonics : sin((harmonics + 0.5) * angle) / (2 * half) - 0.5);
    }
    *phase += cycles;
    *phase -= floor(*phase);
}

/* What the filters of frames act on: the pulses that follow the f0 of new frames, raw (count, width) -> joined with
   kept ones; returns the frames that are complete */
static int excitation(const struct vocos *v, char **state, const float *raw, int count, int width, int last,
                      float **pulses, char **scratch) {
    struct rows *phase = next_rows(state), *kept = next_rows(state), *edge = next_rows(state);
    float *joined, *f0 = room_for(scratch, sizeof(float) * (count + 2));
    float *new = room_for(scratch, sizeof(float) * (count + 2) * v->hop);
    int first = kept->count == 0, size = 0, pad = (v->n_fft - v->hop) / 2;
    for (int m = 0; m < count; m++) {
        float x = most(least(raw[(size_t)(m + 1) * width - 1], 2), -2);
        f0[size++] = 150 * expf(x);
        if (first && size == 1) f0[size++] = f0[0];
    }
    if (last) f0[size] = f0[size - 1], size++;
    int ready = windows(kept, f0, size, 0, 3, 1, &joined, scratch);
    for (int m = 0; m < ready; m++) pulses_of(v, joined + m, (double *)phase->values, new + (size_t)m * v->hop);
    return windows(edge, new, ready * v->hop, last ? pad : 0, v->n_fft, v->hop, pulses, scratch);
}

/* What the head predicts of frames, raw (count, width), from logarithms and angles to numbers, in place: the real and
   the imaginary part of each bin, and how loud its noise is */
static void from_polar(const struct vocos *v, float *raw, int count, int width) {
    int bins = v->n_fft / 2 + 1;
    for (int m = 0; m < count; m++, raw += width) {
        float *restrict real = raw, *restrict imaginary = raw + bins, *restrict loud = raw + 2 * bins;
        for (int k = 0; k < bins; k++) {
            float size = exponential(least(real[k], 4.6051702f)), c, s;
            cosine_and_sine(imaginary[k], &c, &s);
            real[k] = c * size, imaginary[k] = s * size;
        }
        for (int k = 0; k < bins && v->harmonic; k++) loud[k] = exponential(least(loud[k], 4.6051702f));
    }
}

/* Spectra of up to 32 frames, two in each of 16 signals: re, im (n_fft, 16), where raw (count, width) is what
   `from_polar` leaves and re, im hold the transforms of the pulses; `frame`: of the first */
static void spectra(const struct vocos *v, const float *raw, int count, int width, int frame, float *re, float *im) {
    int bins = v->n_fft / 2 + 1, n = v->n_fft;
    for (int k = 0; k < bins; k++) {
        float *a = re + k * LANES, *b = im + k * LANES; /* a bin and its mirror */
        float *c = re + (n - k) % n * LANES, *d = im + (n - k) % n * LANES;
        float real[2][LANES] = {{0}}, imaginary[2][LANES] = {{0}}, loud[2][LANES], noise[2][2][LANES];
        for (int m = 0; m < count; m++) {
            const float *at = raw + (size_t)m * width + k;
            real[m % 2][m / 2] = at[0], imaginary[m % 2][m / 2] = at[bins];
        }
        if (v->harmonic) {
            memset(loud, 0, sizeof loud), memset(noise, 0, sizeof noise);
            for (int m = 0; m < count; m++) {
                const float *from = v->noise + 2 * ((size_t)((frame + m) % v->noise_frames) * bins + k);
                loud[m % 2][m / 2] = raw[(size_t)m * width + 2 * bins + k];
                noise[m % 2][0][m / 2] = from[0], noise[m % 2][1][m / 2] = from[1];
            }
            for (int l = 0; l < LANES; l++) {
                float x[2][2] = {{(a[l] + c[l]) / 2, (b[l] - d[l]) / 2}, {(b[l] + d[l]) / 2, (c[l] - a[l]) / 2}};
                for (int side = 0; side < 2; side++) {
                    float r = real[side][l], i = imaginary[side][l];
                    real[side][l] = x[side][0] * r - x[side][1] * i + noise[side][0][l] * loud[side][l];
                    imaginary[side][l] = x[side][0] * i + x[side][1] * r + noise[side][1][l] * loud[side][l];
                }
            }
        }
        if (k == 0 || k == bins - 1) memset(imaginary, 0, sizeof imaginary);
        for (int l = 0; l < LANES; l++) {
            a[l] = real[0][l] - imaginary[1][l], b[l] = imaginary[0][l] + real[1][l];
            c[l] = real[0][l] + imaginary[1][l], d[l] = real[1][l] - imaginary[0][l];
        }
    }
}

/* Adds `count` frames, raw (count, width) with their pulses, to sums and squared windows from their first sample on */
static void overlapped(const struct vocos *v, const float *raw, const float *pulses, int count, int width, int frame,
                       float *sums, float *squares, char *scratch) {
    int n = v->n_fft;
    float *re = room_for(&scratch, sizeof(float) * n * LANES), *im = room_for(&scratch, sizeof(float) * n * LANES);
    float *other = room_for(&scratch, sizeof(float) * n * 2 * LANES);
    for (int i = 0; i < n && v->harmonic; i++)
        for (int l = 0; l < LANES; l++) {
            float scale = v->window[i] * 4 / n;
            re[i * LANES + l] = 2 * l < count ? pulses[2 * l * v->hop + i] * scale : 0;
            im[i * LANES + l] = 2 * l + 1 < count ? pulses[(2 * l + 1) * v->hop + i] * scale : 0;
        }
    if (v->harmonic) fourier(v, re, im, other);
    else memset(re, 0, sizeof(float) * n * LANES), memset(im, 0, sizeof(float) * n * LANES);
    spectra(v, raw, count, width, frame, re, im);
    fourier(v, im, re, other);
    for (int m = 0; m < count; m++) {
        const float *from = (m % 2 ? im : re) + m / 2;
        for (int i = 0; i < n; i++) {
            sums[m * v->hop + i] += from[i * LANES] * v->window[i] / n;
            squares[m * v->hop + i] += v->window[i] * v->window[i];
        }
    }
}

/* The head and the inverse transform of x (count, size), or with `last` of all frames that wait -> samples; how many */
static int synthesize(const struct vocos *v, const float **at, char **state, const float *x, int count, int last,
                      float *out, char *scratch) {
    int bins = v->n_fft / 2 + 1, width = v->harmonic ? 3 * bins + 1 : 2 * bins, frames = count * v->upsampling;
    int rest = v->n_fft - v->hop, ready = frames;
    float *new = room_for(&scratch, sizeof(float) * frames * width), *raw = new, *pulses = new; /* of none: not read */
    matrix(at, x, v->backbone.size, count, v->backbone.size, new, v->upsampling * width, 0);
    struct rows *kept = next_rows(state), *waiting = v->harmonic ? next_rows(state) : 0;
    int frame = kept->count; /* of the first */
    if (v->harmonic) {
        ready = excitation(v, state, new, frames, width, last, &pulses, &scratch);
        int all = waiting->count + frames;
        raw = room_for(&scratch, sizeof(float) * all * width);
        memcpy(raw, waiting->values, sizeof(float) * waiting->count * width);
        memcpy(raw + (size_t)waiting->count * width, new, sizeof(float) * frames * width);
        waiting->count = all - ready;
        memcpy(waiting->values, raw + (size_t)ready * width, sizeof(float) * waiting->count * width);
    }
    if (!ready) return 0;
    from_polar(v, raw, ready, width);
    int total = ready * v->hop + rest, first = v->trim - frame * v->hop, end = last ? total - v->trim : ready * v->hop;
    float *sums = room_for(&scratch, sizeof(float) * total), *squares = room_for(&scratch, sizeof(float) * total);
    memset(sums, 0, sizeof(float) * total), memset(squares, 0, sizeof(float) * total);
    memcpy(sums, kept->values, sizeof(float) * rest), memcpy(squares, kept->values + rest, sizeof(float) * rest);
    for (int m = 0; m < ready; m += 2 * LANES) {
        int here = ready - m < 2 * LANES ? ready - m : 2 * LANES, sample = m * v->hop;
        overlapped(v, raw + (size_t)m * width, pulses + sample, here, width, frame + m, sums + sample, squares + sample,
                   scratch);
    }
    kept->count = frame + ready;
    memcpy(kept->values, sums + ready * v->hop, sizeof(float) * rest);
    memcpy(kept->values + rest, squares + ready * v->hop, sizeof(float) * rest);
    if (first < 0) first = 0;
    for (int i = first; i < end; i++) out[i - first] = sums[i] / most(squares[i], 1e-11f);
    return end > first ? end - first : 0;
}

static int decode_block(const struct vocos *v, const float *features, int count, int last, char *state, float *out,
                     char *scratch) {
    const float *at = v->weights;
    float *x = room_for(&scratch, sizeof(float) * most_rows(v, count) * v->channels);
    float *y = room_for(&scratch, sizeof(float) * most_rows(v, count) * v->backbone.size);
    memcpy(x, features, sizeof(float) * count * v->channels);
    if (v->refiner.size) count = refine(v, &at, &state, x, count, last, scratch);
    count = apply_backbone(v, &at, &state, x, count, last, y, scratch);
    return count ? synthesize(v, &at, &state, y, count, last, out, scratch) : 0;
}

#undef GROUP
