/* Decodes random features with random weights by every set of kernels that this processor has; prints samples. */

#include "../../smalle/native/smalle.c"

#include <stdio.h>
#include <stdlib.h>

static float next_random(void) {
    static uint32_t state = 1;
    state = state * 1664525 + 1013904223;
    return (float)(state >> 8) / (1 << 24) - 0.5f;
}

int main(void) {
    enum { N = 120, FRAMES = 40, SIZE = 1 << 20 };
    static _Alignas(64) float weights[1 << 17], window[N], roots[2 * N], noise[8 * (N + 2)], features[FRAMES * 12];
    static _Alignas(64) char state[SIZE], scratch[4 * SIZE];
    static float wave[(FRAMES + 40) * 120];
    for (int i = 0; i < 1 << 17; i++) weights[i] = 0.2f * next_random();
    for (int i = 0; i < 8 * (N + 2); i++) noise[i] = next_random();
    for (int i = 0; i < FRAMES * 12; i++) features[i] = 2 * next_random();
    for (int i = 0; i < N; i++) {
        double turn = 6.283185307179586 * i / N;
        window[i] = (float)(0.5 - 0.5 * cos(turn)), roots[2 * i] = (float)cos(turn), roots[2 * i + 1] = (float)sin(turn);
    }
    for (int harmonic = 0; harmonic < 2; harmonic++) {
        struct vocos v = {.refiner = {2, 20, 28, 7, 1}, .backbone = {2, 40, 52, 7, 3}, .channels = 12, .n_fft = N};
        v.hop = 30, v.upsampling = 2, v.harmonic = harmonic, v.trim = 45, v.rate = 24000, v.noise_frames = 8;
        v.weights = weights, v.window = window, v.roots = roots, v.noise = noise;
        if (smalle_vocos_begin(&v, 0) > SIZE || smalle_vocos_memory(&v, FRAMES) > 4 * SIZE) return 1;
        for (size_t n = 0; n < sizeof fastest_first / sizeof *fastest_first; n++) {
            if (!has(fastest_first[n])) continue;
            smalle_choose(fastest_first[n]->name);
            smalle_vocos_begin(&v, state);
            int count = smalle_vocos(&v, features, FRAMES, 0, state, wave, scratch);
            count += smalle_vocos(&v, features, 0, 1, state, wave + count, scratch);
            printf("%s %d", chosen->name, count);
            for (int i = 0; i < count; i += count / 8) printf(" %.6g", wave[i]);
            printf("\n");
        }
    }
    return 0;
}
