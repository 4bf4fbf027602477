# Generated from smalle/native by `python smalle/native/build.py`: change what is there.
# ruff: noqa
# fmt: off
"""The C library, without PyTorch: finding, compiling and loading it, its structures, and its codec decoder.

The library (smalle/native) comes with the package; if it is missing, it is compiled once into the user's cache. No
machine code is loaded from a checkpoint. Arrays are NumPy arrays.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import itertools
import logging
import os
import platform
import random
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NAME = "smalle-c994985b1a3a"
FLAGS = "-O3 -fPIC -shared -pthread -fvisibility=hidden -fno-math-errno -fno-trapping-math -fassociative-math -fno-signed-zeros -freciprocal-math"
SOURCES = {
    "smalle.c": r"""#include <math.h>
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
#ifdef __x86_64__
static unsigned flush(void) { unsigned before = _mm_getcsr(); _mm_setcsr(before | 0x8040); return before; }
#define unflush _mm_setcsr
#else
static unsigned flush(void) { return 0; }
#define unflush (void)
#endif
#include "threads.h"
enum { LANES = 16, BLOCK = 128, TILE = 4, PENDING = 16, BAND = 64, AHEAD = 4096 }; enum { ITEM = 1 << 16, FOLDED = 64,
LAYER_NORM = 1, RMS_NORM = 2 }; enum { STOP = 2, SPECIALS = 3 }; struct step { int32_t rows, steps, tokens, codebooks,
vocabulary, hidden, heads, position_size, position_heads, before, after; int32_t pending, room; int32_t threads; float
eps, normalizer, strongest, gain; const char *weights; const float *embedding; const int64_t *codes; const float
*text_keys, *text_values, *positions; const uint8_t *text_mask; void **states; float *logits, *alignment; char
*scratch; }; struct drawing { int32_t guided, may_end; float scale; const int32_t *top_k; const float *temperature;
const int64_t *random; const int32_t *ended; const float *places; int64_t *next; float *positions; }; struct text {
int32_t tokens, hidden, heads, layers, turned, threads; float eps; const char *weights; float *x; const uint8_t *mask;
const float *cosines, *sines; float *keys, *values; char *scratch; }; struct part { int32_t kind, in, out, biased;
int32_t unused[12]; }; struct input { const float *values; int8_t *bits; float *scales; int32_t *sums; }; struct
vocos; struct kernels { const char *name; void (*run_steps)(const struct step *, struct team *); void
(*run_text)(const struct text *, struct team *); void (*run_fold)(struct team *, int, int, int, const float *, const
float *, const float *, const float *, float *, uint32_t *); void (*run_bands)(int, int, int, const float *, uint32_t
*); void (*run_draw)(const struct step *, const struct drawing *); void (*run_multiply)(const char *, const float *,
int, float *, char *); int (*run_vocos)(const struct vocos *, const float *, int, int, char *, float *, char *); };
static inline float least(float a, float b) { return a < b ? a : b; } static inline float most(float a, float b) {
return a > b ? a : b; } static inline int up(int n, int to) { return (n + to - 1) / to * to; } static inline size_t
to_line(size_t bytes) { return (bytes + 63) / 64 * 64; } static inline size_t tile_size(int in, int eight) { return
eight ? (size_t)up(in, LANES) * LANES + (size_t)up(in, BLOCK) / BLOCK * 4 * LANES : (size_t)in * 4 * LANES; } static
inline void fetch(const void *from, int number) { if (number % 16 == 0) __builtin_prefetch((const char *)from +
AHEAD); } static inline const struct part *next_part(const char **at) { const struct part *part = (const struct part
*)*at; *at += sizeof *part; return part; } static inline const void *take(const char **at, size_t bytes) { const void
*here = *at; *at += to_line(bytes); return here; } static inline void *room_for(char **scratch, size_t bytes) { void
*here = *scratch; *scratch += to_line(bytes); return here; }
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
#define KERNELS plain  
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
static unsigned saved_registers(void) { unsigned low, high; __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0)); return
low; } static int has(const struct kernels *kernels) { unsigned a, b, c, d, seven_a, seven_b, seven_c; enum { FMA = 1
<< 12, OSXSAVE = 1 << 27, AVX2_BIT = 1 << 5, VNNI_BIT = 1 << 11, AVX_VNNI_BIT = 1 << 4 }; const unsigned avx512 = 1u
<< 16 | 1u << 17 | 1u << 30 | 1u << 31; if (kernels == &kernels_plain) return 1; if (!__get_cpuid(1, &a, &b, &c, &d)
|| !(c & FMA) || !(c & OSXSAVE) || (saved_registers() & 6) != 6) return 0; if (!__get_cpuid_count(7, 0, &seven_a,
&seven_b, &seven_c, &d) || !(seven_b & AVX2_BIT)) return 0; if (kernels == &kernels_avx2) return 1; if (kernels ==
&kernels_avx512_vnni) return (seven_b & avx512) == avx512 && seven_c & VNNI_BIT && (saved_registers() & 0xe6) == 0xe6;
return seven_a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & AVX_VNNI_BIT; }
#elif defined __aarch64__ && defined __linux__
static int has(const struct kernels *kernels) { return kernels == &kernels_plain || getauxval(AT_HWCAP) & 1 << 20; }
#elif defined __aarch64__ && defined __APPLE__
static int has(const struct kernels *kernels) { return 1; }
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
&kernels_plain, }; static const struct kernels *chosen = &kernels_plain; PUBLIC const char *smalle_choose(const char
*name) { for (size_t n = 0; n < sizeof fastest_first / sizeof *fastest_first; n++) if ((!*name || !strcmp(name,
fastest_first[n]->name)) && has(fastest_first[n])) { chosen = fastest_first[n]; return chosen->name; } return 0; }
PUBLIC void smalle_steps(const struct step *s) { unsigned before = flush(); struct team *team = gather(s->threads);
chosen->run_steps(s, team); dismiss(team); unflush(before); } PUBLIC void smalle_text(const struct text *s) { unsigned
before = flush(); struct team *team = gather(s->threads); chosen->run_text(s, team); dismiss(team); unflush(before); }
PUBLIC void smalle_fold(int threads, int heads, int keys, int values, const float *state, const float *decay, const
float *old_keys, const float *old, float *out, uint32_t *bands) { unsigned before = flush(); struct team *team =
gather(threads); chosen->run_fold(team, heads, keys, values, state, decay, old_keys, old, out, bands); dismiss(team);
unflush(before); } PUBLIC void smalle_bands(int heads, int keys, int values, const float *state, uint32_t *bands) {
chosen->run_bands(heads, keys, values, state, bands); } PUBLIC void smalle_draw(const struct step *s, const struct
drawing *d) { chosen->run_draw(s, d); } PUBLIC void smalle_multiply(const char *packed, const float *x, int count,
float *y, char *scratch) { chosen->run_multiply(packed, x, count, y, scratch); } PUBLIC int smalle_vocos(const struct
vocos *v, const float *features, int count, int last, char *state, float *out, char *scratch) { unsigned before =
flush(); count = chosen->run_vocos(v, features, count, last, state, out, scratch); unflush(before); return count; }
PUBLIC int64_t smalle_pack_norm(int kind, int size, const float *weight, const float *bias, char *to) { size_t each =
to_line(4 * (size_t)size), all = sizeof(struct part) + (kind ? (bias ? 2 : 1) * each : 0); if (!to) return all;
memset(to, 0, all); *(struct part *)to = (struct part){.kind = kind, .in = size}; if (kind) memcpy(to += sizeof(struct
part), weight, 4 * (size_t)size); if (kind && bias) memcpy(to + each, bias, 4 * (size_t)size); return all; } static
float pack_column(const float *column, int count, float scale, uint8_t *to) { uint8_t bits[BLOCK]; float peak = 0; for
(int k = 0; k < count; k++) peak = most(peak, fabsf(column[k] * scale)); float factor = peak ? 127 / peak * scale : 0;
memset(bits, 128, BLOCK); for (int k = 0; k < count; k++) bits[k] = (uint8_t)(lrintf(column[k] * factor) + 128); for
(int k = 0; k < count; k += 4) memcpy(to + k * LANES, bits + k, 4); return peak / 127; } PUBLIC int64_t
smalle_pack_matrix(int in, int out, int eight, float scale, const float *weight, const float *bias, char *to) { size_t
tile = tile_size(in, eight), head = sizeof(struct part) + (bias ? to_line(4 * (size_t)up(out, LANES)) : 0); size_t all
= head + to_line(tile) * (up(out, LANES) / LANES); if (!to) return all; memset(to, 0, all); *(struct part *)to =
(struct part){.kind = eight ? 8 : 32, .in = in, .out = out, .biased = bias != 0}; if (bias) memcpy(to + sizeof(struct
part), bias, 4 * (size_t)out); to += head; for (int n = 0; n < out; n += LANES, to += to_line(tile)) { uint8_t *at =
(uint8_t *)to; int here = out - n < LANES ? out - n : LANES; const float *columns = weight + (size_t)n * in; if
(eight) for (int k = 0; k < in; k += BLOCK) { int rows = in - k < BLOCK ? in - k : BLOCK, size = up(rows, LANES) *
LANES; memset(at, 128, size); float *scales = (float *)(at + size); for (int j = 0; j < here; j++) scales[j] =
pack_column(columns + (size_t)j * in + k, rows, scale, at + 4 * j); at += size + 4 * LANES; } else for (int k = 0; k <
in; k++) for (int j = 0; j < here; j++) ((float *)to)[(size_t)k * LANES + j] = columns[(size_t)j * in + k] * scale; }
return all; }
""",
    "threads.h": r"""#if defined _WIN32 || defined __STDC_NO_ATOMICS__
struct team; static struct team *gather(int threads) { return 0; } static void dismiss(struct team *of_call) {} static
void share(struct team *of_call, int items, void (*item)(const void *, int), const void *job) { for (int n = 0; n <
items; n++) item(job, n); }
#else
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>
enum { MOST_ITEMS = 0xffff, LOOKS = 1000 }; enum { LATE = 500000, SLEEP = 100000000, SECOND = 1000000000 }; enum {
STACK = 1 << 19 }; enum { CREDIT = 32, COST = 16, REST = 64 }; struct half { _Alignas(64) _Atomic uint32_t claims; };
struct team { struct half halves[2]; _Alignas(64) _Atomic uint32_t done; void (*item)(const void *, int); const void
*job; int late, helped; int credit, rest; atomic_int taken, asleep; int helpers; pthread_mutex_t mutex; pthread_cond_t
work; };
#define NEW {.credit = CREDIT, .mutex = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER}
static const struct team fresh = NEW; static struct team team = NEW; static inline void pause_briefly(void) {
#if defined __x86_64__
_mm_pause();
#elif defined __aarch64__
__asm__ volatile("isb");
#endif
} static int64_t now(void) { struct timespec time; clock_gettime(CLOCK_MONOTONIC, &time); return (int64_t)time.tv_sec
* SECOND + time.tv_nsec; } static int claim(int half) { for (int n = 0; n < 2; n++, half = !half) { _Atomic uint32_t
*place = &team.halves[half].claims; uint32_t claims = atomic_load_explicit(place, memory_order_relaxed); while
((claims & MOST_ITEMS) < claims >> 16) if (atomic_compare_exchange_weak_explicit(place, &claims, claims + 1,
memory_order_acquire, memory_order_relaxed)) return (int)(claims & MOST_ITEMS); } return -1; } static int
sleep_well(void) { struct timespec until; clock_gettime(CLOCK_REALTIME, &until); until.tv_nsec += SLEEP; if
(until.tv_nsec >= SECOND) until.tv_nsec -= SECOND, until.tv_sec++; pthread_mutex_lock(&team.mutex);
atomic_fetch_add(&team.asleep, 1); int ends = pthread_cond_timedwait(&team.work, &team.mutex, &until) == ETIMEDOUT; if
(ends) team.helpers--; if (ends && team.asleep) atomic_fetch_sub(&team.asleep, 1); pthread_mutex_unlock(&team.mutex);
return !ends; } static void *help(void *unused) { flush(); for (int looks = 0; looks < LOOKS || sleep_well(); looks++)
{ if (looks == LOOKS) looks = 0; for (int n; (n = claim(1)) >= 0; looks = 0) { team.item(team.job, n);
atomic_fetch_add_explicit(&team.done, 1, memory_order_release); } pause_briefly(); } return 0; } static void
forget(void) { memcpy(&team, &fresh, sizeof team); } static int start(int helpers) { pthread_attr_t kind; sigset_t
all, before; pthread_t thread; static int forks; int failed = 0; if (!forks) forks = !pthread_atfork(0, 0, forget);
pthread_attr_init(&kind); pthread_attr_setdetachstate(&kind, PTHREAD_CREATE_DETACHED);
pthread_attr_setstacksize(&kind, STACK); sigfillset(&all); pthread_sigmask(SIG_SETMASK, &all, &before); while
(team.helpers < helpers && !failed) if (!(failed = pthread_create(&thread, &kind, help, 0))) team.helpers++;
pthread_sigmask(SIG_SETMASK, &before, 0); pthread_attr_destroy(&kind); return !failed; } static struct team
*gather(int threads) { if (threads < 2 || atomic_exchange(&team.taken, 1)) return 0; if (team.rest > 0) { team.rest--;
atomic_store(&team.taken, 0); return 0; } if (!pthread_mutex_trylock(&team.mutex)) { if (team.helpers < threads - 1 &&
!start(threads - 1)) team.rest = REST; pthread_mutex_unlock(&team.mutex); } team.late = team.helped = 0; return &team;
} static void dismiss(struct team *of_call) { if (!of_call) return; if (team.late && team.credit < COST) team.rest =
REST; team.credit += team.late ? -COST : team.helped; team.credit = team.credit < 0 ? 0 : team.credit > CREDIT ?
CREDIT : team.credit; atomic_store(&team.taken, 0); } static void offer(int items, void (*item)(const void *, int),
const void *job) { team.item = item, team.job = job; atomic_store_explicit(&team.done, 0, memory_order_relaxed);
atomic_store_explicit(&team.halves[1].claims, (uint32_t)items << 16 | (uint32_t)items / 2, memory_order_release);
atomic_store_explicit(&team.halves[0].claims, (uint32_t)(items / 2) << 16, memory_order_release); if
(atomic_load_explicit(&team.asleep, memory_order_relaxed) && !pthread_mutex_trylock(&team.mutex)) {
atomic_store(&team.asleep, 0); pthread_mutex_unlock(&team.mutex); pthread_cond_broadcast(&team.work); } } static void
share(struct team *of_call, int items, void (*item)(const void *, int), const void *job) { if (!of_call || items < 2
|| items > MOST_ITEMS || team.late) { for (int n = 0; n < items; n++) item(job, n); return; } uint32_t own = 0;
offer(items, item, job); for (int n; (n = claim(0)) >= 0; own++) item(job, n); team.helped |= own < (uint32_t)items;
int64_t since = 0; for (uint32_t waits = 0; atomic_load_explicit(&team.done, memory_order_acquire) < items - own;
waits++) { if (team.late) sched_yield(); else if (waits % 64) pause_briefly(); else if (!since) since = now(); else
team.late = now() - since > LATE; } }
#endif
""",
    "kernels.h": r"""#ifndef NAME
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
#define PARTS (LANES / WIDTH)  
#define SIGNED (PRODUCTS == AVX2 || PRODUCTS == NEON || PRODUCTS == NEON_DOT)
#define OFFSET (SIGNED ? 0 : 128)  
typedef int32_t ints __attribute__((vector_size(4 * WIDTH), aligned(4))); typedef float floats
__attribute__((vector_size(4 * WIDTH), aligned(4))); static inline float exponential(float x) { x = least(most(x *
1.44269504f, -126.0f), 127.0f); float whole = rintf(x), part = x - whole; float p = 1.5353362e-4f; p = p * part +
1.3398874e-3f; p = p * part + 9.6184373e-3f; p = p * part + 5.5503324e-2f; p = p * part + 2.4022648e-1f; p = p * part
+ 6.9314720e-1f; p = p * part + 1.0f; union { int32_t i; float f; } power = {((int32_t)whole + 127) << 23}; return p *
power.f; } static inline float silu(float x) { return x / (1 + exponential(-x)); } static inline float
softplus_of_minus(float x) { float e = exponential(-x), s = e / (2 + e), s2 = s * s; float p = 0.0909090909f; p = p *
s2 + 0.1111111111f; p = p * s2 + 0.1428571429f; p = p * s2 + 0.2f; p = p * s2 + 0.3333333333f; return 2 * s * (1 + s2
* p); } static inline int32_t ordered(float x) { int32_t bits; memcpy(&bits, &x, 4); return bits ^ (bits >> 31 &
0x7fffffff); } static inline int32_t highest(const float *x, int count, int magnitudes) { int32_t peak = INT32_MIN;
for (int i = 0; i < count; i++) { int32_t one = ordered(magnitudes ? fabsf(x[i]) : x[i]); peak = one > peak ? one :
peak; } return peak; } static inline float log_sigmoid(float x) { return least(x, 0) - softplus_of_minus(fabsf(x)); }
static void add_rows(float *restrict out, const float *weights, const float *restrict table, int count, int size) {
int n = 0; for (; n + 4 <= count; n += 4) { const float *a = table + (size_t)n * size, *b = a + size, *c = b + size,
*d = c + size; float wa = weights[n], wb = weights[n + 1], wc = weights[n + 2], wd = weights[n + 3]; for (int i = 0; i
< size; i++) out[i] += wa * a[i] + wb * b[i] + wc * c[i] + wd * d[i]; } for (; n < count; n++) { const float *a =
table + (size_t)n * size; for (int i = 0; i < size; i++) out[i] += weights[n] * a[i]; } } static float dot(const float
*a, const float *b, int size) { float sum = 0; for (int i = 0; i < size; i++) sum += a[i] * b[i]; return sum; } static
void normalise(const char **at, const float *x, float *y, int count, int size, float eps) { const struct part *part =
next_part(at); if (!part->kind) { memmove(y, x, sizeof(float) * count * size); return; } const float *weight =
take(at, 4 * size), *bias = part->kind == LAYER_NORM ? take(at, 4 * size) : 0; for (int m = 0; m < count; m++, x +=
size, y += size) { float mean = 0, square = 0; if (bias) { for (int i = 0; i < size; i++) mean += x[i]; mean /= size;
} for (int i = 0; i < size; i++) square += (x[i] - mean) * (x[i] - mean); float scale = 1 / sqrtf(square / size +
eps); for (int i = 0; i < size; i++) y[i] = (x[i] - mean) * scale * weight[i] + (bias ? bias[i] : 0); } } static
struct input quantised(const float *x, int count, int size, char **scratch) { int wide = up(size, BLOCK), blocks =
wide / BLOCK; struct input input = {.values = x, .bits = room_for(scratch, (size_t)count * wide)}; input.scales =
room_for(scratch, sizeof(float) * count * blocks); input.sums = room_for(scratch, sizeof(int32_t) * count * blocks);
for (int m = 0; m < count; m++) for (int b = 0; b < blocks; b++) { const float *from = x + (size_t)m * size + b *
BLOCK; int8_t *to = input.bits + (size_t)m * wide + b * BLOCK; int here = size - b * BLOCK < BLOCK ? size - b * BLOCK
: BLOCK, sum = 0; int32_t bits = highest(from, here, 1); float peak; memcpy(&peak, &bits, 4); float scale = peak ? 127
/ peak : 0; for (int i = 0; i < here; i++) to[i] = (int8_t)rintf(least(most(from[i] * scale, -127), 127)); memset(to +
here, 0, BLOCK - here); for (int i = 0; i < here; i++) sum += to[i]; input.scales[m * blocks + b] = peak / 127;
input.sums[m * blocks + b] = sum; } return input; } static inline __attribute__((always_inline)) ints
add_products(ints sum, const uint8_t *w, const int8_t *x) {
#if PRODUCTS == SSE2  
__m128i weights = _mm_loadu_si128((const __m128i *)w), bytes = _mm_set1_epi16(255); __m128i even =
_mm_set1_epi32((uint16_t)x[0] | (int32_t)((uint32_t)x[2] << 16)); __m128i odd = _mm_set1_epi32((uint16_t)x[1] |
(int32_t)((uint32_t)x[3] << 16)); __m128i products = _mm_madd_epi16(_mm_and_si128(weights, bytes), even); products =
_mm_add_epi32(products, _mm_madd_epi16(_mm_srli_epi16(weights, 8), odd)); return (ints)_mm_add_epi32((__m128i)sum,
products);
#elif PRODUCTS == NEON
int32_t four; memcpy(&four, x, 4); int8x16_t weights = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(w), vdupq_n_u8(128)));
int8x16_t values = vreinterpretq_s8_s32(vdupq_n_s32(four)); int16x8_t low = vmull_s8(vget_low_s8(weights),
vget_low_s8(values)), high = vmull_high_s8(weights, values); return sum + (ints)vpaddq_s32(vpaddlq_s16(low),
vpaddlq_s16(high));
#elif PRODUCTS == PLAIN
for (int n = 0; n < WIDTH; n++) sum[n] += w[4 * n] * x[0] + w[4 * n + 1] * x[1] + w[4 * n + 2] * x[2] + w[4 * n + 3] *
x[3]; return sum;
#else
int32_t four; memcpy(&four, x, 4);
#if PRODUCTS == AVX512_VNNI
return (ints)_mm512_dpbusd_epi32((__m512i)sum, _mm512_loadu_si512(w), _mm512_set1_epi32(four));
#elif PRODUCTS == AVX_VNNI
__m256i weights = _mm256_loadu_si256((const __m256i *)w); return (ints)_mm256_dpbusd_avx_epi32((__m256i)sum, weights,
_mm256_set1_epi32(four));
#elif PRODUCTS == AVX2
__m256i weights = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)w), _mm256_set1_epi8(-128)); __m256i values =
_mm256_sign_epi8(_mm256_set1_epi32(four), weights); __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights),
values); return (ints)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#elif PRODUCTS == NEON_DOT
int8x16_t weights = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(w), vdupq_n_u8(128))); return
(ints)vdotq_s32((int32x4_t)sum, weights, vreinterpretq_s8_s32(vdupq_n_s32(four)));
#endif
#endif
} static inline __attribute__((always_inline)) void eight_bits( int count, const uint8_t *w, const float *bias, struct
input x, int in, int first, floats (*y)[PARTS]) { enum { MOST = 2 }; int wide = up(in, BLOCK), blocks = wide / BLOCK;
int chains = count * PARTS < 4 ? 2 : 1; for (int m = 0; m < count; m++) for (int p = 0; p < PARTS; p++) y[m][p] = bias
? *(const floats *)(bias + p * WIDTH) : (floats){0}; for (int b = 0; b < blocks; b++) { const int8_t *bits = x.bits +
(size_t)first * wide + b * BLOCK; int rest = in - b * BLOCK, size = rest < BLOCK ? up(rest, LANES) : BLOCK; ints
sums[TILE][PARTS][MOST] = {{{{0}}}}; for (int k = 0; k < size; k += 4 * chains) for (int c = 0; c < chains; c++) for
(int p = 0; p < PARTS; p++, w += 4 * WIDTH) { if (count <= 2) fetch(w, p * WIDTH); for (int m = 0; m < count; m++)
sums[m][p][c] = add_products(sums[m][p][c], w, bits + (size_t)m * wide + k + 4 * c); } for (int m = 0; m < count; m++)
{ int at = (first + m) * blocks + b; for (int p = 0; p < PARTS; p++) { ints sum = (chains > 1 ? sums[m][p][0] +
sums[m][p][1] : sums[m][p][0]) - OFFSET * x.sums[at]; floats scales = *(const floats *)(w + 4 * p * WIDTH) *
x.scales[at]; y[m][p] += __builtin_convertvector(sum, floats) * scales; } } w += 4 * LANES; } } static inline
__attribute__((always_inline)) void single( int count, const uint8_t *w, const float *bias, const float *x, int in,
floats (*y)[PARTS]) { for (int m = 0; m < count; m++) for (int p = 0; p < PARTS; p++) y[m][p] = bias ? *(const floats
*)(bias + p * WIDTH) : (floats){0}; for (int k = 0; k < in; k++) for (int p = 0; p < PARTS; p++, w += 4 * WIDTH) for
(int m = 0; m < count; m++) y[m][p] += *(const floats *)w * x[(size_t)m * in + k]; } struct product { const uint8_t
*tiles; const float *bias; struct input x; float *y; int in, out, eight, count, stride, add, items, columns; }; static
void columns_of_product(const void *job, int item) { const struct product *p = job; for (; item >= p->items; p++) item
-= p->items; int in = p->in, first = item * p->columns, end = first + p->columns < p->out ? first + p->columns :
p->out; size_t tile = to_line(tile_size(in, p->eight)); for (int n = first; n < end; n += LANES) { const uint8_t *w =
p->tiles + n / LANES * tile; const float *b = p->bias ? p->bias + n : 0; int width = end - n < LANES ? end - n :
LANES; for (int m = 0, here; m < p->count; m += here) { floats sums[TILE][PARTS]; int left = p->count - m; const float
*values = p->x.values + (size_t)m * in; here = left >= TILE ? TILE : left > 1 ? 2 : 1; if (p->eight && here == 1)
eight_bits(1, w, b, p->x, in, m, sums); else if (p->eight && here == 2) eight_bits(2, w, b, p->x, in, m, sums); else
if (p->eight) eight_bits(TILE, w, b, p->x, in, m, sums); else if (here == 1) single(1, w, b, values, in, sums); else
if (here == 2) single(2, w, b, values, in, sums); else single(TILE, w, b, values, in, sums); for (int i = 0; i < here;
i++) { float *to = p->y + (size_t)(m + i) * p->stride + n; if (width < LANES) { const float *from = (const float
*)sums[i]; for (int j = 0; j < width; j++) to[j] = p->add ? to[j] + from[j] : from[j]; } else { for (int q = 0; q <
PARTS; q++, to += WIDTH) *(floats *)to = p->add ? *(floats *)to + sums[i][q] : sums[i][q]; } } } } } static struct
product next_product(const char **at, struct input x, int count, float *y, int stride, int add) { const struct part
*part = next_part(at); int in = part->in, out = part->out, eight = part->kind == 8; size_t tile =
to_line(tile_size(in, eight)); int tiles = up(out, LANES) / LANES, each = (int)(ITEM / (tile * (3 + count)) + 1);
const float *bias = part->biased ? take(at, 4 * up(out, LANES)) : 0; const uint8_t *first = take(at, tile * tiles);
int items = (tiles + each - 1) / each; return (struct product){first, bias, x, y, in, out, eight, count, stride, add,
items, each * LANES}; } static void compute(struct team *team, const struct product *products, int number) { int items
= 0; for (int n = 0; n < number; n++) items += products[n].items; share(team, items, columns_of_product, products); }
static void multiply(struct team *team, const char **at, struct input x, int count, float *y, int stride, int add) {
struct product product = next_product(at, x, count, y, stride, add); compute(team, &product, 1); } static int
width_of_next(const char *at) { return ((const struct part *)at)->out; } static void feed_forward(struct team *team,
const char **at, float *x, int count, int size, float eps, char *scratch) { float *normed = room_for(&scratch,
sizeof(float) * count * size); normalise(at, x, normed, count, size, eps); struct input input = quantised(normed,
count, size, &scratch); int inner = width_of_next(*at); float *gate = room_for(&scratch, sizeof(float) * count *
inner); float *hidden = room_for(&scratch, sizeof(float) * count * inner); struct product both[2]; both[0] =
next_product(at, input, count, gate, inner, 0); both[1] = next_product(at, input, count, hidden, inner, 0);
compute(team, both, 2); for (int i = 0; i < count * inner; i++) hidden[i] *= silu(gate[i]); multiply(team, at,
quantised(hidden, count, inner, &scratch), count, x, size, 1); } static void recur(float *out, const float *q, const
float *k, const float *v, const float *decay, float *state, int keys, int values) { memset(out, 0, 4 * values); for
(int i = 0; i < keys; i++, state += values) for (int j = 0; j < values; j++) { state[j] = state[j] * decay[i] + k[i] *
v[j]; out[j] += q[i] * state[j]; } } static void write_bands(uint32_t *bands, const float *first, const float *second,
int row, int keys, int values) { for (int j = 0; j < values; j += BAND) { uint32_t *restrict to = bands + (size_t)j *
keys / 2 + (size_t)row / 2 * BAND; for (int n = 0; n < BAND; n++) { uint32_t low, high; memcpy(&low, first + j + n,
4); memcpy(&high, second + j + n, 4); low = (low + 0x8000) >> 16; high = (high & 0x7fffffff) >= 0x10000 ? high - low +
0x8000 : 0; to[n] = (high & 0xffff0000) | low; } } } static void add_bands(float *out, const float *weights, const
uint32_t *bands, int keys, int values) { for (int j = 0; j < values; j += BAND) { floats sums[BAND / WIDTH]; for (int
i = 0; i < BAND / WIDTH; i++) sums[i] = *(const floats *)(out + j + i * WIDTH); for (int k = 0; k < keys; k += 2,
bands += BAND) for (int i = 0; i < BAND / WIDTH; i++) { fetch(bands + i * WIDTH, i * WIDTH); ints words = *(const ints
*)(bands + i * WIDTH); sums[i] += weights[k] * (floats)(words << 16) + weights[k + 1] * (floats)words; } for (int i =
0; i < BAND / WIDTH; i++) *(floats *)(out + j + i * WIDTH) = sums[i]; } } static void recur_pending(float *out, const
float *q, const float *k, const float *v, const float *now, void *const *s, size_t head, int slot, int keys, int
values, float *scaled) { const uint32_t *bands = (const uint32_t *)s[0] + head * keys * values / 2; float *decay =
(float *)s[1] + head * keys, *old_keys = (float *)s[2] + head * PENDING * keys; float *old = (float *)s[3] + head *
PENDING * values, scores[PENDING]; memset(out, 0, 4 * values); for (int i = 0; i < keys; i++) decay[i] *= now[i],
scaled[i] = q[i] * decay[i]; for (int n = slot + 1; n < PENDING; n++) for (int i = 0; i < keys; i++) old_keys[n * keys
+ i] *= now[i]; memcpy(old_keys + slot * keys, k, 4 * keys); memcpy(old + slot * values, v, 4 * values); for (int n =
slot; n < PENDING; n++) scores[n] = dot(q, old_keys + n * keys, keys); add_bands(out, scaled, bands, keys, values);
add_rows(out, scores + slot, old + slot * values, PENDING - slot, values); } struct recurrence { const struct step *s;
const float *q, *k, *v, *decay; float *out, *scaled; void *const *state; int heads, keys, values; }; static void
recur_head(const void *job, int which) { const struct recurrence *r = job; int steps = r->s->steps, keys = r->keys,
values = r->values, row = which / r->heads, head = which % r->heads; for (int t = 0; t < steps; t++) { size_t at =
((size_t)row * steps + t) * r->heads + head; const float *q = r->q + at * keys, *k = r->k + at * keys, *v = r->v + at
* values, *now = r->decay + at * keys; float *out = r->out + at * values, *scaled = r->scaled + which * keys, *state =
r->state[0]; if (r->s->pending) recur_pending(out, q, k, v, now, r->state, which, r->s->room - 1 - t, keys, values,
scaled); else recur(out, q, k, v, now, state + (size_t)which * keys * values, keys, values); } } static void
block(const struct step *s, struct team *team, const char **at, float *x, int size, int heads, void *const *state,
char *scratch) { int count = s->rows * s->steps; float *normed = room_for(&scratch, sizeof(float) * count * size);
normalise(at, x, normed, count, size, s->eps); struct input input = quantised(normed, count, size, &scratch); int keys
= width_of_next(*at); float *q = room_for(&scratch, sizeof(float) * count * keys), *k = room_for(&scratch,
sizeof(float) * count * keys); struct product all[5]; all[0] = next_product(at, input, count, q, keys, 0); all[1] =
next_product(at, input, count, k, keys, 0); int values = width_of_next(*at), deep = keys / heads, broad = values /
heads; float *v = room_for(&scratch, sizeof(float) * count * values); float *gate = room_for(&scratch, sizeof(float) *
count * values); all[2] = next_product(at, input, count, v, values, 0); all[3] = next_product(at, input, count, gate,
values, 0); int rank = width_of_next(*at); float *low = room_for(&scratch, sizeof(float) * count * rank); float *decay
= room_for(&scratch, sizeof(float) * count * keys); all[4] = next_product(at, input, count, low, rank, 0);
compute(team, all, 5); multiply(team, at, quantised(low, count, rank, &scratch), count, decay, keys, 0); for (int i =
0; i < count * keys; i++) decay[i] = exponential(most(log_sigmoid(decay[i]) / s->normalizer, s->strongest)); float
*mixed = room_for(&scratch, sizeof(float) * count * values); struct recurrence r = {s, q, k, v, decay, mixed,
room_for(&scratch, sizeof(float) * s->rows * keys), state, heads, deep, broad}; share(team, s->rows * heads,
recur_head, &r); normalise(at, mixed, mixed, count * heads, broad, s->eps); for (int i = 0; i < count * values; i++)
mixed[i] *= silu(gate[i]); multiply(team, at, quantised(mixed, count, values, &scratch), count, x, size, 1);
feed_forward(team, at, x, count, size, s->eps, scratch); } static void attend(float *weights, const float *query,
const float *keys, const uint8_t *mask, int tokens, int size) { float peak = -INFINITY, sum = 0, scale = 1 /
sqrtf(size); for (int n = 0; n < tokens; n++) { weights[n] = mask[n] ? dot(query, keys + (size_t)n * size, size) *
scale : -1e30f; peak = most(peak, weights[n]); } for (int n = 0; n < tokens; n++) sum += weights[n] = mask[n] ?
exponential(weights[n] - peak) : 0; for (int n = 0; n < tokens; n++) weights[n] /= sum ? sum : 1; } static void
cross_attention(const struct step *s, struct team *team, const char **at, float *x, void *const *state, char *scratch)
{ int count = s->rows * s->steps, size = s->hidden, small = s->position_size, tokens = s->tokens; float *query =
room_for(&scratch, sizeof(float) * count * size); float *place = room_for(&scratch, sizeof(float) * count * small);
float *first = room_for(&scratch, sizeof(float) * tokens); multiply(team, at, quantised(x, count, size, &scratch),
count, query, size, 0); normalise(at, query, query, count, size, s->eps); memset(place, 0, sizeof(float) * count *
small); for (int m = 0; m < count; m++) { size_t text = (size_t)(m / s->steps) * tokens; attend(first, query +
(size_t)m * size, s->text_keys + text * size, s->text_mask + text, tokens, size); add_rows(place + (size_t)m * small,
first, s->positions + text * small, tokens, small); } block(s, team, at, place, small, s->position_heads, state,
scratch); normalise(at, place, place, count, small, s->eps); for (int i = 0; i < count * small; i++) place[i] *=
s->gain; for (int m = 0; m < count; m++) { size_t text = (size_t)(m / s->steps) * tokens; float *alignment =
s->alignment + (size_t)m * tokens; attend(alignment, place + (size_t)m * small, s->positions + text * small,
s->text_mask + text, tokens, small); add_rows(x + (size_t)m * size, alignment, s->text_values + text * size, tokens,
size); } } static void take_steps(const struct step *s, struct team *team) { int count = s->rows * s->steps, size =
s->hidden, each = s->pending ? 4 : 1; char *scratch = s->scratch; const char *at = s->weights; void *const *state =
s->states; float *x = room_for(&scratch, sizeof(float) * count * size); float *last = room_for(&scratch, sizeof(float)
* s->rows * size); memset(x, 0, sizeof(float) * count * size); for (int m = 0; m < count; m++) for (int q = 0; q <
s->codebooks; q++) { const float *from = s->embedding + ((size_t)q * s->vocabulary + s->codes[m * s->codebooks + q]) *
size; for (int i = 0; i < size; i++) x[(size_t)m * size + i] += from[i]; } for (int n = 0; n < s->before; n++, state
+= each) block(s, team, &at, x, size, s->heads, state, scratch); normalise(&at, x, x, count, size, s->eps);
cross_attention(s, team, &at, x, state, scratch); state += each; for (int n = 0; n < s->after; n++, state += each)
block(s, team, &at, x, size, s->heads, state, scratch); for (int row = 0; row < s->rows; row++) memcpy(last +
(size_t)row * size, x + ((size_t)(row + 1) * s->steps - 1) * size, sizeof(float) * size); normalise(&at, last, last,
s->rows, size, s->eps); multiply(team, &at, quantised(last, s->rows, size, &scratch), s->rows, s->logits, s->codebooks
* s->vocabulary, 0); } static void turn(const struct text *s, const float *x, float *to, int size) { int half =
s->turned / 2; for (int n = 0; n < s->tokens; n++, x += s->hidden, to += size) { const float *cosine = s->cosines +
(size_t)n * half, *sine = s->sines + (size_t)n * half; memcpy(to, x, sizeof(float) * size); for (int i = 0; i < half;
i++) { to[i] = x[i] * cosine[i] - x[i + half] * sine[i]; to[i + half] = x[i + half] * cosine[i] + x[i] * sine[i]; } }
} static void text_layer(const struct text *s, struct team *team, const char **at, char *scratch) { int count =
s->tokens, size = s->hidden, broad = size / s->heads; float *normed = room_for(&scratch, sizeof(float) * count *
size), *parts[3]; normalise(at, s->x, normed, count, size, s->eps); struct input input = quantised(normed, count,
size, &scratch); struct product all[3]; for (int n = 0; n < 3; n++) { parts[n] = room_for(&scratch, sizeof(float) *
count * size); all[n] = next_product(at, input, count, parts[n], size, 0); } compute(team, all, 3); float *query =
room_for(&scratch, sizeof(float) * count * broad); float *key = room_for(&scratch, sizeof(float) * count * broad);
float *value = room_for(&scratch, sizeof(float) * count * broad); float *weights = room_for(&scratch, sizeof(float) *
count); memset(normed, 0, sizeof(float) * count * size); for (int first = 0; first < size; first += broad) { turn(s,
parts[0] + first, query, broad); turn(s, parts[1] + first, key, broad); for (int n = 0; n < count; n++) memcpy(value +
(size_t)n * broad, parts[2] + first + (size_t)n * size, sizeof(float) * broad); for (int n = 0; n < count; n++) {
attend(weights, query + (size_t)n * broad, key, s->mask, count, broad); add_rows(normed + first + (size_t)n * size,
weights, value, count, broad); } } multiply(team, at, quantised(normed, count, size, &scratch), count, s->x, size, 1);
feed_forward(team, at, s->x, count, size, s->eps, scratch); } static void read_text(const struct text *s, struct team
*team) { int count = s->tokens, size = s->hidden; char *scratch = s->scratch; const char *at = s->weights; for (int n
= 0; n < s->layers; n++) text_layer(s, team, &at, scratch); normalise(&at, s->x, s->x, count, size, s->eps); struct
input input = quantised(s->x, count, size, &scratch); multiply(team, &at, input, count, s->keys, size, 0);
normalise(&at, s->keys, s->keys, count, size, s->eps); multiply(team, &at, input, count, s->values, size, 0);
normalise(&at, s->values, s->values, count, size, s->eps); } struct folding { int keys, values; const float *state,
*decay, *old_keys, *old; float *out; uint32_t *bands; }; static void fold_rows(const void *job, int item) { enum {
ROWS = 4, WIDE = WIDTH == 16 ? 4 : 2 }; const struct folding *f = job; int keys = f->keys, values = f->values, slices
= up(keys, FOLDED) / FOLDED; int h = item / slices, first = item % slices * FOLDED, end = first + FOLDED < keys ?
first + FOLDED : keys; size_t size = (size_t)keys * values, start = h * size + (size_t)first * values; const float
*state = f->state + start, *decay = f->decay + (size_t)h * keys + first; const float *old_keys = f->old_keys +
(size_t)h * PENDING * keys, *old = f->old + (size_t)h * PENDING * values; float *out = f->out + start; for (int i =
first; i < end; i += ROWS, state += ROWS * values, out += ROWS * values, decay += ROWS) { for (int j = 0; j < values;
j += WIDE * WIDTH) { floats sums[ROWS][WIDE]; for (int r = 0; r < ROWS; r++) for (int c = 0; c < WIDE; c++) sums[r][c]
= *(const floats *)(state + r * values + j + c * WIDTH) * decay[r]; for (int r = 0; r < ROWS; r++) for (int c = 0; c <
WIDE; c++) __builtin_prefetch(state + (ROWS + r) * values + j + c * WIDTH, 1); for (int n = 0; n < PENDING; n++) {
floats row[WIDE]; for (int c = 0; c < WIDE; c++) row[c] = *(const floats *)(old + n * values + j + c * WIDTH); for
(int r = 0; r < ROWS; r++) for (int c = 0; c < WIDE; c++) sums[r][c] += old_keys[n * keys + i + r] * row[c]; } for
(int r = 0; r < ROWS; r++) for (int c = 0; c < WIDE; c++) *(floats *)(out + r * values + j + c * WIDTH) = sums[r][c];
} for (int r = 0; r < ROWS; r += 2) write_bands(f->bands + h * size / 2, out + r * values, out + (r + 1) * values, i +
r, keys, values); } } static void fold(struct team *team, int heads, int keys, int values, const float *state, const
float *decay, const float *old_keys, const float *old, float *out, uint32_t *bands) { struct folding f = {keys,
values, state, decay, old_keys, old, out, bands}; share(team, heads * (up(keys, FOLDED) / FOLDED), fold_rows, &f); }
static void all_bands(int heads, int keys, int values, const float *state, uint32_t *bands) { for (int h = 0; h <
heads; h++, bands += keys * values / 2) for (int i = 0; i < keys; i += 2, state += 2 * values) write_bands(bands,
state, state + values, i, keys, values); } static int32_t largest(const float *x, int count, int k) { int32_t found =
INT32_MIN; for (uint32_t bit = 1u << 31; bit; bit >>= 1) { int32_t tried = (int32_t)((uint32_t)found ^ bit); int above
= 0; for (int i = 0; i < count; i++) above += ordered(x[i]) >= tried; if (above >= k) found = tried; } return found; }
static int token_of(const float *scores, const int64_t *random, int vocabulary, int top_k, float temperature) {
int32_t peak = highest(scores, vocabulary, 0), low = INT32_MIN; int best = 0; while (ordered(scores[best]) != peak)
best++; if (!random) return best; float likeliest = scores[best], first = -1; if (top_k > 0 && top_k < vocabulary) low
= largest(scores, vocabulary, top_k); for (int v = 0; v < vocabulary; v++) { if (ordered(scores[v]) < low) continue;
float wait = (float)-log1p(-(double)(random[v] & ((1LL << 53) - 1)) * 0x1p-53); float chance = exponential((scores[v]
- likeliest) / temperature) / wait; if (chance > first) best = v, first = chance; } return best; } static void
draw(const struct step *s, const struct drawing *d) { int rows = s->rows / (d->guided ? 2 : 1), vocabulary =
s->vocabulary; size_t every = (size_t)rows * s->codebooks; for (int row = 0; row < rows; row++) { const int64_t
*random = d->random + (size_t)row * vocabulary; for (int q = 0; q < s->codebooks; q++) { size_t at = (size_t)row *
s->codebooks + q; float *scores = s->logits + at * vocabulary; if (d->guided) for (int v = 0; v < vocabulary; v++)
scores[v] += (d->scale - 1) * (scores[v] - scores[v + every * vocabulary]); for (int v = 0; v < SPECIALS && v <
vocabulary; v++) if (v != STOP || q || !d->may_end) scores[v] = -INFINITY; int sampled = d->top_k[q] != 1, ended = q <
d->ended[row]; d->next[at] = ended ? STOP : token_of(scores, sampled ? random : 0, vocabulary, d->top_k[q],
d->temperature[q]); if (d->guided) d->next[at + every] = d->next[at]; if (sampled) random += (size_t)rows *
vocabulary; } const size_t text = (size_t)row * s->tokens; d->positions[row] = dot(s->alignment + text, d->places +
text, s->tokens); } } static void multiply_alone(const char *packed, const float *x, int count, float *y, char
*scratch) { const struct part *part = (const struct part *)packed; int out = part->out; multiply(0, &packed,
quantised(x, count, part->in, &scratch), count, y, out, 0); }
#include "vocos.h"
static const struct kernels NAME(kernels) = { TEXT(KERNELS), take_steps, read_text, fold, all_bands, draw,
multiply_alone, decode_block, };
#undef PARTS
#undef SIGNED
#undef OFFSET
#undef KERNELS
#undef PRODUCTS
#undef WIDTH
""",
    "vocos.h": r"""#ifndef gelu
struct stack { int32_t layers, size, inner, kernel, ahead; }; struct vocos { struct stack refiner, backbone; int32_t
channels, n_fft, hop, upsampling, harmonic, trim, rate, noise_frames; const float *weights, *window, *roots, *noise;
}; struct rows { int32_t count, capacity, width, unused; float values[]; }; static inline struct rows *next_rows(char
**state) { struct rows *rows = (struct rows *)*state; *state += to_line(sizeof *rows + sizeof(float) * rows->capacity
* rows->width); return rows; } static inline const float *next_floats(const float **at, int count) { const float *here
= *at; *at += up(count, LANES); return here; } static inline int most_rows(const struct vocos *v, int count) { int
refiner = v->refiner.size ? (1 + v->refiner.layers) * v->refiner.ahead : 0; return count + refiner + (1 +
v->backbone.layers) * v->backbone.ahead; } static void begin_rows(char *to, int64_t *size, int count, int capacity,
int width) { struct rows rows = {.count = count, .capacity = capacity, .width = width}; int64_t bytes = to_line(sizeof
rows + sizeof(float) * capacity * width); if (to) { memset(to + *size, 0, bytes); memcpy(to + *size, &rows, sizeof
rows); } *size += bytes; } static void begin_stack(char *to, int64_t *size, struct stack s, int channels) { for (int n
= 0; n <= s.layers; n++) begin_rows(to, size, s.kernel - 1 - s.ahead, s.kernel - 1, n ? s.size : channels); } PUBLIC
int64_t smalle_vocos_begin(const struct vocos *v, char *to) { int64_t size = 0; int bins = v->n_fft / 2 + 1, rest =
v->n_fft - v->hop; if (v->refiner.size) { begin_rows(to, &size, 0, (1 + v->refiner.layers) * v->refiner.ahead,
v->channels); begin_stack(to, &size, v->refiner, v->channels); } begin_stack(to, &size, v->backbone, v->channels);
begin_rows(to, &size, 0, 2, rest); if (v->harmonic) { begin_rows(to, &size, 0, v->n_fft / v->hop + 2, 3 * bins + 1);
begin_rows(to, &size, 0, 1, 2); begin_rows(to, &size, 0, 2, 1); begin_rows(to, &size, rest / 2, v->n_fft, 1); } return
size; } PUBLIC int64_t smalle_vocos_memory(const struct vocos *v, int count) { int64_t rows = most_rows(v, count),
frames = rows * v->upsampling, bins = v->n_fft / 2 + 1, floats = 4096; const struct stack *stacks[] = {&v->refiner,
&v->backbone}; for (int n = 0; n < 2; n++) floats += (rows + stacks[n]->kernel) * (3 * stacks[n]->size +
stacks[n]->inner); floats += (rows + v->backbone.kernel + v->refiner.kernel) * 4 * v->channels; floats += (2 * frames
+ v->n_fft / v->hop + 4) * (3 * bins + 1) + 5 * (frames + 4) * v->hop + 8 * v->n_fft; return 4 * (floats + 4 *
(int64_t)v->n_fft * LANES); }
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
#define GROUP (WIDTH == 16 ? 8 : WIDTH == 8 ? 6 : PRODUCTS == SSE2 ? 2 : 4)  
static inline float gelu(float x) { float size = fabsf(x), z = size * 0.70710678f, t = 1 / (1 + 0.3275911f * z); float
p = 1.061405429f; p = p * t - 1.453152027f; p = p * t + 1.421413741f; p = p * t - 0.284496736f; p = p * t +
0.254829592f; return 0.5f * (x + size * (1 - p * t * exponential(-z * z))); } static inline void cosine_and_sine(float
angle, float *cosine, float *sine) { angle = most(least(angle, 1e6f), -1e6f); double turns = rint(angle *
0.63661977236758134); int32_t quarter = (int32_t)turns; float x = (float)(angle - turns * 1.5707963267948966), z = x *
x; float s = x + x * z * (-1.6666654611e-1f + z * (8.3321608736e-3f - z * 1.9515295891e-4f)); float c = 1 - 0.5f * z +
z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f)); float first = quarter & 1
? s : c, second = quarter & 1 ? c : s; *cosine = (quarter + 1) & 2 ? -first : first; *sine = quarter & 2 ? -second :
second; } static inline __attribute__((always_inline)) void columns( int count, const float *w, const float *ahead,
const float *bias, const float *x, int step, int in, float *y, int out, int width, int add) { floats
sums[GROUP][PARTS]; for (int m = 0; m < count; m++) for (int p = 0; p < PARTS; p++) sums[m][p] = *(const floats
*)(bias + p * WIDTH); for (int k = 0; k < in; k++, w += LANES, ahead += LANES) { __builtin_prefetch(ahead, 0, 2);
floats row[PARTS]; for (int p = 0; p < PARTS; p++) row[p] = *(const floats *)(w + p * WIDTH); for (int m = 0; m <
count; m++) for (int p = 0; p < PARTS; p++) sums[m][p] += row[p] * x[(size_t)m * step + k]; } for (int m = 0; m <
count; m++, y += out) { if (width < LANES) { const float *from = (const float *)sums[m]; for (int j = 0; j < width;
j++) y[j] = add ? y[j] + from[j] : from[j]; } else { for (int p = 0; p < PARTS; p++) { floats *to = (floats *)(y + p *
WIDTH); *to = add ? *to + sums[m][p] : sums[m][p]; } } } } static void matrix(const float **at, const float *x, int
step, int count, int in, float *y, int out, int add) { const float *bias = next_floats(at, out); for (int n = 0; n <
out; n += LANES) { const float *w = next_floats(at, in * LANES); int width = out - n < LANES ? out - n : LANES; for
(int m = 0, here; m < count; m += here) { const float *from = x + (size_t)m * step, *ahead = m ? w : w + in * LANES;
float *to = y + (size_t)m * out + n; int left = count - m; here = left >= GROUP ? GROUP : left >= 4 ? 4 : left >= 2 ?
2 : 1; if (here == GROUP) columns(GROUP, w, ahead, bias + n, from, step, in, to, out, width, add); else if (here == 4)
columns(4, w, ahead, bias + n, from, step, in, to, out, width, add); else if (here == 2) columns(2, w, ahead, bias +
n, from, step, in, to, out, width, add); else columns(1, w, ahead, bias + n, from, step, in, to, out, width, add); } }
} static void norm(const float **at, float *x, int count, int size) { const float *weight = next_floats(at, size),
*bias = next_floats(at, size); for (int m = 0; m < count; m++, x += size) { float mean = 0, square = 0; for (int i =
0; i < size; i++) mean += x[i]; mean /= size; for (int i = 0; i < size; i++) square += (x[i] - mean) * (x[i] - mean);
float scale = 1 / sqrtf(square / size + 1e-6f); for (int i = 0; i < size; i++) x[i] = (x[i] - mean) * scale *
weight[i] + bias[i]; } } static int windows(struct rows *kept, const float *x, int count, int after, int size, int
step, float **joined, char **scratch) { int width = kept->width, all = kept->count + count + after, ready = all < size
? 0 : (all - size) / step + 1; float *to = *joined = room_for(scratch, sizeof(float) * all * width); memcpy(to,
kept->values, sizeof(float) * kept->count * width); memcpy(to + (size_t)kept->count * width, x, sizeof(float) * count
* width); memset(to + (size_t)(kept->count + count) * width, 0, sizeof(float) * after * width); kept->count = all -
ready * step; if (kept->count > kept->capacity) kept->count = 0; memcpy(kept->values, to + (size_t)ready * step *
width, sizeof(float) * kept->count * width); return ready; } static int convolution(const float **at, char **state,
const float *x, int count, struct stack s, int last, float *y, char *scratch) { struct rows *kept = next_rows(state);
float *joined; int ready = windows(kept, x, count, last ? s.ahead : 0, s.kernel, 1, &joined, &scratch); matrix(at,
joined, kept->width, ready, s.kernel * kept->width, y, s.size, 0); return ready; } static int convnext(const float
**at, char **state, float *x, int count, struct stack s, int last, char *scratch) { int size = s.size, back = s.kernel
- 1 - s.ahead; float *joined; int ready = windows(next_rows(state), x, count, last ? s.ahead : 0, s.kernel, 1,
&joined, &scratch); float *y = room_for(&scratch, sizeof(float) * ready * size); float *inner = room_for(&scratch,
sizeof(float) * ready * s.inner); const float *bias = next_floats(at, size), *taps = next_floats(at, s.kernel * size);
for (int m = 0; m < ready; m++) { float *restrict to = y + (size_t)m * size; memcpy(to, bias, sizeof(float) * size);
for (int k = 0; k < s.kernel; k++) { const float *from = joined + (size_t)(m + k) * size, *tap = taps + k * size; for
(int i = 0; i < size; i++) to[i] += tap[i] * from[i]; } } norm(at, y, ready, size); matrix(at, y, size, ready, size,
inner, s.inner, 0); for (int i = 0; i < ready * s.inner; i++) inner[i] = gelu(inner[i]); memcpy(x, joined +
(size_t)back * size, sizeof(float) * ready * size); matrix(at, inner, s.inner, ready, s.inner, x, size, 1); return
ready; } static int refine(const struct vocos *v, const float **at, char **state, float *x, int count, int last, char
*scratch) { struct rows *waiting = next_rows(state); int all = waiting->count + count, width = v->channels, ready;
float *latents = room_for(&scratch, sizeof(float) * all * width); float *y = room_for(&scratch, sizeof(float) *
most_rows(v, all) * v->refiner.size); memcpy(latents, waiting->values, sizeof(float) * waiting->count * width);
memcpy(latents + waiting->count * width, x, sizeof(float) * count * width); ready = convolution(at, state, x, count,
v->refiner, last, y, scratch); for (int n = 0; n < v->refiner.layers; n++) ready = convnext(at, state, y, ready,
v->refiner, last, scratch); norm(at, y, ready, v->refiner.size); waiting->count = all - ready; memcpy(waiting->values,
latents + ready * width, sizeof(float) * waiting->count * width); memcpy(x, latents, sizeof(float) * ready * width);
matrix(at, y, v->refiner.size, ready, v->refiner.size, x, width, 1); return ready; } static int apply_backbone(const
struct vocos *v, const float **at, char **state, const float *x, int count, int last, float *y, char *scratch) { int
ready = convolution(at, state, x, count, v->backbone, last, y, scratch); norm(at, y, ready, v->backbone.size); for
(int n = 0; n < v->backbone.layers; n++) ready = convnext(at, state, y, ready, v->backbone, last, scratch); norm(at,
y, ready, v->backbone.size); return ready; } static void fourier(const struct vocos *v, float *re, float *im, float
*other) { float *from[2] = {re, im}, *to[2] = {other, other + v->n_fft * LANES}; int n = v->n_fft, step = 1; for (int
radix; n > 1; n /= radix, step *= radix) { for (radix = n % 4 ? 2 : 4; n % radix; radix++) {} int part = n / radix;
for (int k = 0; k < part; k++) for (int q = 0; q < step; q++) for (int j = 0; j < radix; j++) { float r[LANES] = {0},
i[LANES] = {0}; for (int b = 0; b < radix; b++) { int turn = (j * b % radix * part + j * k) * step % v->n_fft; float c
= v->roots[2 * turn], s = v->roots[2 * turn + 1]; const float *x = from[0] + (q + step * (k + b * part)) * LANES;
const float *y = from[1] + (q + step * (k + b * part)) * LANES; for (int l = 0; l < LANES; l++) r[l] += x[l] * c +
y[l] * s; for (int l = 0; l < LANES; l++) i[l] += y[l] * c - x[l] * s; } int at = (q + step * (radix * k + j)) *
LANES; memcpy(to[0] + at, r, sizeof r); memcpy(to[1] + at, i, sizeof i); } for (int side = 0; side < 2; side++) {
float *swap = from[side]; from[side] = to[side]; to[side] = swap; } } if (from[0] != re) { memcpy(re, from[0],
sizeof(float) * v->n_fft * LANES); memcpy(im, from[1], sizeof(float) * v->n_fft * LANES); } } static void
pulses_of(const struct vocos *v, const float *f0, double *phase, float *out) { double cycles = 0; for (int i = 0; i <
v->hop; i++) { float place = (i + 0.5f) / v->hop - 0.5f; float hertz = f0[1] + least(place, 0) * (f0[1] - f0[0]) +
most(place, 0) * (f0[2] - f0[1]); hertz = most(hertz, 20); cycles += hertz / v->rate; double turns = *phase + cycles,
angle = 6.283185307179586 * (turns - rint(turns)); double harmonics = floorf((float)(0.46 * v->rate) / hertz), half =
sin(angle / 2); out[i] = (float)(fabs(half) < 1e-6 ? harmonics : sin((harmonics + 0.5) * angle) / (2 * half) - 0.5); }
*phase += cycles; *phase -= floor(*phase); } static int excitation(const struct vocos *v, char **state, const float
*raw, int count, int width, int last, float **pulses, char **scratch) { struct rows *phase = next_rows(state), *kept =
next_rows(state), *edge = next_rows(state); float *joined, *f0 = room_for(scratch, sizeof(float) * (count + 2)); float
*new = room_for(scratch, sizeof(float) * (count + 2) * v->hop); int first = kept->count == 0, size = 0, pad =
(v->n_fft - v->hop) / 2; for (int m = 0; m < count; m++) { float x = most(least(raw[(size_t)(m + 1) * width - 1], 2),
-2); f0[size++] = 150 * expf(x); if (first && size == 1) f0[size++] = f0[0]; } if (last) f0[size] = f0[size - 1],
size++; int ready = windows(kept, f0, size, 0, 3, 1, &joined, scratch); for (int m = 0; m < ready; m++) pulses_of(v,
joined + m, (double *)phase->values, new + (size_t)m * v->hop); return windows(edge, new, ready * v->hop, last ? pad :
0, v->n_fft, v->hop, pulses, scratch); } static void from_polar(const struct vocos *v, float *raw, int count, int
width) { int bins = v->n_fft / 2 + 1; for (int m = 0; m < count; m++, raw += width) { float *restrict real = raw,
*restrict imaginary = raw + bins, *restrict loud = raw + 2 * bins; for (int k = 0; k < bins; k++) { float size =
exponential(least(real[k], 4.6051702f)), c, s; cosine_and_sine(imaginary[k], &c, &s); real[k] = c * size, imaginary[k]
= s * size; } for (int k = 0; k < bins && v->harmonic; k++) loud[k] = exponential(least(loud[k], 4.6051702f)); } }
static void spectra(const struct vocos *v, const float *raw, int count, int width, int frame, float *re, float *im) {
int bins = v->n_fft / 2 + 1, n = v->n_fft; for (int k = 0; k < bins; k++) { float *a = re + k * LANES, *b = im + k *
LANES; float *c = re + (n - k) % n * LANES, *d = im + (n - k) % n * LANES; float real[2][LANES] = {{0}},
imaginary[2][LANES] = {{0}}, loud[2][LANES], noise[2][2][LANES]; for (int m = 0; m < count; m++) { const float *at =
raw + (size_t)m * width + k; real[m % 2][m / 2] = at[0], imaginary[m % 2][m / 2] = at[bins]; } if (v->harmonic) {
memset(loud, 0, sizeof loud), memset(noise, 0, sizeof noise); for (int m = 0; m < count; m++) { const float *from =
v->noise + 2 * ((size_t)((frame + m) % v->noise_frames) * bins + k); loud[m % 2][m / 2] = raw[(size_t)m * width + 2 *
bins + k]; noise[m % 2][0][m / 2] = from[0], noise[m % 2][1][m / 2] = from[1]; } for (int l = 0; l < LANES; l++) {
float x[2][2] = {{(a[l] + c[l]) / 2, (b[l] - d[l]) / 2}, {(b[l] + d[l]) / 2, (c[l] - a[l]) / 2}}; for (int side = 0;
side < 2; side++) { float r = real[side][l], i = imaginary[side][l]; real[side][l] = x[side][0] * r - x[side][1] * i +
noise[side][0][l] * loud[side][l]; imaginary[side][l] = x[side][0] * i + x[side][1] * r + noise[side][1][l] *
loud[side][l]; } } } if (k == 0 || k == bins - 1) memset(imaginary, 0, sizeof imaginary); for (int l = 0; l < LANES;
l++) { a[l] = real[0][l] - imaginary[1][l], b[l] = imaginary[0][l] + real[1][l]; c[l] = real[0][l] + imaginary[1][l],
d[l] = real[1][l] - imaginary[0][l]; } } } static void overlapped(const struct vocos *v, const float *raw, const float
*pulses, int count, int width, int frame, float *sums, float *squares, char *scratch) { int n = v->n_fft; float *re =
room_for(&scratch, sizeof(float) * n * LANES), *im = room_for(&scratch, sizeof(float) * n * LANES); float *other =
room_for(&scratch, sizeof(float) * n * 2 * LANES); for (int i = 0; i < n && v->harmonic; i++) for (int l = 0; l <
LANES; l++) { float scale = v->window[i] * 4 / n; re[i * LANES + l] = 2 * l < count ? pulses[2 * l * v->hop + i] *
scale : 0; im[i * LANES + l] = 2 * l + 1 < count ? pulses[(2 * l + 1) * v->hop + i] * scale : 0; } if (v->harmonic)
fourier(v, re, im, other); else memset(re, 0, sizeof(float) * n * LANES), memset(im, 0, sizeof(float) * n * LANES);
spectra(v, raw, count, width, frame, re, im); fourier(v, im, re, other); for (int m = 0; m < count; m++) { const float
*from = (m % 2 ? im : re) + m / 2; for (int i = 0; i < n; i++) { sums[m * v->hop + i] += from[i * LANES] *
v->window[i] / n; squares[m * v->hop + i] += v->window[i] * v->window[i]; } } } static int synthesize(const struct
vocos *v, const float **at, char **state, const float *x, int count, int last, float *out, char *scratch) { int bins =
v->n_fft / 2 + 1, width = v->harmonic ? 3 * bins + 1 : 2 * bins, frames = count * v->upsampling; int rest = v->n_fft -
v->hop, ready = frames; float *new = room_for(&scratch, sizeof(float) * frames * width), *raw = new, *pulses = new;
matrix(at, x, v->backbone.size, count, v->backbone.size, new, v->upsampling * width, 0); struct rows *kept =
next_rows(state), *waiting = v->harmonic ? next_rows(state) : 0; int frame = kept->count; if (v->harmonic) { ready =
excitation(v, state, new, frames, width, last, &pulses, &scratch); int all = waiting->count + frames; raw =
room_for(&scratch, sizeof(float) * all * width); memcpy(raw, waiting->values, sizeof(float) * waiting->count * width);
memcpy(raw + (size_t)waiting->count * width, new, sizeof(float) * frames * width); waiting->count = all - ready;
memcpy(waiting->values, raw + (size_t)ready * width, sizeof(float) * waiting->count * width); } if (!ready) return 0;
from_polar(v, raw, ready, width); int total = ready * v->hop + rest, first = v->trim - frame * v->hop, end = last ?
total - v->trim : ready * v->hop; float *sums = room_for(&scratch, sizeof(float) * total), *squares =
room_for(&scratch, sizeof(float) * total); memset(sums, 0, sizeof(float) * total), memset(squares, 0, sizeof(float) *
total); memcpy(sums, kept->values, sizeof(float) * rest), memcpy(squares, kept->values + rest, sizeof(float) * rest);
for (int m = 0; m < ready; m += 2 * LANES) { int here = ready - m < 2 * LANES ? ready - m : 2 * LANES, sample = m *
v->hop; overlapped(v, raw + (size_t)m * width, pulses + sample, here, width, frame + m, sums + sample, squares +
sample, scratch); } kept->count = frame + ready; memcpy(kept->values, sums + ready * v->hop, sizeof(float) * rest);
memcpy(kept->values + rest, squares + ready * v->hop, sizeof(float) * rest); if (first < 0) first = 0; for (int i =
first; i < end; i++) out[i - first] = sums[i] / most(squares[i], 1e-11f); return end > first ? end - first : 0; }
static int decode_block(const struct vocos *v, const float *features, int count, int last, char *state, float *out,
char *scratch) { const float *at = v->weights; float *x = room_for(&scratch, sizeof(float) * most_rows(v, count) *
v->channels); float *y = room_for(&scratch, sizeof(float) * most_rows(v, count) * v->backbone.size); memcpy(x,
features, sizeof(float) * count * v->channels); if (v->refiner.size) count = refine(v, &at, &state, x, count, last,
scratch); count = apply_backbone(v, &at, &state, x, count, last, y, scratch); return count ? synthesize(v, &at,
&state, y, count, last, out, scratch) : 0; }
#undef GROUP
""",
}

logger = logging.getLogger(__name__)


# --- the file


def user_cache() -> Path:
    """The folder for compiled libraries in the user's cache."""
    named = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(named) if named else Path.home() / ".cache") / "smalle"


def is_private(path: Path) -> bool:
    """Whether `path` is not a link, belongs to the user and is writable by nobody else."""
    status = path.lstat()
    own = not hasattr(os, "geteuid") or (status.st_uid == os.geteuid() and not status.st_mode & 0o022)
    return own and not stat.S_ISLNK(status.st_mode)


def compilers() -> list[list[str]]:
    """Command lines of the C compilers to try, $CC first."""
    named = [shlex.split(os.environ["CC"])] if os.environ.get("CC") else []
    return (
        named
        + [[name] for name in ("cc", "gcc", "clang") if shutil.which(name)]
        + [[sys.executable, "-m", "ziglang", "cc"]]
    )


def compile_library() -> bytes:
    """Compiles the library. Raises ValueError if no compiler succeeds."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in SOURCES.items():
            Path(folder, name).write_text(text)
        library = Path(folder, "library")
        for compiler in compilers():
            command = [*compiler, *FLAGS.split(), str(Path(folder, next(iter(SOURCES)))), "-o", str(library), "-lm"]
            with contextlib.suppress(OSError):  # there is no such program
                if subprocess.run(command, capture_output=True).returncode == 0:
                    return library.read_bytes()
    raise ValueError("no C compiler was found that can compile it: install gcc or clang, or pip install ziglang")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def find_library(folder: Path, name: str) -> Path | None:
    """The library of this name in `folder` if it is undamaged: its file name ends with a digest of its contents."""
    files = folder.glob(f"{name}-*.so")
    return next((path for path in files if path.stem == f"{name}-{digest(path.read_bytes())}"), None)


def cached_library(folder: Path) -> Path:
    """The library in the user's cache; compiles it if it is missing, damaged or writable by others.

    Raises ValueError if others can write to the folder, and without a compiler.
    """
    from .saving_smalle import atomic_write

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_private(folder):
        raise ValueError(
            f"{folder} is a link, belongs to another user or can be written by others: delete it, or set "
            "XDG_CACHE_HOME to a folder of your own"
        )
    compiler = compilers()[0]
    program = Path(shutil.which(compiler[0]) or compiler[0]).resolve()
    changed = program.stat().st_mtime_ns if program.exists() else 0
    machine = platform.system(), platform.machine(), *platform.libc_ver()
    name = f"{NAME}-{digest(repr((compiler, str(program), changed, machine)).encode())}"
    for path in folder.glob(f"{name}-*.so"):
        if not is_private(path):
            path.unlink()
    found = find_library(folder, name)
    if found is None:
        logger.info(f"Compiling the native runtime into {folder}, once.")
        data = compile_library()
        found = folder / f"{name}-{digest(data)}.so"
        with atomic_write(found) as partial:
            partial.write_bytes(data)
        found.chmod(0o700)
    return found


def open_library(path: Path) -> ctypes.CDLL:
    """Loads a library and selects the kernels of $SMALLE_KERNELS, or the fastest ones that the processor supports."""
    library = ctypes.CDLL(str(path))
    library.smalle_choose.restype = ctypes.c_char_p
    for function in ("pack_norm", "pack_matrix", "vocos_begin", "vocos_memory"):
        getattr(library, f"smalle_{function}").restype = ctypes.c_int64
    choose_kernels(library, os.environ.get("SMALLE_KERNELS", ""))
    return library


def choose_kernels(library: ctypes.CDLL, name: str = "") -> str:
    """Selects the kernels of a library: "plain", "avx2", "avx_vnni", "avx512_vnni", "neon_dot", or "" for the fastest.

    Returns their name. Raises ValueError if the processor or the library does not support them.
    """
    chosen = library.smalle_choose(name.encode())
    if chosen is None:
        raise ValueError(f"SMALLE_KERNELS={name!r}: the processor or the library does not support these kernels")
    return chosen.decode()


def package_folder() -> Path | None:
    """Folder of the library that an installed package brings, also for remote code, whose own folder is never read."""
    package = None
    with contextlib.suppress(ImportError, ValueError):  # as find_spec may raise where it cannot be imported
        package = importlib.util.find_spec("smalle")
    return Path(package.origin).with_name("native") if package and package.origin else None


@functools.cache
def load_library() -> tuple[ctypes.CDLL | None, str]:
    """The library of the package, or else of the user's cache; or None and the reason why there is none."""
    try:
        folder = package_folder()
        packaged = find_library(folder, NAME) if folder else None
        if packaged:
            with contextlib.suppress(OSError):  # it was built for another system
                return open_library(packaged), ""
        return open_library(cached_library(user_cache())), ""
    except (OSError, RuntimeError, ValueError) as error:
        return None, str(error)


# --- structures of C


def structure(name: str, **fields: str) -> type[ctypes.Structure]:
    """A C structure; fields: the names of its fields by type."""
    types = dict(int32=ctypes.c_int32, float32=ctypes.c_float, pointer=ctypes.c_void_p)
    typed = [(field, types[kind]) for kind, names in fields.items() for field in names.split()]
    return type(name, (ctypes.Structure,), {"_fields_": typed})


Step = structure(
    "Step",
    int32="rows steps tokens codebooks vocabulary hidden heads position_size position_heads before after pending room "
    "threads",
    float32="eps normalizer strongest gain",
    pointer="weights embedding codes text_keys text_values positions text_mask states logits alignment scratch",
)
Text = structure(
    "Text",
    int32="tokens hidden heads layers turned threads",
    float32="eps",
    pointer="weights x mask cosines sines keys values scratch",
)
Drawing = structure(
    "Drawing",
    int32="guided may_end",
    float32="scale",
    pointer="top_k temperature random ended places next positions",
)
Vocos = structure(
    "Vocos",
    int32="refiner_layers refiner_size refiner_inner refiner_kernel refiner_ahead layers size inner kernel ahead "
    "channels n_fft hop upsampling harmonic trim rate noise_frames",
    pointer="weights window roots noise",
)


def address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def aligned(shape: int | tuple[int, ...], kind: Any = np.float32) -> np.ndarray:
    """An uninitialised array, aligned to 64 bytes."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(kind).reshape(shape)


# --- the model: the order of its weights, its tables, its working memory

SMALL = 2**15  # smaller matrices (gates, positions) stay in single precision: 8 bits would not be faster
LARGE_STATE = 2**16  # block states of at least this size have pending updates; smaller ones fit into a CPU cache
STRONGEST_DECAY = -8.0  # `linear_attention_smalle.MIN_LOG_DECAY`
MAX_VECTORS = 256  # limit for frames times rows of one call, to bound its working memory
LAYER_NORM, RMS_NORM = 1, 2  # kinds of norms in packed weights

LARGE_WEIGHTS = 2**24  # a second thread pays off if a step reads at least this many bytes

Names = Iterable[tuple[str, float]]  # (name, factor) of layers


def feed_forward_names(layer: str) -> list[tuple[str, float]]:
    return [(f"{layer}.{part}", 1.0) for part in ("norm2", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")]


def block_names(block: str, key_size: int) -> Names:
    """Layers of a GLA `LinearAttentionBlock` whose queries have `key_size` channels per head."""
    yield (f"{block}.norm1", 1.0)
    yield (f"{block}.mixer.q_proj", key_size**-0.5)
    for part in ("k_proj", "v_proj", "g_proj", "decay_down_proj", "decay_up_proj", "norm", "o_proj"):
        yield (f"{block}.mixer.{part}", 1.0)
    yield from feed_forward_names(block)


def transformer_names(stack: str, layers: int) -> Names:
    for n in range(layers):
        for part in ("norm1", "q_proj", "k_proj", "v_proj", "o_proj"):
            yield (f"{stack}.{n}.{part}", 1.0)
        yield from feed_forward_names(f"{stack}.{n}")


def text_names(config: Any) -> Names:
    """Layers of the text encoder, in the order in which the library reads their weights."""
    yield from transformer_names("model.text_encoder", config.text_layers)
    yield ("model.text_norm", 1.0)
    for part in ("k_proj", "k_norm", "v_proj", "v_norm"):
        yield (f"model.cross_attention.{part}", 1.0)


def speaker_names(config: Any) -> Names:
    """Layers of the speaker encoder, in the format of `text_names`: instead of keys and values with a norm each, the
    same projection twice, without norms."""
    yield from transformer_names("model.speaker_encoder.layers", config.speaker_layers)
    for part in ("norm", "proj", "none", "proj", "none"):
        yield (f"model.speaker_encoder.{part}", 1.0)


def step_names(config: Any) -> Names:
    """As `text_names`, for a decode step."""
    keys = int(config.hidden_size * config.expand_k) // config.mixer_heads
    for n in range(config.audio_encoder_layers):
        yield from block_names(f"model.audio_encoder.{n}", keys)
    attention = "model.cross_attention"
    yield from ((name, 1.0) for name in ("model.audio_encoder_norm", f"{attention}.q_proj", f"{attention}.q_norm"))
    position_keys = int(config.position_size * config.expand_k) // config.position_heads
    yield from block_names(f"{attention}.position_block", position_keys)
    yield (f"{attention}.position_norm", 1.0)
    for n in range(config.audio_decoder_layers):
        yield from block_names(f"model.audio_decoder.{n}", keys)
    yield from (("model.audio_norm", 1.0), ("head", 1.0))


def threads_for(size: int) -> int:
    """The number of threads for calls that read `size` bytes of weights: $SMALLE_THREADS if it is set, else one, or two
    for large models if the process has two cores. Raises ValueError if $SMALLE_THREADS is not a number."""
    if setting := os.environ.get("SMALLE_THREADS"):
        if not setting.isdecimal():
            raise ValueError(f"SMALLE_THREADS={setting!r}: expected a whole number of threads")
        return max(1, int(setting))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 2 if size >= LARGE_WEIGHTS and cores > 1 else 1


def rotary_tables(positions: np.ndarray, size: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (..., size / 2) of rotary positions (...)."""
    angles = positions[..., None] * theta ** (-np.arange(0, size, 2) / size)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def position_table(mask: np.ndarray, size: int, theta: float) -> np.ndarray:
    """Sinusoidal positions (B, N, size) of texts with a mask (B, N), as `attention_smalle.sinusoids`."""
    cosines, sines = rotary_tables((mask.astype(np.int64).cumsum(1) - 1).clip(min=0), size, theta)
    return np.concatenate((sines, cosines), -1)


def embed_codes(table: np.ndarray, codes: np.ndarray, vocabulary: int) -> np.ndarray:
    """Summed embeddings (P, D) of tokens (P, Q) of the audio vocabulary; table (Q * vocabulary, D)."""
    x = np.zeros((len(codes), table.shape[1]), np.float32)
    for q in range(codes.shape[1]):
        x += table[codes[:, q] + q * vocabulary]
    return x


def working_memory(config: Any, vectors: int, tokens: int) -> int:
    """An upper bound for the bytes needed to process `vectors` vectors at once, with alignments to `tokens` tokens."""
    inside = config.position_intermediate_size or 2 * config.position_size
    widths = (config.hidden_size + config.position_size) * (1 + config.expand_k + config.expand_v)
    widths += config.intermediate_size + inside + config.gate_low_rank
    return int(32 * vectors * (widths + 256)) + 16 * tokens + 2**15


def step_of(
    config: Any, rows: int, tokens: int, addresses: Mapping[str, int], pending: bool = False, threads: int = 1
) -> Any:
    """The structure for steps of texts (R, N); addresses: those of its arrays by name."""
    return Step(
        rows=rows,
        tokens=tokens,
        codebooks=config.num_codebooks,
        vocabulary=config.audio_vocab_size,
        hidden=config.hidden_size,
        heads=config.mixer_heads,
        position_size=config.position_size,
        position_heads=config.position_heads,
        before=config.audio_encoder_layers,
        after=config.audio_decoder_layers,
        pending=pending,
        room=-1,
        threads=threads,
        eps=config.norm_eps,
        normalizer=config.gate_logit_normalizer,
        strongest=STRONGEST_DECAY,
        gain=config.position_gain or 1.0,
        **addresses,
    )


class Sampler:
    """Draws the next tokens after a step of texts with a mask (B, N).

    top_k (0: all tokens, 1: greedy), temperature: for each codebook. scale: scale of guidance, which needs B additional
    rows without text; None: no guidance.
    random (S, B, V) int64: random bits for the sampled codebooks, to be filled in by the caller before each call.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        config: Any,
        mask: np.ndarray,
        top_k: Sequence[int],
        temperature: Sequence[float],
        scale: float | None,
    ):
        self.library, self.books, self.guided = library, config.num_codebooks, scale is not None
        sampled = sum(k != 1 for k in top_k)
        self.random = np.zeros((sampled, len(mask), config.audio_vocab_size), np.int64)
        self.ended, self.positions = np.zeros(len(mask), np.int32), np.zeros(len(mask), np.float32)
        self.places = (mask.astype(np.int64).cumsum(1) - 1).clip(min=0).astype(np.float32)
        self.settings = np.array(top_k, np.int32), np.array(temperature, np.float32)
        arrays = dict(zip(("top_k", "temperature"), self.settings), random=self.random, ended=self.ended)
        arrays |= dict(places=self.places, positions=self.positions)
        addresses = {name: x.ctypes.data for name, x in arrays.items()}
        self.structure = Drawing(guided=self.guided, scale=scale or 1.0, **addresses)

    def __call__(self, step: Any, may_end: bool, remaining: Sequence[int]) -> tuple[np.ndarray, list[float]]:
        """The next tokens (R, Q), and for each of B rows its mean position in the text, in tokens.

        may_end: whether rows may end. remaining: steps until each row is complete, -1 before its end is known.
        """
        tokens, structure = np.empty(((1 + self.guided) * len(remaining), self.books), np.int64), self.structure
        self.ended[:] = [0 if steps < 0 else self.books + 1 - steps for steps in remaining]
        structure.may_end, structure.next = may_end, tokens.ctypes.data
        self.library.smalle_draw(ctypes.byref(step), ctypes.byref(structure))
        return tokens, self.positions.tolist()


def limit_speaker(embedding: np.ndarray, config: Any) -> np.ndarray:
    """Moves a speaker embedding (D,) that is far from those the model learned closer to them
    (`SmallEConfig.speaker_limits`)."""
    if config.speaker_limits is None:
        return embedding
    furthest, typical = config.speaker_limits
    center = np.array(config.speaker_center, np.float32)
    distance = np.linalg.norm(embedding - center)
    return embedding if distance <= furthest else center + (embedding - center) * np.float32(typical / distance)


def read_text(
    library: ctypes.CDLL,
    config: Any,
    layers: int,
    weights: int,
    x: np.ndarray,
    mask: np.ndarray,
    scratch: np.ndarray | None = None,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values (N, D) of a text, from embeddings x (N, D) and mask (N,); mostly zeros on the padding before it.

    layers: number of layers of the encoder. weights: address of its packed weights.
    """
    begin = int(mask.argmax()) // 64 * 64  # so that the order of summation does not depend on the padding
    x, mask, keys, values = x[begin:].copy(), mask[begin:].astype(np.uint8), np.zeros_like(x), np.zeros_like(x)
    cosines, sines = rotary_tables(np.arange(begin, begin + len(x)), config.rotary_size, config.rope_theta)
    scratch = aligned(working_memory(config, len(x), len(x)), np.uint8) if scratch is None else scratch
    sizes: dict[str, Any] = dict(tokens=len(x), hidden=config.hidden_size, heads=config.num_attention_heads)
    sizes |= dict(layers=layers, turned=config.rotary_size, threads=threads, eps=config.norm_eps, weights=weights)
    arrays = dict(x=x, mask=mask, cosines=cosines, sines=sines, keys=keys[begin:], values=values[begin:])
    addresses = {name: array.ctypes.data for name, array in (arrays | {"scratch": scratch}).items()}
    library.smalle_text(ctypes.byref(Text(**sizes, **addresses)))
    return keys, values


def encode_speaker(library: ctypes.CDLL, config: Any, weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The speaker embedding (D,) of a recording, from embedded frames x (P, D); zeros if there are none.

    weights: the layers of `speaker_names`, packed in single precision.
    """
    if not len(x):
        return np.zeros(config.hidden_size, np.float32)
    frames, _ = read_text(library, config, config.speaker_layers, weights.ctypes.data, x, np.ones(len(x), np.uint8))
    return limit_speaker(frames.mean(0), config)


# --- the decoder of a codec: a refiner of latents, then Vocos

COLUMNS = 16  # columns of a matrix that are stored side by side
NOISE_FRAMES = 1024  # the noise repeats after this many frames
BLOCK_SIZES = (64, 16), (256, 32), (float("inf"), 64)  # (up to frame, block size): small first, for low latency


def block_size(frame: int) -> int:
    """The number of frames in the block that starts at a frame."""
    return next(size for end, size in BLOCK_SIZES if frame < end)


def block_sizes() -> Iterator[int]:
    """Yields the number of frames of each block, without end."""
    frame = 0
    while True:
        yield block_size(frame)
        frame += block_size(frame)


def mersenne_twister(seed: int) -> random.Random:
    """A generator whose getrandbits(32) gives the same numbers as a `torch.Generator` with this seed."""
    words = [seed & 0xFFFFFFFF]
    for n in range(1, 624):
        words.append((1812433253 * (words[-1] ^ words[-1] >> 30) + n) & 0xFFFFFFFF)
    generator = random.Random()
    generator.setstate((3, (*words, 624), None))
    return generator


def bits32(generator: random.Random, count: int) -> np.ndarray:
    """The next numbers (count,) of a generator, uint32."""
    return np.frombuffer(generator.getrandbits(32 * count).to_bytes(4 * count, "little"), "<u4")


def bits64(generator: random.Random, count: int) -> np.ndarray:
    """The next numbers (count,), int64, drawn upper 32 bits first."""
    return bits32(generator, 2 * count).reshape(-1, 2)[:, ::-1].astype("<u4").view("<i8")[:, 0]


@functools.lru_cache(maxsize=2)
def noise_table(bins: int) -> np.ndarray:
    """Complex normal noise (NOISE_FRAMES, bins, 2), equal to torch.randn with seed 0 up to rounding: the Box-Muller
    transform on groups of 16 numbers."""
    uniform = (bits32(mersenne_twister(0), NOISE_FRAMES * bins * 2) & 0xFFFFFF).astype(np.float32) / np.float32(2**24)
    pairs = uniform.reshape(-1, 2, 8)
    radius, angle = np.sqrt(-2 * np.log(1 - pairs[:, 0])), np.float32(2 * np.pi) * pairs[:, 1]
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), 1).reshape(NOISE_FRAMES, bins, 2)


def matrix_parts(weight: np.ndarray, bias: np.ndarray) -> Iterator[np.ndarray]:
    """A linear layer, weight (out, in), in groups of 16 columns."""
    out = len(weight)
    padding = -out % COLUMNS
    yield np.pad(bias, (0, padding))
    yield np.pad(weight, ((0, padding), (0, 0))).reshape(-1, COLUMNS, weight.shape[1]).transpose(0, 2, 1)


Tensors = Mapping[str, np.ndarray]


def convolution_parts(tensors: Tensors, name: str) -> Iterator[np.ndarray]:
    """A convolution, weight (out, in, kernel), as a linear layer on `kernel` consecutive inputs."""
    weight = tensors[f"{name}.weight"]
    yield from matrix_parts(weight.transpose(0, 2, 1).reshape(len(weight), -1), tensors[f"{name}.bias"])


def norm_parts(tensors: Tensors, name: str, condition: int | None = None) -> list[np.ndarray]:
    """A norm; of a conditioned norm, scale and shift for the bandwidth id `condition`."""
    if f"{name}.weight" in tensors:
        return [tensors[f"{name}.weight"], tensors[f"{name}.bias"]]
    return [tensors[f"{name}.{part}.weight"][condition] for part in ("scale", "shift")]


def block_parts(tensors: Tensors, name: str, condition: int | None = None) -> Iterator[np.ndarray]:
    """A ConvNeXt block; the scale of each channel is merged into the last layer."""
    yield from (tensors[f"{name}.dwconv.bias"], tensors[f"{name}.dwconv.weight"][:, 0].T)
    yield from norm_parts(tensors, f"{name}.norm", condition)
    yield from matrix_parts(tensors[f"{name}.pwconv1.weight"], tensors[f"{name}.pwconv1.bias"])
    scale, weight, bias = (tensors[f"{name}.{part}"] for part in ("gamma", "pwconv2.weight", "pwconv2.bias"))
    yield from matrix_parts(weight * scale[:, None], bias * scale)


def count_blocks(tensors: Tensors, stack: str) -> int:
    return sum(name.startswith(f"{stack}.") and name.endswith(".gamma") for name in tensors)


def refiner_parts(tensors: Tensors) -> Iterator[np.ndarray]:
    """A `LatentRefiner`; its scales are merged into the first and the last layer."""
    embed = {"weight": tensors["embed.weight"] / tensors["latent_scale"][:, None], "bias": tensors["embed.bias"]}
    yield from convolution_parts({f"embed.{name}": x for name, x in embed.items()}, "embed")
    for n in range(count_blocks(tensors, "blocks")):
        yield from block_parts(tensors, f"blocks.{n}")
    yield from norm_parts(tensors, "norm")
    scale = tensors["rest_scale"]
    yield from matrix_parts(tensors["out.weight"] * scale[:, None], tensors["out.bias"] * scale)


def vocos_parts(tensors: Tensors, condition: int | None) -> Iterator[np.ndarray]:
    """A `Vocos`; condition: the bandwidth id, if it is conditioned on one."""
    yield from convolution_parts(tensors, "backbone.embed")
    yield from norm_parts(tensors, "backbone.norm", condition)
    for n in range(count_blocks(tensors, "backbone.convnext")):
        yield from block_parts(tensors, f"backbone.convnext.{n}", condition)
    yield from norm_parts(tensors, "backbone.final_layer_norm")
    yield from matrix_parts(tensors["head.out.weight"], tensors["head.out.bias"])


def rounded(size: int) -> int:
    """The number of floats that a part of `size` floats occupies in a stream."""
    return -(-size // COLUMNS) * COLUMNS


def matrix_size(width: int, out: int) -> int:
    return rounded(out) * (1 + width)


def stack_size(channels: int, size: int, kernel: int, layers: int, inner: int) -> int:
    """The number of floats that a convolution, its ConvNeXt blocks and a norm occupy in a stream."""
    block = 3 * rounded(size) + rounded(kernel * size) + matrix_size(size, inner) + matrix_size(inner, size)
    return matrix_size(channels * kernel, size) + layers * block + 2 * rounded(size)


def stream_of(parts: Iterable[np.ndarray], size: int) -> np.ndarray:
    """Joins parts in single precision, each aligned to 16 floats. Raises ValueError if the result does not have `size`
    floats."""
    stream, at = aligned(size), 0
    for part in parts:
        if at + part.size <= size:
            stream[at : at + part.size] = part.reshape(-1)
        at += rounded(part.size)
    if at != size:
        raise ValueError(f"they have {at} floats, expected {size}")
    return stream


class DecoderState(NamedTuple):
    """State of a decoder between chunks: features (T, C) that are not part of a block yet, the number of frames in the
    blocks so far, and the state of the library."""

    features: np.ndarray
    frames: int
    memory: np.ndarray


class VocosDecoder:
    """A refiner of features and a Vocos, computed with the library. Immutable.

    Args:
        vocos, refiner: tensors by name, as in `Vocos` and `LatentRefiner`; {}: no refiner.
        settings: fields of `VocosConfig`: n_fft, hop_length, upsampling, excitation, padding, sampling_rate.
        condition: bandwidth id, if the Vocos is conditioned on one.

    Raises:
        ValueError: tensors are missing, or their shapes do not fit together.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        vocos: Tensors,
        refiner: Tensors,
        settings: Mapping[str, Any],
        condition: int | None = None,
    ):
        n_fft, hop = settings["n_fft"], settings["hop_length"] // settings["upsampling"]
        harmonic, turns = settings["excitation"] == "harmonic", 2 * np.pi * np.arange(n_fft) / n_fft
        try:
            size, channels, kernel = vocos["backbone.embed.weight"].shape
            layers, inner = count_blocks(vocos, "backbone.convnext"), len(vocos["backbone.convnext.0.pwconv1.weight"])
            sizes = dict(size=size, kernel=kernel, ahead=kernel // 2, layers=layers, inner=inner)
            wanted = stack_size(channels, size, kernel, layers, inner) + 2 * rounded(size)
            wanted += matrix_size(size, settings["upsampling"] * ((n_fft // 2 + 1) * (2 + harmonic) + harmonic))
            if refiner:
                size, _, kernel = refiner["embed.weight"].shape
                layers, inner = count_blocks(refiner, "blocks"), len(refiner["blocks.0.pwconv1.weight"])
                sizes |= dict(refiner_size=size, refiner_kernel=kernel, refiner_ahead=1)
                sizes |= dict(refiner_inner=inner, refiner_layers=layers)
                wanted += stack_size(channels, size, kernel, layers, inner) + matrix_size(size, channels)
            parts = itertools.chain(refiner_parts(refiner) if refiner else (), vocos_parts(vocos, condition))
            self.weights = stream_of(parts, wanted)
        except (KeyError, ValueError, IndexError) as error:
            raise ValueError(
                f"The tensors of the decoder do not fit ({error}): download the checkpoint again."
            ) from error
        self.window = (0.5 - 0.5 * np.cos(turns)).astype(np.float32)
        self.roots = np.stack((np.cos(turns), np.sin(turns)), 1).astype(np.float32)
        self.noise = noise_table(n_fft // 2 + 1) if harmonic else np.zeros(0, np.float32)
        self.library, self.hop_length, self.channels = library, settings["hop_length"], channels
        self.structure = Vocos(
            **sizes,
            channels=channels,
            n_fft=n_fft,
            hop=hop,
            upsampling=settings["upsampling"],
            harmonic=harmonic,
            trim=(n_fft - hop) // 2 if settings["padding"] == "same" else n_fft // 2,
            rate=settings["sampling_rate"],
            noise_frames=NOISE_FRAMES,
            **{name: getattr(self, name).ctypes.data for name in ("weights", "window", "roots", "noise")},
        )
        self.begin = aligned(library.smalle_vocos_begin(ctypes.byref(self.structure), None), np.uint8)
        library.smalle_vocos_begin(ctypes.byref(self.structure), address(self.begin))

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return type(None), ()

    def decode_chunk(
        self, features: np.ndarray, state: DecoderState | None = None, last: bool = False
    ) -> tuple[np.ndarray, DecoderState | None]:
        """The samples (L,) that are complete after features (T, C), T >= 0, and the state to continue with.

        The joined result does not depend on the chunk sizes, to the last bit, because it is computed in blocks of fixed
        sizes. `last`: no chunk will follow; the returned state is None.
        """
        waiting, frames, before = state or DecoderState(features[:0], 0, self.begin)
        features, waves = np.concatenate((waiting, features)).astype(np.float32), [np.zeros(0, np.float32)]
        memory = aligned(len(before), np.uint8)
        memory[:] = before
        while (size := block_size(frames)) <= len(features):
            waves.append(self._decode(features[:size], memory, False))
            features, frames = features[size:], frames + size
        if last and (frames or len(features)):
            waves.append(self._decode(features, memory, True))
        return np.concatenate(waves), None if last else DecoderState(features, frames, memory)

    def _decode(self, features, memory, last):
        """The samples (L,) of a block of features (T, C); overwrites `memory`."""
        features, place = np.ascontiguousarray(features), ctypes.byref(self.structure)
        scratch = aligned(self.library.smalle_vocos_memory(place, len(features)), np.uint8)
        stack = self.structure
        ahead = (1 + stack.layers) * stack.ahead + (1 + stack.refiner_layers) * stack.refiner_ahead
        wave = np.empty((len(features) + ahead + 4) * self.hop_length + 2 * stack.n_fft, np.float32)
        inputs = place, address(features), len(features), int(last), address(memory)
        return wave[: self.library.smalle_vocos(*inputs, address(wave), address(scratch))]
