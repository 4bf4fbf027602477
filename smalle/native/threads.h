/* Helpers of the thread that calls the library. `share` has a function called for each item of a job, by the caller and
   by helpers, each of which claims one item after the other: the caller of the first half, helpers of the second, and
   both of the other one when theirs is done, so that each passes over memory with few leaps. Items do not depend on
   each other, and nothing is added up across threads, so that results are the same for any number of them.

   The caller waits only for items that a helper has begun. Where it often has to wait long, since other programs take
   the helper's place, it computes alone for a while. A helper looks for work for some microseconds after its last item,
   then sleeps, and ends after a tenth of a second of sleep. A process has one team, and a call that finds it taken by
   another thread computes alone. A forked process begins with a new one. */

#if defined _WIN32 || defined __STDC_NO_ATOMICS__
struct team;

static struct team *gather(int threads) { return 0; }
static void dismiss(struct team *of_call) {}

static void share(struct team *of_call, int items, void (*item)(const void *, int), const void *job) {
    for (int n = 0; n < items; n++) item(job, n);
}
#else
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

enum { MOST_ITEMS = 0xffff, LOOKS = 1000 }; /* for work, with a pause after each: 20 to 60 microseconds */
enum { LATE = 500000, SLEEP = 100000000, SECOND = 1000000000 }; /* ns */
enum { STACK = 1 << 19 }; /* bytes */
enum { CREDIT = 32, COST = 16, REST = 64 }; /* calls: a helper that is late costs as many good calls as win it back */

struct half {
    _Alignas(64) _Atomic uint32_t claims; /* where it ends, in the upper bits, and the item that is claimed next */
};

struct team {
    struct half halves[2]; /* of the job's items */
    _Alignas(64) _Atomic uint32_t done; /* items that helpers have completed */
    void (*item)(const void *, int);
    const void *job;
    int late, helped; /* in this call: whether a helper was late, whether one did anything */
    int credit, rest; /* good calls less what late ones cost; calls without helpers that are still to come */
    atomic_int taken, asleep; /* whether a call has the team; helpers that sleep */
    int helpers; /* that live */
    pthread_mutex_t mutex; /* of helpers, and of changes of asleep */
    pthread_cond_t work;
};

#define NEW {.credit = CREDIT, .mutex = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER}
static const struct team fresh = NEW;
static struct team team = NEW;

static inline void pause_briefly(void) {
#if defined __x86_64__
    _mm_pause();
#elif defined __aarch64__
    __asm__ volatile("isb");
#endif
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * SECOND + time.tv_nsec;
}

/* The next item of the job, of this half where it has one left, which is the claimant's now; -1 where all are claimed.
   The next job is offered when all items of this one are done, so that a claim is always one of the present job. */
static int claim(int half) {
    for (int n = 0; n < 2; n++, half = !half) {
        _Atomic uint32_t *place = &team.halves[half].claims;
        uint32_t claims = atomic_load_explicit(place, memory_order_relaxed);
        while ((claims & MOST_ITEMS) < claims >> 16)
            if (atomic_compare_exchange_weak_explicit(place, &claims, claims + 1, memory_order_acquire,
                                                      memory_order_relaxed))
                return (int)(claims & MOST_ITEMS);
    }
    return -1;
}

/* Sleeps until there is work; 0 where none came */
static int sleep_well(void) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += SLEEP;
    if (until.tv_nsec >= SECOND) until.tv_nsec -= SECOND, until.tv_sec++;
    pthread_mutex_lock(&team.mutex);
    atomic_fetch_add(&team.asleep, 1);
    int ends = pthread_cond_timedwait(&team.work, &team.mutex, &until) == ETIMEDOUT;
    if (ends) team.helpers--;
    if (ends && team.asleep) atomic_fetch_sub(&team.asleep, 1); /* else it was just called */
    pthread_mutex_unlock(&team.mutex);
    return !ends;
}

static void *help(void *unused) {
    flush(); /* which not every system hands on to new threads */
    for (int looks = 0; looks < LOOKS || sleep_well(); looks++) {
        if (looks == LOOKS) looks = 0;
        for (int n; (n = claim(1)) >= 0; looks = 0) {
            team.item(team.job, n);
            atomic_fetch_add_explicit(&team.done, 1, memory_order_release);
        }
        pause_briefly();
    }
    return 0;
}

static void forget(void) { memcpy(&team, &fresh, sizeof team); } /* a forked process has no other threads */

/* Starts helpers up to so many, which take no signals; 0 where the system has no more threads */
static int start(int helpers) {
    pthread_attr_t kind;
    sigset_t all, before;
    pthread_t thread;
    static int forks; /* whether they are watched */
    int failed = 0;
    if (!forks) forks = !pthread_atfork(0, 0, forget);
    pthread_attr_init(&kind);
    pthread_attr_setdetachstate(&kind, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&kind, STACK);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (team.helpers < helpers && !failed)
        if (!(failed = pthread_create(&thread, &kind, help, 0))) team.helpers++;
    pthread_sigmask(SIG_SETMASK, &before, 0);
    pthread_attr_destroy(&kind);
    return !failed;
}

/* The team, for a call by so many threads, or null where it is to compute alone. No call waits for a lock: it belongs
   to a helper that is about to sleep or wakes up */
static struct team *gather(int threads) {
    if (threads < 2 || atomic_exchange(&team.taken, 1)) return 0;
    if (team.rest > 0) {
        team.rest--;
        atomic_store(&team.taken, 0);
        return 0;
    }
    if (!pthread_mutex_trylock(&team.mutex)) {
        if (team.helpers < threads - 1 && !start(threads - 1)) team.rest = REST;
        pthread_mutex_unlock(&team.mutex);
    }
    team.late = team.helped = 0;
    return &team;
}

static void dismiss(struct team *of_call) {
    if (!of_call) return;
    if (team.late && team.credit < COST) team.rest = REST;
    team.credit += team.late ? -COST : team.helped;
    team.credit = team.credit < 0 ? 0 : team.credit > CREDIT ? CREDIT : team.credit;
    atomic_store(&team.taken, 0);
}

/* Offers a job to helpers, and wakes those that sleep */
static void offer(int items, void (*item)(const void *, int), const void *job) {
    team.item = item, team.job = job;
    atomic_store_explicit(&team.done, 0, memory_order_relaxed);
    atomic_store_explicit(&team.halves[1].claims, (uint32_t)items << 16 | (uint32_t)items / 2, memory_order_release);
    atomic_store_explicit(&team.halves[0].claims, (uint32_t)(items / 2) << 16, memory_order_release);
    if (atomic_load_explicit(&team.asleep, memory_order_relaxed) && !pthread_mutex_trylock(&team.mutex)) {
        atomic_store(&team.asleep, 0);
        pthread_mutex_unlock(&team.mutex);
        pthread_cond_broadcast(&team.work);
    }
}

/* Calls item(job, n) for each n of `items`, with the helpers of a team or alone */
static void share(struct team *of_call, int items, void (*item)(const void *, int), const void *job) {
    if (!of_call || items < 2 || items > MOST_ITEMS || team.late) {
        for (int n = 0; n < items; n++) item(job, n);
        return;
    }
    uint32_t own = 0;
    offer(items, item, job);
    for (int n; (n = claim(0)) >= 0; own++) item(job, n);
    team.helped |= own < (uint32_t)items;
    int64_t since = 0;
    for (uint32_t waits = 0; atomic_load_explicit(&team.done, memory_order_acquire) < items - own; waits++) {
        if (team.late) sched_yield(); /* to a helper on the same core, or to another program */
        else if (waits % 64) pause_briefly();
        else if (!since) since = now();
        else team.late = now() - since > LATE;
    }
}
#endif
