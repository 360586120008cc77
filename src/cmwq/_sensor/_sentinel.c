/* The sentinel: watching Python's own threads without the GIL.

   One native thread per CPU, pinned to it, with policy SCHED_IDLE.  The kernel runs it only when that CPU
   has nothing better to do, so *being scheduled is the event*: the last runnable worker there blocked.

   What this file knows: which threads are workers (Slot), whether work waits (Lookout.reserve is set), and
   how many may run (Lookout.target).  What it does: look at the workers, mark those that sleep, and wake the one
   reserve worker it was given.  Policy stays in Python: the woken worker reads the marks and decides.

   A slot is also where its worker parks; so parking is here, too, for all threads (Parker): only without the GIL can a
   thread stay awake for a moment before it sleeps.  And a lookout is also its pool's lock; so the locks are here, too
   (Lock): only in C can a section begin and end between two bytecodes.

   Guarantees
   - A native thread that looks never touches the GIL or a Python object.  (The helper of learn_gil() asks for the GIL:
     that is what it is for.  It is joined before learn_gil() returns.)
   - No lock is shared with Python threads: a SCHED_IDLE thread may be off the CPU for as long as others are busy,
     and whoever waited for its lock would wait as long.  All sharing is by atomics; memory the native threads
     may reach is freed by the last of them to leave, and until then only reused as what it was.
   - Asleep on one futex (Watch.bell) whenever no lookout is armed.  No periodic wake-up then.
   - Level-triggered: while a lookout is armed the sentinels look again and again (backing off to 1 ms), so a report
     that came too early or too late is only a late one, never a lost one.

   Letters: A atomic, any thread; I set before it is shared; P atomic, Python threads only; L whoever holds the lock it
   belongs to; S its own thread alone; F the child of a fork.  The words of struct Slot are argued in README.md beside
   this file.  */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#ifndef __linux__
#error "the sentinel needs Linux; cmwq works without it"
#endif

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define US 1000LL
#define MS (1000 * US)

enum {
    BACKOFF_MIN = 20 * US,      /* first pause after a look that found nothing to start */
    BACKOFF_MAX = 1 * MS,
    LINGER = 100 * US,          /* a sentinel goes on looking for so long after anything happened */
    KEPT_OFF = 50 * US,         /* between two looks: others had the CPU meanwhile */
    QUIET_TICKS = 10,           /* disarmed for so many ticks, the tick goes to sleep */
    TICK = 10 * MS,             /* the plain tick, should every sentinel be starved by other processes */
    TICK_MAX = 4 * TICK,        /* its period grows up to that while it finds nothing to do */
    SHORT_WAIT = 50 * US,       /* a lock wait must last so long, times (1 + young ones), to count as blocked */
    YOUNG = 10 * MS,            /* a lock wait older than this no longer damps the next */
    STILL = 10 * MS,            /* a CPU clock stood: longer than a waiter for the GIL goes without stirring */
    ALONE = 5 * US,             /* a yield that took no longer: nobody else wants this CPU */
    NAP = 20 * US,              /* long enough for a lock of a free-threaded build to end its spinning */
    PARK_SPIN = 50 * US,        /* who parks stays awake for so long, if it may and that paid off lately */
    PARK_SPINS = 150,           /* looks of an idle worker before it sleeps, without a GIL */
    PARK_YIELDS = 40,           /* yields of everybody else, as in the locks of such Pythons */
    LET_GO = 20 * US,           /* then it lets who unparked it give up the GIL for so long, before it asks for that */
    FIRST_SLEEP = 10 * MS,      /* of the main thread, which signals may interrupt */
    MAX_PENALTY = 63,           /* so many times it goes to sleep earlier, after it spun in vain */
    LOCK_SPINS = 400,           /* looks at a pool's lock before sleeping for it, without a GIL */
    GONE = 50 * MS,             /* between two tries to get back to a CPU that is offline */
    MAX_PARK = 1000000000,      /* s: who parks for longer returns earlier, after 31 years */
    MAX_WOKEN = 8,              /* so many unparks of one section wait for its end */
    MAX_RANK = 31,
    MAX_LOOKOUTS = 4096,
    MAX_CAPACITY = 1 << 22,     /* more threads than Linux can have */
    MAX_KEPT = 256,             /* descriptors kept open: a pool of a thousand threads must not hold a thousand */
    KEPT_SHARE = 8,             /* nor more than an eighth of those that the process may have */
};

#ifdef Py_GIL_DISABLED
static void spin_wait(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb");
#endif
}
#endif

static long long now_ns(clockid_t clock)
{
    struct timespec t;
    return clock_gettime(clock, &t) ? -1 : t.tv_sec * 1000000000LL + t.tv_nsec;
}

static long futex(atomic_uint *word, int op, unsigned value, const struct timespec *timeout)
{
    return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, timeout, NULL, 0);
}

static struct timespec timespec_of(long long ns)
{
    return (struct timespec){.tv_sec = ns / 1000000000LL, .tv_nsec = ns % 1000000000LL};
}

typedef struct {
    PyTypeObject *slot_type, *lookout_type, *watch_type, *parker_type, *lock_type, *hold_type;
    PyObject *cmwq_error, *reentered;
} State;

/* An int argument of a METH_O function. */
static bool as_int(PyObject *value, int *result)
{
    long number = PyLong_AsLong(value);
    if (number == -1 && PyErr_Occurred())
        return false;
    if (number < INT_MIN || number > INT_MAX) {
        PyErr_SetString(PyExc_OverflowError, "the number doesn't fit an int");
        return false;
    }
    *result = (int)number;
    return true;
}

/* ---------------------------------------------------------------------------------------------- parking */

/* Where one thread sleeps until told. */
typedef struct {
    atomic_uint token;          /* A: 0 empty, 1 unparked, 2 somebody sleeps */
    atomic_uint given;          /* A: what `nr_let_go` was when it was unparked */
} Parking;

static atomic_uint nr_let_go;   /* A: how often a thread gave up the GIL to park */
#if defined __GLIBC__ && defined __GNUC__
#define thread_local_ _Thread_local __attribute__((tls_model("initial-exec")))
#else
#define thread_local_ _Thread_local
#endif
static thread_local_ struct { unsigned char rests, penalty; } habit;   /* does it pay off for this thread to spin? */

/* `by_python`: the caller has the GIL, and will park soon, or not. */
static void give(Parking *parking, bool by_python)
{
    atomic_store_explicit(&parking->given, atomic_load(&nr_let_go) - !by_python, memory_order_relaxed);
    if (atomic_exchange(&parking->token, 1) == 2)
        futex(&parking->token, FUTEX_WAKE, 1, NULL);
}

static bool is_given(Parking *parking)
{
    return atomic_load_explicit(&parking->token, memory_order_acquire) == 1;
}

/* Spin for a moment: to wake a thread that sleeps on an idle CPU takes longer than many works.  It yields, for others may
   want this CPU, the one that is to unpark it above all; and if they do it is over, or each yield would cost a time slice.
   Only if it `may`, and where the last times were not in vain: after each that was, twice as many parkings pass without.
   Without a GIL a little in any case: who waits for others' works yields as in such a Python's own locks, and a worker,
   which may rest for long, keeps to itself.  Once unparked it waits until who did that has given up the GIL: to ask for
   it at once is to sleep, too.  Context: no GIL. */
static void spin(Parking *parking, bool may, bool worker)
{
#ifdef Py_GIL_DISABLED
    for (int i = 0; i < (worker ? PARK_SPINS : PARK_YIELDS) && !is_given(parking); i++)
        worker ? spin_wait() : (void)sched_yield();
#else
    (void)worker;
#endif
    bool longer = may && !habit.rests;
    long long now = now_ns(CLOCK_MONOTONIC), end = now + (longer ? PARK_SPIN : 0), before = now;
    while (!is_given(parking) && now < end && now - before < ALONE) {
        before = now;
        sched_yield();
        now = now_ns(CLOCK_MONOTONIC);
    }
    if (!is_given(parking)) {
        if (longer)
            habit.rests = habit.penalty = habit.penalty < MAX_PENALTY ? habit.penalty * 2 + 1 : MAX_PENALTY;
        else if (may)
            habit.rests--;
        return;
    }
    if (may)
        habit.rests = habit.penalty = 0;
#ifndef Py_GIL_DISABLED
    end = now + LET_GO;
    while (atomic_load(&nr_let_go) == atomic_load_explicit(&parking->given, memory_order_relaxed) && now < end) {
        sched_yield();
        now = now_ns(CLOCK_MONOTONIC);
    }
#endif
}

/* The GIL is given up for it, once.  `until`: on the monotonic clock; -1: for ever.  False: a signal came first. */
static bool sleep_until_given(Parking *parking, long long until, bool spins, bool interruptible)
{
    bool signalled = false;
    unsigned token = 0;
    Py_BEGIN_ALLOW_THREADS
    atomic_fetch_add(&nr_let_go, 1);
    spin(parking, spins, !interruptible);
    atomic_compare_exchange_strong(&parking->token, &token, 2);
    while (!signalled && atomic_load(&parking->token) == 2) {
        struct timespec left;
        if (until >= 0) {
            long long ns = until - now_ns(CLOCK_MONOTONIC);
            if (ns <= 0)
                break;
            left = timespec_of(ns);
        }
        signalled = futex(&parking->token, FUTEX_WAIT, 2, until < 0 ? NULL : &left) && errno == EINTR;
    }
    Py_END_ALLOW_THREADS
    return !signalled;
}

/* The one in which signals' handlers run. */
static bool in_main_thread(void)
{
    return syscall(SYS_gettid) == getpid();
}

/* 1: unparked.  0: `timeout` seconds passed (-1: for ever).  -1: a signal's handler raised.
   A signal that comes after the GIL was given up, but before the thread sleeps, does not wake it.  That may take long, if
   whoever waited for the GIL has the CPU now.  So the first sleep of the main thread is a short one. */
static int park(Parking *parking, double timeout, bool spins, bool interruptible)
{
    bool first = true;
    long long now = now_ns(CLOCK_MONOTONIC), deadline = timeout < 0 ? -1 : now + (long long)(timeout * 1e9);
    while (!is_given(parking) && (deadline < 0 || now < deadline || first)) {
        bool briefly = first && interruptible && in_main_thread() && (deadline < 0 || now + FIRST_SLEEP < deadline);
        long long until = briefly ? now + FIRST_SLEEP : deadline;
        bool undisturbed = sleep_until_given(parking, until, spins && first, interruptible);
        if (interruptible && (briefly || !undisturbed) && PyErr_CheckSignals()) {
            unsigned token = 2;
            atomic_compare_exchange_strong(&parking->token, &token, 0);     /* an unpark is kept */
            return -1;
        }
        first = false;
        now = now_ns(CLOCK_MONOTONIC);
    }
    return atomic_exchange(&parking->token, 0) == 1;
}

/* ---------------------------------------------------------------------------------------------- state */

/* A worker as the sentinel sees it.  `word` is sequence << 3 | state, and every change of it is a step of the sequence,
   the end of an item included.  So a verdict (compare and swap) fails if the worker parked, woke or ended its item, or
   if somebody else judged it, since it was looked at. */
enum {
    AWAY,                       /* not to be looked at: free, or exempt */
    PARKED,                     /* nor this one; but unpark() makes it RUNNING */
    RUNNING,                    /* as far as anybody knows */
    BLOCKED,                    /* somebody looked, and it slept */
    ON_LOCK,                    /* the same, and for a lock */
    STATE = 7,
    STEP = 8,
};

typedef struct {
    Parking parking;            /* A */
    atomic_uint word;           /* A */
    atomic_int tid;             /* A: 0 while the slot is free, or its thread is starting */
    atomic_bool told;           /* P: Python was told that it sleeps */
    atomic_bool used;           /* P */
    atomic_flag reading;        /* A: taken by who uses the last four; never waited for */
    atomic_ullong still;        /* A: since when it has not run, as far as was seen: see still_for() */
    int kept, kept_tid;         /* with `reading`: descriptor + 1 on the syscall file of that thread; 0: none */
    dev_t kept_dev;             /* with `reading`: the file's identity */
    ino_t kept_ino;
} Slot;

typedef struct {
    atomic_ulong cpus[CPU_SETSIZE / (8 * sizeof(long))];    /* A: where its workers run */
    int capacity;               /* I */
    Slot *slots;                /* I: type-stable: a slot is reused, never freed while the watch lives */
    atomic_int nr_slots;        /* A: slots[0:nr_slots] have been used */
    atomic_bool taken;          /* P: a pool has it; if not, the next pool with these CPUs gets it */
    atomic_int target;          /* A: how many may run */
    atomic_int reserve;         /* A: slot to wake + 1; 0: nothing to do here (no work, or nobody to wake) */
    atomic_bool changed;        /* A: marks that Python has not read */
    atomic_int cursor;          /* A: where the next re-look starts */
    atomic_llong last_look;     /* A */
    atomic_uint lock;           /* A: the pool's lock: 0 free, 1 held, 2 held and somebody waits */
} Lookout;

typedef struct {
    atomic_int refs;            /* A: the Python object and every native thread */
    atomic_bool stop;           /* A */
    atomic_uint bell;           /* A: futex; changes when a lookout is armed */
    atomic_int sleepers;        /* A: threads at the bell */
    atomic_llong gil_low, gil_high;     /* A: futexes in this range are the GIL's; empty range: no GIL */
    atomic_int nr_lookouts;     /* A */
    atomic_int nr_kept;         /* A: slots that keep a descriptor */
    int max_kept;               /* I */
    atomic_int natives;         /* A: native threads among the refs */
    pid_t pid;                  /* I */
    _Atomic(Lookout *) lookouts[MAX_LOOKOUTS];  /* A: set once */
    atomic_long looks, wakes;   /* A: statistics */
} Watch;

/* Is the descriptor that the slot keeps still ours?  A program that closes all descriptors it finds closes this one
   too, and then the number may be any file's. */
static bool still_ours(const Slot *slot)
{
    struct stat now;
    return slot->kept && !fstat(slot->kept - 1, &now) && now.st_ino == slot->kept_ino && now.st_dev == slot->kept_dev;
}

static void close_kept(Watch *watch, Slot *slot)
{
    if (still_ours(slot))
        close(slot->kept - 1);
    slot->kept = 0;
    atomic_fetch_sub(&watch->nr_kept, 1);
}

static void watch_release(Watch *watch)
{
    if (atomic_fetch_sub(&watch->refs, 1) > 1)
        return;
    for (int i = 0; i < atomic_load(&watch->nr_lookouts); i++) {
        Lookout *lookout = atomic_load(&watch->lookouts[i]);
        for (int k = 0; k < lookout->capacity; k++)
            if (lookout->slots[k].kept)
                close_kept(watch, &lookout->slots[k]);
        free(lookout->slots);
        free(lookout);
    }
    free(watch);
}

static void ring(Watch *watch)
{
    atomic_fetch_add(&watch->bell, 1);
    if (atomic_load(&watch->sleepers))
        futex(&watch->bell, FUTEX_WAKE, INT_MAX, NULL);
}

static unsigned step(unsigned word, unsigned state)
{
    return ((word & ~STATE) + STEP) | state;
}

/* Only a parked slot is changed by it: an exempt one is away for another reason, which an unpark that comes late does
   not end. */
static void unpark(Slot *slot, bool by_python)
{
    unsigned word = atomic_load(&slot->word);
    /* On its way counts as running: else the next look would start another for the same work. */
    if ((word & STATE) == PARKED)
        atomic_compare_exchange_strong(&slot->word, &word, step(word, RUNNING));
    give(&slot->parking, by_python);
}

/* The worker's own transitions (park, exempt, free): whatever was concluded of it before is void. */
static void slot_become(Slot *slot, unsigned state)
{
    unsigned word = atomic_load(&slot->word);
    while (!atomic_compare_exchange_weak(&slot->word, &word, step(word, state)))
        ;
}

static bool serves(Lookout *lookout, int cpu)
{
    const int bits = 8 * sizeof(long);
    return cpu < CPU_SETSIZE && atomic_load_explicit(&lookout->cpus[cpu / bits], memory_order_relaxed) >> cpu % bits & 1;
}

/* ---------------------------------------------------------------------------------------------- looking */

typedef enum { RUNS, WAITS_FOR_GIL, WAITS_FOR_LOCK, SLEEPS, UNKNOWN } Doing;

/* The thread's syscall file, by a descriptor that its slot keeps (0.6 us) or one opened for this once (1.8 us).  A kept
   one of a thread that ended fails, even if another got the number: then it is opened anew. */
static ssize_t read_syscall(Watch *watch, Slot *slot, int tid, char *text, size_t size)
{
    bool mine = slot && !atomic_flag_test_and_set(&slot->reading);
    ssize_t n = -1;
    if (mine && slot->kept_tid == tid && still_ours(slot))
        n = pread(slot->kept - 1, text, size, 0);
    if (n <= 0) {
        char path[48];
        struct stat file;
        snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0)
            n = pread(fd, text, size, 0);
        if (mine && slot->kept)
            close_kept(watch, slot);
        bool keep = mine && n > 0 && !fstat(fd, &file);
        if (keep && atomic_fetch_add(&watch->nr_kept, 1) >= watch->max_kept) {
            atomic_fetch_sub(&watch->nr_kept, 1);
            keep = false;
        }
        if (keep) {
            slot->kept = fd + 1;
            slot->kept_tid = tid;
            slot->kept_dev = file.st_dev;
            slot->kept_ino = file.st_ino;
        } else if (fd >= 0)
            close(fd);
    }
    if (mine)
        atomic_flag_clear(&slot->reading);
    return n;
}

/* What a thread does right now, by /proc/self/task/TID/syscall: "running", "-1 sp pc" (asleep outside a system
   call: a page fault), or the number and arguments of the call it sleeps in.  Waiting for the pool's own lock, between
   two items, is no blocking: whoever holds it is a worker too, or is about to wake one.  Unknown if nothing can be
   read: the thread ended, or no descriptor is to be had, or /proc is out of reach. */
static Doing look_at(Watch *watch, Lookout *lookout, Slot *slot, int tid, long long *key)
{
    char text[128];
    ssize_t n = read_syscall(watch, slot, tid, text, sizeof text - 1);
    if (n <= 0)
        return UNKNOWN;
    text[n] = 0;
    if (text[0] == 'r')
        return RUNS;
    *key = 0;
    char *rest;
    long number = strtol(text, &rest, 10);
    switch (number) {
    case -1:                            /* a page fault, or a lock of the address space: short, or it is I/O */
    case SYS_mmap:
    case SYS_munmap:
    case SYS_mprotect:
    case SYS_madvise:
    case SYS_brk:
        return WAITS_FOR_LOCK;
    case SYS_futex:
        *key = (long long)strtoull(rest, NULL, 16);
        if (*key >= atomic_load(&watch->gil_low) && *key < atomic_load(&watch->gil_high))
            return WAITS_FOR_GIL;
        return lookout && *key == (long long)(intptr_t)&lookout->lock ? RUNS : WAITS_FOR_LOCK;
    default:
        return SLEEPS;
    }
}

static clockid_t cpu_clock_of(int tid)
{
    return (clockid_t)(((unsigned)~tid << 3) | 6);      /* CPUCLOCK_PERTHREAD | CPUCLOCK_SCHED */
}

/* A moment as the low half of Slot.still: 2^32 of these are 73 minutes. */
static uint32_t short_time(long long ns)
{
    return (uint32_t)(ns >> 10);
}

/* For how many ns a thread has been seen as it is now: the same word, the same `key`, the same CPU time, so that it did
   not run in between.  -1 if it has ended.  Slot.still is one word, a digest of what was seen << 32 | since when, so
   that several who look at once can't mix theirs.  The time is taken after the CPU time to begin with, and before it to
   end with: a look that is interrupted makes it too short, never too long.  A time that seems to lie ahead is another
   looker's, or half an hour old: it begins anew, too. */
static long long still_for(Slot *slot, unsigned word, long long key)
{
    uint32_t now = short_time(now_ns(CLOCK_MONOTONIC));
    long long cpu = now_ns(cpu_clock_of(atomic_load(&slot->tid)));
    if (cpu < 0)
        return -1;
    uint64_t digest = ((uint64_t)key * 0x9e3779b97f4a7c15 ^ (uint64_t)cpu) * 0xbf58476d1ce4e5b9;
    digest = ((digest ^ digest >> 32 ^ word) * 0x94d049bb133111eb) >> 32 | 1;
    unsigned long long seen = atomic_load(&slot->still);
    int32_t since = (int32_t)(now - (uint32_t)seen);
    if (seen >> 32 == digest && since >= 0)
        return since * 1024LL;
    atomic_compare_exchange_strong(&slot->still, &seen, digest << 32 | short_time(now_ns(CLOCK_MONOTONIC)));
    return 0;
}

static bool is_young(Slot *slot, long long now)
{
    return short_time(now) - (uint32_t)atomic_load(&slot->still) < short_time(YOUNG);
}

/* A verdict. Whether it still held. */
static bool mark(Lookout *lookout, Slot *slot, unsigned word, unsigned state)
{
    if (!atomic_compare_exchange_strong(&slot->word, &word, step(word, state)))
        return false;
    atomic_store(&lookout->changed, true);
    return true;
}

/* The lasting-futex rule.  A contended lock looks like a blocked worker; starting another for it makes more
   contention, and so on without end.  So the wait must have lasted, without the thread having run in between, and the
   longer the more others were counted as waiting for locks of late.  With nobody running at all, the first counts at
   once: whoever holds that lock is not about to let go of it. */
static bool has_lasted(Slot *slot, unsigned word, long long key, int runnable, int young)
{
    return still_for(slot, word, key) >= SHORT_WAIT * ((runnable > 0) + young);
}

/* One look at a pool's workers.  Returns whether a worker was woken: a sentinel or the tick wakes one if fewer than
   `enough` are runnable; a worker, who asks before it goes idle (`self`), nobody: it is there itself.  The look ends
   early once `enough` were found runnable, or, if it is no worker's, one that waits for the GIL: nobody is woken then,
   whatever the others do.  A hundred that ended their sleeps together and queue for a CPU would else be read again and
   again.  Of those believed blocked one is visited, each in its turn. */
static bool look(Watch *watch, Lookout *lookout, const Slot *self, int enough)
{
    struct { Slot *slot; unsigned word; long long key; } waiting[32];
    Slot *asleep = NULL;
    unsigned asleep_word = 0;
    int nr_waiting = 0, runnable = 0, gil_waiters = 0, young = 0;
    long long now = now_ns(CLOCK_MONOTONIC), key, still;
    int n = atomic_load(&lookout->nr_slots), first = n ? atomic_load(&lookout->cursor) % n : 0;

    atomic_store(&lookout->last_look, now);
    atomic_fetch_add_explicit(&watch->looks, 1, memory_order_relaxed);
    int k = 0;
    for (; k < n && runnable < enough && (self || !gil_waiters); k++) {
        int i = first + k < n ? first + k : first + k - n;
        Slot *slot = &lookout->slots[i];
        unsigned word = atomic_load_explicit(&slot->word, memory_order_relaxed), state = word & STATE;
        if (state == AWAY || state == PARKED || slot == self)
            continue;
        if (state != RUNNING) {
            young += state == ON_LOCK && is_young(slot, now);
            if (!asleep) {
                asleep = slot;
                asleep_word = word;
                atomic_store_explicit(&lookout->cursor, i + 1, memory_order_relaxed);
            }
            continue;
        }
        int tid = atomic_load(&slot->tid);
        switch (tid ? look_at(watch, lookout, slot, tid, &key) : RUNS) {    /* 0: unparked while its thread starts */
        case WAITS_FOR_GIL:
            gil_waiters++;
            runnable++;
            break;
        case WAITS_FOR_LOCK:
            if (nr_waiting < (int)(sizeof waiting / sizeof *waiting)) {
                waiting[nr_waiting].slot = slot;
                waiting[nr_waiting].word = word;
                waiting[nr_waiting++].key = key;
            } else
                runnable++;             /* its turn comes when some of those are marked */
            break;
        case SLEEPS:
            mark(lookout, slot, word, BLOCKED);
            break;
        case RUNS:
            runnable++;
            break;
        case UNKNOWN:
            /* Its CPU clock is left.  When a worker looks every CPU is busy, and a clock that stands says nothing. */
            still = self ? 0 : still_for(slot, word, -1);
            if (still >= STILL)
                mark(lookout, slot, word, BLOCKED);
            else if (still >= 0)
                runnable++;             /* else it has ended */
            break;
        }
    }
    if (asleep && runnable < enough && look_at(watch, lookout, asleep, atomic_load(&asleep->tid), &key) == RUNS)
        runnable += mark(lookout, asleep, asleep_word, RUNNING);
    /* Judged only when all young ones were counted. */
    for (int i = 0, running = runnable; k == n && i < nr_waiting; i++) {
        if (has_lasted(waiting[i].slot, waiting[i].word, waiting[i].key, running, young)) {
            mark(lookout, waiting[i].slot, waiting[i].word, ON_LOCK);
            young++;
        } else
            runnable++;
    }
    /* The GIL rule: while one waits for the GIL, another could only join the queue. */
    if (self || gil_waiters || runnable >= enough)
        return false;
    int reserve = atomic_exchange(&lookout->reserve, 0);
    if (!reserve)
        return false;
    atomic_fetch_add_explicit(&watch->wakes, 1, memory_order_relaxed);
    unpark(&lookout->slots[reserve - 1], false);    /* may preempt this thread for good: it holds nothing */
    return true;
}

typedef struct { Watch *watch; int cpu; } Post;         /* cpu -1: the tick */

/* One round over the pools of a CPU (-1: all that no sentinel has looked at for a tick). */
static void make_round(Watch *watch, int cpu, bool *armed, bool *woke)
{
    *armed = *woke = false;
    for (int i = 0, n = atomic_load(&watch->nr_lookouts); i < n; i++) {
        Lookout *lookout = atomic_load(&watch->lookouts[i]);
        if (!atomic_load(&lookout->reserve) || (cpu >= 0 && !serves(lookout, cpu)))
            continue;
        *armed = true;
        if (cpu >= 0 || now_ns(CLOCK_MONOTONIC) - atomic_load(&lookout->last_look) > TICK)
            *woke |= look(watch, lookout, NULL, cpu < 0 ? 1 : atomic_load(&lookout->target));
    }
}

/* Sleep until the bell changes from what it was, or `ns` have passed; -1: for ever. */
static void wait_for_bell(Watch *watch, unsigned bell, long long ns)
{
    struct timespec pause = timespec_of(ns);
    atomic_fetch_add(&watch->sleepers, 1);
    futex(&watch->bell, FUTEX_WAIT, bell, ns < 0 ? NULL : &pause);
    atomic_fetch_sub(&watch->sleepers, 1);
}

/* Is it on its CPU?  The kernel drives a thread off a CPU that goes offline, and never back; so it goes by itself. */
static bool at_post(int cpu)
{
    cpu_set_t post;
    if (sched_getcpu() == cpu)
        return true;
    CPU_ZERO(&post);
    CPU_SET(cpu, &post);
    return !sched_setaffinity(0, sizeof post, &post) && sched_getcpu() == cpu;
}

/* A sentinel looks again and again for LINGER after anything happened: on an idle CPU that delays nobody, and on a busy
   one sched_yield() leaves the CPU to those who have work.  It must not sleep there: coming back from where it was kept
   off the CPU is the very event it waits for, and a pause begun a moment before would hide it.  Where nobody else wants
   the CPU it naps all the same: only a CPU without any runnable thread pulls over one that queues on another. */
static void sentinel_main(Watch *watch, int cpu)
{
    long long active = now_ns(CLOCK_MONOTONIC), last = active, backoff = BACKOFF_MIN;
    unsigned last_bell = 0;
    while (!atomic_load(&watch->stop)) {
        bool armed, woke;
        unsigned bell = atomic_load(&watch->bell);
        if (!at_post(cpu)) {            /* its CPU is gone, and so there is nothing to look for */
            struct timespec pause = timespec_of(GONE);
            clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
            wait_for_bell(watch, bell, -1);
            continue;
        }
        make_round(watch, cpu, &armed, &woke);
        long long now = now_ns(CLOCK_MONOTONIC);
        if (woke || bell != last_bell || (armed && now - last > KEPT_OFF)) {
            active = now;
            backoff = BACKOFF_MIN;
        }
        last_bell = bell;
        if (now - active < LINGER) {
            last = now;
            sched_yield();
            if (armed && !woke && now_ns(CLOCK_MONOTONIC) - last < ALONE) {
                wait_for_bell(watch, bell, NAP);
                last = now_ns(CLOCK_MONOTONIC);     /* a nap is not being kept off, however long it took */
            }
            continue;
        }
        wait_for_bell(watch, bell, armed ? backoff : -1);
        backoff = backoff * 2 < BACKOFF_MAX ? backoff * 2 : BACKOFF_MAX;
        last = now_ns(CLOCK_MONOTONIC);
    }
}

/* The tick does not hear the bell while it may be needed: its period is the point, and it has a normal thread's
   priority, so it must not run each time a pool is armed. */
static void tick_main(Watch *watch)
{
    int quiet = 0;
    long long period = TICK;
    while (!atomic_load(&watch->stop)) {
        bool armed, woke;
        unsigned bell = atomic_load(&watch->bell);
        make_round(watch, -1, &armed, &woke);
        quiet = armed ? 0 : quiet + 1;
        period = woke || !armed ? TICK : period * 2 < TICK_MAX ? period * 2 : TICK_MAX;
        if (quiet > QUIET_TICKS)
            wait_for_bell(watch, bell, -1);
        else {
            struct timespec pause = timespec_of(period);
            clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
        }
    }
}

static void *native_main(void *arg)
{
    Post post = *(Post *)arg;
    free(arg);
    prctl(PR_SET_NAME, post.cpu < 0 ? "cmwq/tick" : "cmwq/sentinel");
    prctl(PR_SET_TIMERSLACK, 1);
    if (post.cpu < 0)
        tick_main(post.watch);
    else {
        struct sched_param param = {0};
        sched_setscheduler(0, SCHED_IDLE, &param);      /* glibc's thread attributes refuse this policy */
        sentinel_main(post.watch, post.cpu);
    }
    atomic_fetch_sub(&post.watch->natives, 1);
    watch_release(post.watch);
    return NULL;
}

static int start_thread(Watch *watch, int cpu)
{
    Post *post = malloc(sizeof *post);
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, before;
    if (!post)
        return ENOMEM;
    *post = (Post){watch, cpu};
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, PTHREAD_STACK_MIN > 65536 ? PTHREAD_STACK_MIN : 65536);
    if (cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpu, &set);
        pthread_attr_setaffinity_np(&attr, sizeof set, &set);
    }
    sigfillset(&all);                   /* signals are for Python's main thread */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    atomic_fetch_add(&watch->refs, 1);
    atomic_fetch_add(&watch->natives, 1);
    int error = pthread_create(&thread, &attr, native_main, post);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (error) {
        free(post);
        atomic_fetch_sub(&watch->natives, 1);
        watch_release(watch);
    }
    return error;
}

/* ---------------------------------------------------------------------------------------------- what a lock is */

/* A call that waits until its thread holds no lock. */
typedef struct Deferred {
    struct Deferred *next;
    PyObject *fn;
} Deferred;

/* What a thread holds.  Others come to it through a lock that it holds, and then only to let go of that lock in its
   place.  So it is freed by the last of those and the thread, which leaves it to leak if it ends while it holds one. */
typedef struct {
    atomic_uint held;           /* S to change, of those that let_go allows: the ranks, a bit each */
    atomic_uint let_go;         /* A: those of them that another thread let go of meanwhile */
    atomic_int refs;            /* A */
    _Atomic(Deferred *) deferred;   /* A: the newest first */
    Deferred *due;              /* S: taken from there, the oldest first */
    bool draining;              /* S: calls them */
} Thread;

/* What a lock is besides its futex. */
typedef struct {
    const State *state;         /* I */
    atomic_uint *word;          /* I: 0 free, 1 held, 2 held and somebody waits */
    unsigned rank;              /* I */
    _Atomic(Thread *) owner;    /* L to change; anybody may ask whether it is himself */
    unsigned epoch;             /* F: a section that began in another is the parent's */
    PyObject *mend;             /* L, or before others know the lock */
    bool stained;               /* L: left by an exception, and not mended since */
    bool by_hand;               /* L: by acquire() */
    bool forgiven;              /* F: a release() is to come of what the parent acquired */
    int nr_woken;               /* L */
    PyObject *woken[MAX_WOKEN]; /* L */
} Guard;

/* ---------------------------------------------------------------------------------------------- Python: Slot */

typedef struct {
    PyObject_HEAD
    Watch *watch;
    Lookout *lookout;
    Guard guard;                /* of lookout->lock, so that the sentinels know its futex */
} LookoutObject;

typedef struct {
    PyObject_HEAD
    LookoutObject *owner;       /* a strong reference: a lookout is not given up while Python knows a slot of it */
    Slot *slot;
    int index;
} SlotObject;

static PyObject *slot_attach(SlotObject *self, PyObject *Py_UNUSED(none))
{
    atomic_store(&self->slot->tid, (int)syscall(SYS_gettid));
    Py_RETURN_NONE;
}

/* park([timeout[, spins]]) */
static int park_arguments(PyObject *const *args, Py_ssize_t nargs, double *timeout, int *spins)
{
    if (nargs > 2) {
        PyErr_SetString(PyExc_TypeError, "park() takes a timeout and whether to spin");
        return -1;
    }
    *timeout = nargs > 0 ? PyFloat_AsDouble(args[0]) : -1;
    if (*timeout == -1 && PyErr_Occurred())
        return -1;
    if (isnan(*timeout)) {
        PyErr_SetString(PyExc_ValueError, "a timeout must not be NaN");
        return -1;
    }
    *timeout = *timeout < MAX_PARK ? *timeout : MAX_PARK;
    *spins = nargs > 1 ? PyObject_IsTrue(args[1]) : 0;
    return *spins < 0 ? -1 : 0;
}

static PyObject *slot_park(SlotObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    double timeout;
    int spins;
    if (park_arguments(args, nargs, &timeout, &spins))
        return NULL;
    slot_become(self->slot, PARKED);
    int unparked = park(&self->slot->parking, timeout, spins, false);
    slot_become(self->slot, RUNNING);
    return PyBool_FromLong(unparked);
}

static PyObject *slot_unpark(SlotObject *self, PyObject *Py_UNUSED(none))
{
    unpark(self->slot, true);
    Py_RETURN_NONE;
}

/* The hot path: once per item. */
static PyObject *slot_ended(SlotObject *self, PyObject *Py_UNUSED(none))
{
    Slot *slot = self->slot;
    unsigned state = atomic_fetch_add(&slot->word, STEP) & STATE;
    if (state == BLOCKED || state == ON_LOCK)
        slot_become(slot, RUNNING);
    if (atomic_load_explicit(&slot->told, memory_order_relaxed))
        atomic_store(&slot->told, false);
    Py_RETURN_NONE;
}

/* What Python believes, by its own account: an interruption may have lost what was delivered. */
static PyObject *slot_believed(SlotObject *self, PyObject *asleep)
{
    int told = PyObject_IsTrue(asleep);
    if (told < 0)
        return NULL;
    atomic_store(&self->slot->told, told);
    atomic_store(&self->owner->lookout->changed, true);
    Py_RETURN_NONE;
}

static PyObject *slot_exempt(SlotObject *self, PyObject *flag)
{
    int exempt = PyObject_IsTrue(flag);
    if (exempt < 0)
        return NULL;
    slot_become(self->slot, exempt ? AWAY : RUNNING);
    atomic_store(&self->slot->told, false);
    Py_RETURN_NONE;
}

static PyObject *slot_review(SlotObject *self, PyObject *enough)
{
    int others;
    if (!as_int(enough, &others))
        return NULL;
    look(self->owner->watch, self->owner->lookout, self->slot, others);
    Py_RETURN_NONE;
}

static void give_back(Watch *watch, Slot *slot)
{
    slot_become(slot, AWAY);
    atomic_store(&slot->tid, 0);
    atomic_store(&slot->told, false);
    if (!atomic_flag_test_and_set(&slot->reading)) {
        if (slot->kept)
            close_kept(watch, slot);
        atomic_flag_clear(&slot->reading);
    }
    atomic_store(&slot->used, false);   /* last: from here on it may be another's */
}

static PyObject *slot_free(SlotObject *self, PyObject *Py_UNUSED(none))
{
    if (atomic_load(&self->slot->used))
        give_back(self->owner->watch, self->slot);
    Py_RETURN_NONE;
}

static void slot_dealloc(SlotObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_DECREF(self->owner);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *slot_get_index(SlotObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(self->index);
}

static PyGetSetDef slot_getset[] = {
    {"index", (getter)slot_get_index, NULL, "the slot's number on its lookout", NULL},
    {NULL},
};

static PyMethodDef slot_methods[] = {
    {"attach", (PyCFunction)slot_attach, METH_NOARGS, "The calling thread is the worker."},
    {"park", (PyCFunction)(void (*)(void))slot_park, METH_FASTCALL,
     "park([timeout[, spins]]): wait for an unpark, one that came before included. True if there was one."},
    {"unpark", (PyCFunction)slot_unpark, METH_NOARGS, "Let park() return, now or next time."},
    {"ended", (PyCFunction)slot_ended, METH_NOARGS, "The worker ended an item: what was seen of it is void."},
    {"believed", (PyCFunction)slot_believed, METH_O, "believed(asleep): what differs from that is to be delivered again."},
    {"exempt", (PyCFunction)slot_exempt, METH_O, "exempt(flag): do not look at this worker until exempt(False)."},
    {"review", (PyCFunction)slot_review, METH_O,
     "review(enough): the worker itself looks at the others, until it saw so many run."},
    {"free", (PyCFunction)slot_free, METH_NOARGS, "The thread is ending: give the place to another."},
    {NULL},
};

static PyType_Slot slot_slots[] = {
    {Py_tp_doc, "A worker's parker, and its place on a lookout."},
    {Py_tp_dealloc, slot_dealloc},
    {Py_tp_methods, slot_methods},
    {Py_tp_getset, slot_getset},
    {0, NULL},
};

static PyType_Spec slot_spec = {
    .name = "cmwq._sensor._sentinel.Slot",
    .basicsize = sizeof(SlotObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = slot_slots,
};

/* ---------------------------------------------------------------------------------------------- Python: Parker */

typedef struct {
    PyObject_HEAD
    Parking parking;
} ParkerObject;

static PyObject *parker_park(ParkerObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    double timeout;
    int spins;
    if (park_arguments(args, nargs, &timeout, &spins))
        return NULL;
    int unparked = park(&self->parking, timeout, spins, true);
    return unparked < 0 ? NULL : PyBool_FromLong(unparked);
}

/* Whatever it is given: so it can be the callback of a weak reference, in which no bytecode runs. */
static PyObject *parker_unpark(ParkerObject *self, PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(nargs))
{
    give(&self->parking, true);
    Py_RETURN_NONE;
}

static PyMethodDef parker_methods[] = {
    {"park", (PyCFunction)(void (*)(void))parker_park, METH_FASTCALL,
     "park([timeout[, spins]]): wait for an unpark. True if there was one. Signals interrupt it in the main thread."},
    {"unpark", (PyCFunction)(void (*)(void))parker_unpark, METH_FASTCALL,
     "Let park() return, now or next time. Arguments are ignored."},
    {NULL},
};

static PyType_Slot parker_slots[] = {
    {Py_tp_doc, "A parker for any thread."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_methods, parker_methods},
    {0, NULL},
};

static PyType_Spec parker_spec = {
    .name = "cmwq._sensor._sentinel.Parker",
    .basicsize = sizeof(ParkerObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = parker_slots,
};

/* ---------------------------------------------------------------------------------------------- Python: Lock */

/* The locks on which it rests that neither an exception nor a call from within leaves anything half done.

   No frame leaves a lock behind.  `with` asks the type for `__exit__` before it calls `__enter__`, and what it gets
   lies on the frame's stack until the section is over.  Here `__exit__` is a getter: it takes the lock and gives back a
   Hold, to which nothing else refers.  So a Hold that was called ended its section, and one that dies without was left
   some other way: by an exception in one of the few bytecodes around a section, for which `with` answers for nobody.  No
   bytecode runs between taking the lock and the Hold's being on that stack, nor between the Hold's call and the lock's
   being free, those of `mend` aside: there is no moment at which an exception finds neither.

   An exceptional end mends: `mend` recounts what the section may have left half done, before the lock is free.  If it
   fails, the lock is stained, and whoever gets it next mends first, or doesn't get it.

   No deadlock.  A thread that holds a lock asks only for those of a higher rank: it, and whatever runs within it,
   finalisers and signal handlers, which count as what they interrupted.  So among the threads that wait for locks, the
   one that holds the highest rank waits for somebody who doesn't.  Who asks for another is refused before anything is
   touched.

   What can't be done now can be done later (defer): when this thread holds none of them any more.  */

static thread_local_ Thread *this_thread;
static pthread_key_t thread_key;
static pthread_once_t thread_key_once = PTHREAD_ONCE_INIT;
static bool thread_key_made;

static unsigned held_by(Thread *thread)
{
    return atomic_load_explicit(&thread->held, memory_order_relaxed) & ~atomic_load(&thread->let_go);
}

static void thread_release(Thread *thread)
{
    if (atomic_fetch_sub(&thread->refs, 1) == 1)
        free(thread);
}

static void thread_ends(void *arg)
{
    Thread *thread = arg;
    this_thread = NULL;
    if (!held_by(thread))
        thread_release(thread);
}

static void make_thread_key(void)
{
    thread_key_made = !pthread_key_create(&thread_key, thread_ends);
}

static Thread *new_thread(void)
{
    pthread_once(&thread_key_once, make_thread_key);
    Thread *thread = thread_key_made ? calloc(1, sizeof *thread) : NULL;
    if (thread && pthread_setspecific(thread_key, thread)) {
        free(thread);
        thread = NULL;
    }
    if (!thread) {
        PyErr_NoMemory();
        return NULL;
    }
    atomic_store(&thread->refs, 1);
    return this_thread = thread;
}

/* NULL: no memory. */
static Thread *current_thread(void)
{
    Thread *me = this_thread;
    return me ? me : new_thread();
}

/* Tell the log of the exception that is set, and clear it.  Context: this thread holds no lock. */
static void log_failure(PyObject *fn)
{
    PyObject *type, *exception, *traceback;
    PyErr_Fetch(&type, &exception, &traceback);
    PyErr_NormalizeException(&type, &exception, &traceback);
    if (traceback)
        PyException_SetTraceback(exception, traceback);
    PyObject *logging = PyImport_ImportModule("logging");
    PyObject *log = logging ? PyObject_CallMethod(logging, "getLogger", "s", "cmwq") : NULL;
    PyObject *method = log ? PyObject_GetAttrString(log, "error") : NULL;
    PyObject *args = method ? Py_BuildValue("(sO)", "deferred call %r raised", fn) : NULL;
    PyObject *kwargs = args ? Py_BuildValue("{sO}", "exc_info", exception) : NULL;
    PyObject *result = kwargs ? PyObject_Call(method, args, kwargs) : NULL;
    if (!result)
        PyErr_WriteUnraisable(fn);
    Py_XDECREF(result);
    Py_XDECREF(kwargs);
    Py_XDECREF(args);
    Py_XDECREF(method);
    Py_XDECREF(log);
    Py_XDECREF(logging);
    Py_XDECREF(type);
    Py_XDECREF(exception);
    Py_XDECREF(traceback);
}

/* The first exception of several: it will be raised when all is done. */
typedef struct { PyObject *type, *exception, *traceback; } First;

/* Keep the exception that is set, or, if it isn't the first, report it. */
static void keep(First *first, PyObject *whose)
{
    if (first->type)
        PyErr_WriteUnraisable(whose);
    else
        PyErr_Fetch(&first->type, &first->exception, &first->traceback);
}

/* False: there was one, and it is set. */
static bool raise_first(First *first)
{
    if (!first->type)
        return true;
    PyErr_Restore(first->type, first->exception, first->traceback);
    return false;
}

/* False: a BaseException that is no Exception is set.  Others are told to the log. */
static bool call_deferred(PyObject *fn)
{
    PyObject *result = PyObject_CallNoArgs(fn);
    Py_XDECREF(result);
    if (result)
        return true;
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return false;
    log_failure(fn);
    return true;
}

static void push_deferred(Thread *thread, Deferred *call)
{
    call->next = atomic_load(&thread->deferred);
    while (!atomic_compare_exchange_weak(&thread->deferred, &call->next, call))
        ;
}

/* All that were deferred, the oldest first. */
static Deferred *take_deferred(Thread *thread)
{
    Deferred *newest = atomic_load(&thread->deferred) ? atomic_exchange(&thread->deferred, NULL) : NULL, *oldest = NULL;
    while (newest) {
        Deferred *next = newest->next;
        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    return oldest;
}

/* Call what this thread deferred, if it holds no lock.  Each is taken from the list and called with no bytecode in
   between, so that it is called once, whatever interrupts.  One that raises what may not be kept back doesn't keep back
   the others: the first such exception is set at the end, and then it returns false.  What is deferred by these calls,
   or ends a section in one, is left to the loop that goes on already. */
static bool call_all_deferred(Thread *me)
{
    First first = {0};
    if (me->draining)
        return true;
    me->draining = true;
    while (!held_by(me)) {
        Deferred *call = me->due;
        if (!call && !(call = me->due = take_deferred(me)))
            break;
        PyObject *fn = call->fn;
        me->due = call->next;
        PyMem_RawFree(call);
        if (!call_deferred(fn))
            keep(&first, fn);
        Py_DECREF(fn);
    }
    me->draining = false;
    return raise_first(&first);
}

static bool has_deferred(Thread *thread)
{
    return atomic_load(&thread->deferred) || thread->due;
}

/* Taken with the GIL held only.  Who got it while waiting for the GIL would stop whoever has that at its next item; two
   workers would change places, at four switches, for each. */
static void word_acquire(atomic_uint *word)
{
    unsigned value = 0;
    if (atomic_compare_exchange_strong(word, &value, 1))
        return;
#ifdef Py_GIL_DISABLED
    /* Whoever holds it runs, on another CPU, and lets go within microseconds: less than two futex calls take.  (With a
       GIL it would wait for the one that this thread has.) */
    for (int i = 0; i < LOCK_SPINS; i++) {
        if (value == 2)
            break;                      /* others sleep for it already */
        spin_wait();
        value = atomic_load_explicit(word, memory_order_relaxed);
        if (!value && atomic_compare_exchange_strong(word, &value, 1))
            return;
    }
#endif
    while (atomic_exchange(word, 2)) {
        Py_BEGIN_ALLOW_THREADS
        futex(word, FUTEX_WAIT, 2, NULL);
        Py_END_ALLOW_THREADS
    }
}

static void word_release(atomic_uint *word)
{
    if (atomic_exchange(word, 0) == 2)
        futex(word, FUTEX_WAKE, 1, NULL);
}

static bool is_held(const Guard *guard)
{
    Thread *me = this_thread;
    return me && atomic_load_explicit(&guard->owner, memory_order_relaxed) == me;
}

/* One in Python may be interrupted, as by Ctrl-C: then it was perhaps not unparked, and is once more.  False: what
   interrupted it is set. */
static bool wake_now(PyObject *parker, const State *state)
{
    First first = {0};
    if (Py_IS_TYPE(parker, state->slot_type))
        unpark(((SlotObject *)parker)->slot, true);
    else if (Py_IS_TYPE(parker, state->parker_type))
        give(&((ParkerObject *)parker)->parking, true);
    else
        for (int tries = 0; tries < 2; tries++) {
            PyObject *result = PyObject_CallMethod(parker, "unpark", NULL);
            Py_XDECREF(result);
            if (result)
                break;
            keep(&first, parker);
        }
    return raise_first(&first);
}

/* Note that the lock's holder doesn't hold it any more. */
static void forget_rank(const Guard *guard, Thread *holder)
{
    unsigned bit = 1u << guard->rank;
    if (holder == this_thread)
        atomic_store_explicit(&holder->held, atomic_load_explicit(&holder->held, memory_order_relaxed) & ~bit,
                              memory_order_relaxed);
    else
        atomic_fetch_or(&holder->let_go, bit);
}

static void note_rank(const Guard *guard, Thread *me)
{
    unsigned held = atomic_load_explicit(&me->held, memory_order_relaxed);
    if (atomic_load_explicit(&me->let_go, memory_order_relaxed))
        held &= ~atomic_exchange(&me->let_go, 0);
    atomic_store_explicit(&me->held, held | 1u << guard->rank, memory_order_relaxed);
}

/* Another thread let go of what this one held, whose frame died there as a generator's can.  This one may have ended,
   and then nobody else would call what it deferred. */
static void inherit_deferred(Thread *holder)
{
    Thread *me = current_thread();
    if (!me) {
        PyErr_Clear();
        return;
    }
    for (Deferred *call = held_by(holder) ? NULL : take_deferred(holder), *next; call; call = next) {
        next = call->next;
        push_deferred(me, call);
    }
}

/* False: those whom it woke, or what was deferred and is called now, raised what can't be kept back, and that is set.
   Context: held, if by another thread; no exception is set. */
static bool guard_unlock(Guard *guard)
{
    const State *state = guard->state;
    First first = {0};
    PyObject *woken[MAX_WOKEN];
    int nr_woken = guard->nr_woken;
    for (int i = 0; i < nr_woken; i++)
        woken[i] = guard->woken[i];
    guard->nr_woken = 0;
    guard->by_hand = false;
    Thread *holder = atomic_load_explicit(&guard->owner, memory_order_relaxed);
    bool foreign = holder != this_thread;
    if (foreign)
        atomic_fetch_add(&holder->refs, 1);
    atomic_store_explicit(&guard->owner, NULL, memory_order_relaxed);
    forget_rank(guard, holder);
    word_release(guard->word);          /* from here on it is another's */
    for (int i = 0; i < nr_woken; i++) {
        if (!wake_now(woken[i], state))
            keep(&first, woken[i]);
        Py_DECREF(woken[i]);
    }
    if (foreign) {
        inherit_deferred(holder);
        thread_release(holder);
    }
    Thread *me = this_thread;
    if (me && has_deferred(me) && !call_all_deferred(me))
        keep(&first, Py_None);
    return raise_first(&first);
}

/* Context: held; no exception is set.  False: one is. */
static bool guard_mend(Guard *guard)
{
    if (guard->mend) {
        PyObject *mend = Py_NewRef(guard->mend), *result = PyObject_CallNoArgs(mend);
        Py_DECREF(mend);
        if (!result)
            return false;
        Py_DECREF(result);
    }
    guard->stained = false;
    return true;
}

/* guard_unlock() where an exception is set, and stays. */
static void guard_unlock_under_exception(Guard *guard, PyObject *whose)
{
    PyObject *type, *exception, *traceback;
    PyErr_Fetch(&type, &exception, &traceback);
    if (!guard_unlock(guard))
        PyErr_WriteUnraisable(whose);
    PyErr_Restore(type, exception, traceback);
}

/* False: an exception is set, and it is not held. */
static bool guard_lock(Guard *guard, PyObject *whose)
{
    Thread *me = current_thread();
    if (!me)
        return false;
    if (held_by(me) >> guard->rank) {
        PyErr_SetString(guard->state->reentered,
                        "called by a finaliser or a signal handler in the middle of cmwq's own code on the same thread: "
                        "it would have to wait for itself");
        return false;
    }
    word_acquire(guard->word);
    atomic_store_explicit(&guard->owner, me, memory_order_relaxed);
    note_rank(guard, me);
    if (guard->stained) {
        unsigned epoch = guard->epoch;
        if (!guard_mend(guard)) {
            if (guard->epoch == epoch)      /* else: it forked, and this is the child */
                guard_unlock_under_exception(guard, whose);
            return false;
        }
    }
    return true;
}

/* Is it held in a section of that thread?  Not if release() came first, or if this is the child of a fork. */
static bool is_within(const Guard *guard, const Thread *holder, unsigned epoch)
{
    return atomic_load_explicit(&guard->owner, memory_order_relaxed) == holder && guard->epoch == epoch;
}

/* False: an exception is set. */
static bool guard_end(Guard *guard, const Thread *holder, unsigned epoch, bool exceptional)
{
    if (!is_within(guard, holder, epoch))
        return true;
    if (exceptional && guard->mend) {
        guard->stained = true;
        if (!guard_mend(guard))
            PyErr_Clear();
        if (!is_within(guard, holder, epoch))
            return true;
    }
    return guard_unlock(guard);
}

/* Nobody holds it any more, and nobody is woken. */
static void guard_forget(Guard *guard)
{
    Thread *holder = atomic_exchange(&guard->owner, NULL);
    if (holder)
        forget_rank(guard, holder);
    guard->by_hand = false;
    while (guard->nr_woken)
        Py_DECREF(guard->woken[--guard->nr_woken]);
}

static void guard_init(Guard *guard, PyTypeObject *type, atomic_uint *word, int rank, PyObject *mend)
{
    memset(guard, 0, sizeof *guard);
    guard->state = PyType_GetModuleState(type);
    guard->word = word;
    guard->rank = (unsigned)rank;
    guard->mend = Py_XNewRef(mend);
}

static bool valid_rank(int rank)
{
    if (rank >= 0 && rank <= MAX_RANK)
        return true;
    PyErr_Format(PyExc_ValueError, "a lock's rank is from 0 to %d, not %d", MAX_RANK, rank);
    return false;
}

static bool valid_mend(PyObject *mend)
{
    if (mend == Py_None || PyCallable_Check(mend))
        return true;
    PyErr_Format(PyExc_TypeError, "mend must be callable or None, not %.200s", Py_TYPE(mend)->tp_name);
    return false;
}

/* A section.  Not tracked by the collector: to make one calls no finaliser. */
typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *lock;             /* NULL: the section has ended */
    Guard *guard;
    Thread *holder;
    unsigned epoch;
} HoldObject;

static bool hold_end(HoldObject *hold, bool exceptional)
{
    PyObject *lock = hold->lock;
    if (!lock)
        return true;
    hold->lock = NULL;
    bool ended = guard_end(hold->guard, hold->holder, hold->epoch, exceptional);
    Py_DECREF(lock);
    return ended;
}

static PyObject *hold_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *Py_UNUSED(names))
{
    HoldObject *hold = (HoldObject *)self;
    bool exceptional = hold->lock && PyVectorcall_NARGS(nargsf) > 0 && args[0] != Py_None &&
                       !PyErr_GivenExceptionMatches(args[0], hold->guard->state->cmwq_error);
    if (!hold_end(hold, exceptional))
        return NULL;
    Py_RETURN_NONE;
}

static void hold_dealloc(HoldObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->lock) {
        PyObject *pending, *exception, *traceback, *lock = Py_NewRef(self->lock);
        PyErr_Fetch(&pending, &exception, &traceback);
        if (!hold_end(self, true))
            PyErr_WriteUnraisable(lock);    /* a finaliser can't raise */
        PyErr_Restore(pending, exception, traceback);
        Py_DECREF(lock);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMemberDef hold_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(HoldObject, vectorcall), READONLY, NULL},
    {NULL},
};

static PyType_Slot hold_slots[] = {
    {Py_tp_doc, "A section: what `with` calls at its end."},
    {Py_tp_dealloc, hold_dealloc},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_members, hold_members},
    {0, NULL},
};

static PyType_Spec hold_spec = {
    .name = "cmwq._sensor._sentinel.Hold",
    .basicsize = sizeof(HoldObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_HAVE_VECTORCALL,
    .slots = hold_slots,
};

static PyObject *guard_begin(PyObject *lock, Guard *guard)
{
    HoldObject *hold = PyObject_New(HoldObject, guard->state->hold_type);
    if (!hold)
        return NULL;
    hold->vectorcall = hold_call;
    hold->lock = NULL;
    if (!guard_lock(guard, lock)) {
        Py_DECREF(hold);
        return NULL;
    }
    hold->lock = Py_NewRef(lock);
    hold->guard = guard;
    hold->holder = this_thread;
    hold->epoch = guard->epoch;
    return (PyObject *)hold;
}

static PyObject *guard_acquire(PyObject *lock, Guard *guard)
{
    if (!guard_lock(guard, lock))
        return NULL;
    guard->by_hand = true;
    Py_RETURN_NONE;
}

static PyObject *guard_release(Guard *guard)
{
    if (!is_held(guard)) {
        if (!guard->forgiven) {
            PyErr_SetString(PyExc_RuntimeError, "release of a lock that this thread doesn't hold");
            return NULL;
        }
        guard->forgiven = false;
        Py_RETURN_NONE;
    }
    if (!guard_unlock(guard))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *guard_wake(Guard *guard, PyObject *parker)
{
    if (!is_held(guard)) {
        PyErr_SetString(PyExc_RuntimeError, "wake() is for whoever holds the lock");
        return NULL;
    }
    if (guard->nr_woken < MAX_WOKEN)
        guard->woken[guard->nr_woken++] = Py_NewRef(parker);
    else if (!wake_now(parker, guard->state))
        return NULL;
    Py_RETURN_NONE;
}

/* In the child of a fork.  A frame that is within a section finds at its end that this is another epoch. */
static PyObject *guard_reinit(Guard *guard)
{
    guard->forgiven = is_held(guard) && guard->by_hand;
    guard_forget(guard);
    guard->epoch++;
    atomic_store(guard->word, 0);
    Py_RETURN_NONE;
}

static int guard_set_mend(Guard *guard, PyObject *mend)
{
    if (!valid_mend(mend ? mend : Py_None))
        return -1;
    PyObject *before = guard->mend;
    guard->mend = mend && mend != Py_None ? Py_NewRef(mend) : NULL;
    Py_XDECREF(before);
    return 0;
}

/* The same methods for each type that is a lock. */
#define LOCK_METHODS(prefix, Object)                                                                                  \
    static PyObject *prefix##_acquire(Object *self, PyObject *Py_UNUSED(none))                                        \
    {                                                                                                                 \
        return guard_acquire((PyObject *)self, &self->guard);                                                         \
    }                                                                                                                 \
    static PyObject *prefix##_release(Object *self, PyObject *Py_UNUSED(none))                                        \
    {                                                                                                                 \
        return guard_release(&self->guard);                                                                           \
    }                                                                                                                 \
    static PyObject *prefix##_enter(Object *Py_UNUSED(self), PyObject *Py_UNUSED(none))                               \
    {                                                                                                                 \
        Py_RETURN_NONE;                                                                                               \
    }                                                                                                                 \
    static PyObject *prefix##_locked(Object *self, PyObject *Py_UNUSED(none))                                         \
    {                                                                                                                 \
        return PyBool_FromLong(atomic_load(self->guard.word) != 0);                                                   \
    }                                                                                                                 \
    static PyObject *prefix##_held(Object *self, PyObject *Py_UNUSED(none))                                           \
    {                                                                                                                 \
        return PyBool_FromLong(is_held(&self->guard));                                                                \
    }                                                                                                                 \
    static PyObject *prefix##_wake(Object *self, PyObject *parker)                                                    \
    {                                                                                                                 \
        return guard_wake(&self->guard, parker);                                                                      \
    }                                                                                                                 \
    static PyObject *prefix##_reinit(Object *self, PyObject *Py_UNUSED(none))                                         \
    {                                                                                                                 \
        return guard_reinit(&self->guard);                                                                            \
    }                                                                                                                 \
    static PyObject *prefix##_begin(Object *self, void *Py_UNUSED(closure))                                           \
    {                                                                                                                 \
        return guard_begin((PyObject *)self, &self->guard);                                                           \
    }                                                                                                                 \
    static PyObject *prefix##_get_rank(Object *self, void *Py_UNUSED(closure))                                        \
    {                                                                                                                 \
        return PyLong_FromLong(self->guard.rank);                                                                     \
    }                                                                                                                 \
    static PyObject *prefix##_get_mend(Object *self, void *Py_UNUSED(closure))                                        \
    {                                                                                                                 \
        return Py_NewRef(self->guard.mend ? self->guard.mend : Py_None);                                              \
    }                                                                                                                 \
    static int prefix##_set_mend(Object *self, PyObject *mend, void *Py_UNUSED(closure))                              \
    {                                                                                                                 \
        return guard_set_mend(&self->guard, mend);                                                                    \
    }

#define LOCK_METHOD_DEFS(prefix)                                                                                      \
    {"acquire", (PyCFunction)prefix##_acquire, METH_NOARGS, "Wait for it. To hold it for a while, say `with`."},      \
    {"release", (PyCFunction)prefix##_release, METH_NOARGS, "Let go of what acquire() took."},                        \
    {"__enter__", (PyCFunction)prefix##_enter, METH_NOARGS, NULL},                                                    \
    {"locked", (PyCFunction)prefix##_locked, METH_NOARGS, "Does anybody hold it?"},                                   \
    {"held", (PyCFunction)prefix##_held, METH_NOARGS, "Does this thread hold it?"},                                   \
    {"wake", (PyCFunction)prefix##_wake, METH_O, "wake(parker): unpark it as soon as the lock is free."},             \
    {"_at_fork_reinit", (PyCFunction)prefix##_reinit, METH_NOARGS, "In the child of a fork: nobody holds it."}

#define LOCK_GETSET_DEFS(prefix)                                                                                      \
    {"__exit__", (getter)prefix##_begin, NULL, "for `with` alone: to get it is to take the lock", NULL},              \
    {"rank", (getter)prefix##_get_rank, NULL, "which locks may be taken within it: those of a higher rank", NULL},    \
    {"mend", (getter)prefix##_get_mend, (setter)prefix##_set_mend,                                                    \
     "called, with the lock held, after a section that an exception ended", NULL}

typedef struct {
    PyObject_HEAD
    atomic_uint word;           /* A */
    Guard guard;
} LockObject;

LOCK_METHODS(lock, LockObject)

static PyObject *lock_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"rank", "mend", NULL};
    int rank;
    PyObject *mend = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|O:Lock", names, &rank, &mend) || !valid_rank(rank) ||
        !valid_mend(mend))
        return NULL;
    LockObject *self = (LockObject *)type->tp_alloc(type, 0);
    if (self)
        guard_init(&self->guard, type, &self->word, rank, mend == Py_None ? NULL : mend);
    return (PyObject *)self;
}

static void lock_dealloc(LockObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    guard_forget(&self->guard);
    Py_XDECREF(self->guard.mend);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef lock_methods[] = {
    LOCK_METHOD_DEFS(lock),
    {NULL},
};

static PyGetSetDef lock_getset[] = {
    LOCK_GETSET_DEFS(lock),
    {NULL},
};

static PyType_Slot lock_slots[] = {
    {Py_tp_doc, "Lock(rank, mend=None): see cmwq._host.locks."},
    {Py_tp_new, lock_new},
    {Py_tp_dealloc, lock_dealloc},
    {Py_tp_methods, lock_methods},
    {Py_tp_getset, lock_getset},
    {0, NULL},
};

static PyType_Spec lock_spec = {
    .name = "cmwq._sensor._sentinel.Lock",
    .basicsize = sizeof(LockObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = lock_slots,
};

static PyObject *inside(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(none))
{
    Thread *me = this_thread;
    return PyLong_FromUnsignedLong(me ? held_by(me) : 0);
}

static PyObject *defer(PyObject *Py_UNUSED(self), PyObject *fn)
{
    Thread *me = current_thread();
    if (!me)
        return NULL;
    if (!PyCallable_Check(fn)) {
        PyErr_Format(PyExc_TypeError, "defer() takes a callable, not %.200s", Py_TYPE(fn)->tp_name);
        return NULL;
    }
    if (!held_by(me) && (me->draining || !has_deferred(me))) {
        if (!call_deferred(fn))
            return NULL;
        Py_RETURN_NONE;
    }
    Deferred *call = PyMem_RawMalloc(sizeof *call);
    if (!call)
        return PyErr_NoMemory();
    call->fn = Py_NewRef(fn);
    push_deferred(me, call);
    /* Should another thread have let go of the last lock in this one's place, it may not have seen this call. */
    if (!held_by(me) && !call_all_deferred(me))
        return NULL;
    Py_RETURN_NONE;
}

/* ---------------------------------------------------------------------------------------------- Python: Lookout */

LOCK_METHODS(lookout, LookoutObject)

static PyObject *lookout_slot(LookoutObject *self, PyObject *Py_UNUSED(none))
{
    Lookout *lookout = self->lookout;
    State *state = PyType_GetModuleState(Py_TYPE(self));
    SlotObject *object = PyObject_New(SlotObject, state->slot_type);
    if (!object)
        return NULL;
    object->owner = (LookoutObject *)Py_NewRef(self);
    for (int i = 0; i < lookout->capacity; i++) {
        Slot *slot = &lookout->slots[i];
        bool used = false;
        if (atomic_load(&slot->used) || !atomic_compare_exchange_strong(&slot->used, &used, true))
            continue;
        atomic_store(&slot->parking.token, 0);
        slot_become(slot, PARKED);      /* from the start: it may be unparked before its thread is there */
        int n = atomic_load(&lookout->nr_slots);
        while (n <= i && !atomic_compare_exchange_weak(&lookout->nr_slots, &n, i + 1))
            ;
        object->slot = slot;
        object->index = i;
        return (PyObject *)object;
    }
    Py_DECREF(object);
    PyErr_SetString(PyExc_RuntimeError, "every place on this lookout is taken");
    return NULL;
}

static PyObject *lookout_arm(LookoutObject *self, PyObject *reserve)
{
    if (reserve == Py_None) {
        atomic_store(&self->lookout->reserve, 0);
        Py_RETURN_NONE;
    }
    State *state = PyType_GetModuleState(Py_TYPE(self));
    if (!Py_IS_TYPE(reserve, state->slot_type) || ((SlotObject *)reserve)->owner != self) {
        PyErr_SetString(PyExc_TypeError, "arm() takes a slot of this lookout, or None");
        return NULL;
    }
    if (!atomic_exchange(&self->lookout->reserve, ((SlotObject *)reserve)->index + 1))
        ring(self->watch);
    Py_RETURN_NONE;
}

/* A list that can't be delivered: what is in it will be in the next. */
static void forget_told(Lookout *lookout, PyObject *list)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
        PyObject *entry = PyList_GET_ITEM(list, i);
        Slot *slot = &lookout->slots[PyLong_AsLong(PyTuple_GET_ITEM(entry, 0))];
        atomic_store(&slot->told, PyTuple_GET_ITEM(entry, 1) != Py_True);
    }
    atomic_store(&lookout->changed, true);
}

static PyObject *lookout_deliver(LookoutObject *self, PyObject *Py_UNUSED(none))
{
    Lookout *lookout = self->lookout;
    if (!atomic_load(&lookout->changed) || !atomic_exchange(&lookout->changed, false))
        return PyTuple_New(0);
    PyObject *list = PyList_New(0);
    if (!list) {
        atomic_store(&lookout->changed, true);
        return NULL;
    }
    for (int i = 0, n = atomic_load(&lookout->nr_slots); i < n; i++) {
        Slot *slot = &lookout->slots[i];
        unsigned state = atomic_load(&slot->word) & STATE;
        bool sleeps = state == BLOCKED || state == ON_LOCK;
        if (sleeps == atomic_load(&slot->told))
            continue;
        PyObject *entry = Py_BuildValue("(iOO)", i, sleeps ? Py_True : Py_False,
                                        state == ON_LOCK ? Py_True : Py_False);
        if (!entry || PyList_Append(list, entry)) {
            Py_XDECREF(entry);
            forget_told(lookout, list);
            Py_DECREF(list);
            return NULL;
        }
        atomic_store(&slot->told, sleeps);
        Py_DECREF(entry);
    }
    return list;
}

static PyObject *lookout_set_target(LookoutObject *self, PyObject *value)
{
    int target;
    if (!as_int(value, &target))
        return NULL;
    atomic_store(&self->lookout->target, target);
    Py_RETURN_NONE;
}

static PyObject *lookout_set_cpus(LookoutObject *self, PyObject *sequence)
{
    enum { BITS = 8 * sizeof(long) };
    unsigned long words[CPU_SETSIZE / BITS] = {0};
    PyObject *cpus = PySequence_Tuple(sequence);
    if (!cpus)
        return NULL;
    bool valid = true;
    for (Py_ssize_t i = 0; valid && i < PyTuple_GET_SIZE(cpus); i++) {
        int cpu;
        valid = as_int(PyTuple_GET_ITEM(cpus, i), &cpu);
        if (valid && cpu >= 0 && cpu < CPU_SETSIZE)
            words[cpu / BITS] |= 1UL << cpu % BITS;
    }
    Py_DECREF(cpus);
    if (!valid)
        return NULL;
    for (int i = 0; i < CPU_SETSIZE / BITS; i++)
        atomic_store(&self->lookout->cpus[i], words[i]);
    ring(self->watch);                  /* it may be armed */
    Py_RETURN_NONE;
}

/* The struct is left to the next pool: pools whose start failed must not use up the places.  Native
   threads may be in the middle of a look at it.  They are not confused: they touch nothing but atomics and what stays
   as it was (capacity, slots).  Each slot is given back here, which is a step of its word, so verdicts that are
   on their way fail.  At worst such a look takes the next pool's reserve and wakes it in vain, a false alarm like
   others: that worker finds that it isn't needed, and arms anew. */
static void lookout_dealloc(LookoutObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Lookout *lookout = self->lookout;
    guard_forget(&self->guard);
    Py_XDECREF(self->guard.mend);
    if (lookout) {
        atomic_store(&lookout->reserve, 0);
        for (int i = 0, n = atomic_load(&lookout->nr_slots); i < n; i++)
            give_back(self->watch, &lookout->slots[i]);
        atomic_store(&lookout->nr_slots, 0);
        atomic_store(&lookout->changed, false);
        atomic_store(&lookout->lock, 0);
        atomic_store(&lookout->taken, false);   /* last: from here on it may be another's */
        watch_release(self->watch);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef lookout_methods[] = {
    LOCK_METHOD_DEFS(lookout),
    {"slot", (PyCFunction)lookout_slot, METH_NOARGS, "A place for one more worker."},
    {"arm", (PyCFunction)lookout_arm, METH_O,
     "arm(slot | None): work waits, and this is whom to wake for it; None: nothing to look out for."},
    {"deliver", (PyCFunction)lookout_deliver, METH_NOARGS,
     "What changed: slot number, 'sleeps', and whether for a lock."},
    {"set_target", (PyCFunction)lookout_set_target, METH_O, "How many may run."},
    {"set_cpus", (PyCFunction)lookout_set_cpus, METH_O, "The CPUs whose sentinels look after it."},
    {NULL},
};

static PyGetSetDef lookout_getset[] = {
    LOCK_GETSET_DEFS(lookout),
    {NULL},
};

static PyType_Slot lookout_slots[] = {
    {Py_tp_doc, "What the sentinels know of one worker pool, and its lock."},
    {Py_tp_dealloc, lookout_dealloc},
    {Py_tp_methods, lookout_methods},
    {Py_tp_getset, lookout_getset},
    {0, NULL},
};

static PyType_Spec lookout_spec = {
    .name = "cmwq._sensor._sentinel.Lookout",
    .basicsize = sizeof(LookoutObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = lookout_slots,
};

/* ---------------------------------------------------------------------------------------------- Python: Watch */

typedef struct {
    PyObject_HEAD
    Watch *watch;
} WatchObject;

static PyObject *watch_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Watch", names))
        return NULL;
    WatchObject *self = (WatchObject *)type->tp_alloc(type, 0);
    if (self && !(self->watch = calloc(1, sizeof(Watch)))) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    if (self) {
        atomic_store(&self->watch->refs, 1);
        self->watch->pid = getpid();
        struct rlimit limit;
        bool low = !getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur / KEPT_SHARE < MAX_KEPT;
        self->watch->max_kept = low ? (int)(limit.rlim_cur / KEPT_SHARE) : MAX_KEPT;
    }
    return (PyObject *)self;
}

static void watch_dealloc(WatchObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->watch) {
        atomic_store(&self->watch->stop, true);
        ring(self->watch);
        /* In the child of a fork the native threads are missing, and so would never let go of it. */
        if (self->watch->pid != getpid())
            atomic_fetch_sub(&self->watch->refs, atomic_exchange(&self->watch->natives, 0));
        watch_release(self->watch);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *watch_start(WatchObject *self, PyObject *arg)
{
    int cpu;
    if (!as_int(arg, &cpu))
        return NULL;
    int error = cpu < -1 || cpu >= CPU_SETSIZE ? EINVAL : start_thread(self->watch, cpu);
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyObject *watch_stop(WatchObject *self, PyObject *Py_UNUSED(none))
{
    atomic_store(&self->watch->stop, true);
    ring(self->watch);
    Py_RETURN_NONE;
}

static Lookout *lookout_new(int capacity)
{
    Lookout *lookout = calloc(1, sizeof *lookout);
    if (lookout && !(lookout->slots = calloc((size_t)capacity, sizeof(Slot)))) {
        free(lookout);
        lookout = NULL;
    }
    if (lookout) {
        lookout->capacity = capacity;
        atomic_store(&lookout->taken, true);
    }
    return lookout;
}

/* A lookout that nobody uses any more, or a new one.  The caller sees to it that there is one call at a time. */
static Lookout *take_lookout(Watch *watch, int capacity)
{
    int n = atomic_load(&watch->nr_lookouts);
    for (int i = 0; i < n; i++) {
        Lookout *lookout = atomic_load(&watch->lookouts[i]);
        bool taken = false;
        if (lookout->capacity >= capacity &&
            atomic_compare_exchange_strong(&lookout->taken, &taken, true))
            return lookout;
    }
    if (n == MAX_LOOKOUTS) {
        PyErr_SetString(PyExc_RuntimeError, "too many pools for one watch");
        return NULL;
    }
    Lookout *lookout = lookout_new(capacity);
    if (!lookout) {
        PyErr_NoMemory();
        return NULL;
    }
    atomic_store(&watch->lookouts[n], lookout);
    atomic_store(&watch->nr_lookouts, n + 1);
    return lookout;
}

static PyObject *watch_lookout(WatchObject *self, PyObject *args)
{
    PyObject *cpus, *done;
    int target, capacity, rank = 0;
    if (!PyArg_ParseTuple(args, "Oii|i:lookout", &cpus, &target, &capacity, &rank) || !valid_rank(rank))
        return NULL;
    if (capacity < 1) {
        PyErr_SetString(PyExc_ValueError, "a lookout needs a place for one worker at least");
        return NULL;
    }
    capacity = capacity < MAX_CAPACITY ? capacity : MAX_CAPACITY;
    State *state = PyType_GetModuleState(Py_TYPE(self));
    LookoutObject *object = PyObject_New(LookoutObject, state->lookout_type);
    if (!object)
        return NULL;
    guard_init(&object->guard, state->lookout_type, NULL, rank, NULL);
    if (!(object->lookout = take_lookout(self->watch, capacity))) {
        Py_DECREF(object);
        return NULL;
    }
    object->watch = self->watch;
    object->guard.word = &object->lookout->lock;
    atomic_fetch_add(&self->watch->refs, 1);
    atomic_store(&object->lookout->target, target);
    if (!(done = lookout_set_cpus(object, cpus))) {
        Py_DECREF(object);
        return NULL;
    }
    Py_DECREF(done);
    return (PyObject *)object;
}

/* Where the GIL's futexes are, learnt without any CPython internals: while this thread holds the GIL, a
   helper asks for it, and /proc tells on which address it waits.  The GIL keeps two condition variables and two
   mutexes side by side, hence a range and not one word. */
typedef struct { PyInterpreterState *interpreter; atomic_int tid; } Helper;

static void *helper_main(void *arg)
{
    Helper *helper = arg;
    PyThreadState *tstate = PyThreadState_New(helper->interpreter);
    if (!tstate)
        return NULL;
    atomic_store(&helper->tid, (int)syscall(SYS_gettid));
    PyEval_AcquireThread(tstate);
    PyThreadState_Clear(tstate);
    PyThreadState_DeleteCurrent();
    return NULL;
}

static PyObject *watch_learn_gil(WatchObject *self, PyObject *Py_UNUSED(none))
{
    Helper helper = {.interpreter = PyInterpreterState_Get()};
    pthread_t thread;
    long long key = 0, seen = 0, deadline = now_ns(CLOCK_MONOTONIC) + 50 * MS;
    int sightings = 0, error = pthread_create(&thread, NULL, helper_main, &helper);
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    atomic_store(&self->watch->gil_high, 0);
    while (sightings < 3 && now_ns(CLOCK_MONOTONIC) < deadline) {
        struct timespec pause = timespec_of(BACKOFF_MIN);
        clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
        int tid = atomic_load(&helper.tid);
        if (!tid || look_at(self->watch, NULL, NULL, tid, &key) != WAITS_FOR_LOCK || !key)
            continue;
        sightings = key == seen ? sightings + 1 : 1;
        seen = key;
    }
    Py_BEGIN_ALLOW_THREADS
    pthread_join(thread, NULL);
    Py_END_ALLOW_THREADS
    if (sightings < 3)
        Py_RETURN_FALSE;
    atomic_store(&self->watch->gil_low, seen - (long long)sizeof(pthread_cond_t));
    atomic_store(&self->watch->gil_high,
                 seen + (long long)(sizeof(pthread_cond_t) + 2 * sizeof(pthread_mutex_t)));
    Py_RETURN_TRUE;
}

static PyObject *watch_statistics(WatchObject *self, PyObject *Py_UNUSED(none))
{
    return Py_BuildValue("{sl,sl}", "looks", atomic_load(&self->watch->looks), "wakes",
                         atomic_load(&self->watch->wakes));
}

static PyMethodDef watch_methods[] = {
    {"start", (PyCFunction)watch_start, METH_O, "start(cpu): post a sentinel on that CPU; -1: the plain tick."},
    {"stop", (PyCFunction)watch_stop, METH_NOARGS, "Every native thread leaves, each when it next runs."},
    {"lookout", (PyCFunction)watch_lookout, METH_VARARGS,
     "lookout(cpus, target, capacity[, rank]) for one pool. One call at a time."},
    {"learn_gil", (PyCFunction)watch_learn_gil, METH_NOARGS, "Find the GIL's futexes. Call it with the GIL on."},
    {"statistics", (PyCFunction)watch_statistics, METH_NOARGS, "Looks and wakes so far."},
    {NULL},
};

static PyType_Slot watch_slots[] = {
    {Py_tp_doc, "The sentinels of one runtime."},
    {Py_tp_new, watch_new},
    {Py_tp_dealloc, watch_dealloc},
    {Py_tp_methods, watch_methods},
    {0, NULL},
};

static PyType_Spec watch_spec = {
    .name = "cmwq._sensor._sentinel.Watch",
    .basicsize = sizeof(WatchObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = watch_slots,
};

/* ---------------------------------------------------------------------------------------------- module */

static PyObject *get_cpu(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(none))
{
    return PyLong_FromLong(sched_getcpu());
}

static PyObject *set_name(PyObject *Py_UNUSED(self), PyObject *name)
{
    const char *text = PyUnicode_AsUTF8(name);
    if (!text)
        return NULL;
    prctl(PR_SET_NAME, text);           /* cut to 15 bytes by the kernel */
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"get_cpu", get_cpu, METH_NOARGS, "The CPU this thread runs on, as sched_getcpu(3)."},
    {"set_name", set_name, METH_O, "set_name(text): the calling thread's name for top, ps and debuggers."},
    {"inside", inside, METH_NOARGS, "The ranks of the locks that this thread holds, a bit each."},
    {"defer", defer, METH_O, "defer(fn): call it once this thread holds no lock."},
    {NULL},
};

static int exec(PyObject *m)
{
    State *state = PyModule_GetState(m);
    if (!(state->slot_type = (PyTypeObject *)PyType_FromModuleAndSpec(m, &slot_spec, NULL)) ||
        !(state->lookout_type = (PyTypeObject *)PyType_FromModuleAndSpec(m, &lookout_spec, NULL)) ||
        !(state->watch_type = (PyTypeObject *)PyType_FromModuleAndSpec(m, &watch_spec, NULL)) ||
        !(state->parker_type = (PyTypeObject *)PyType_FromModuleAndSpec(m, &parker_spec, NULL)) ||
        !(state->lock_type = (PyTypeObject *)PyType_FromModuleAndSpec(m, &lock_spec, NULL)) ||
        !(state->hold_type = (PyTypeObject *)PyType_FromModuleAndSpec(m, &hold_spec, NULL)))
        return -1;
    PyObject *errors = PyImport_ImportModule("cmwq._errors");
    if (!errors)
        return -1;
    state->cmwq_error = PyObject_GetAttrString(errors, "CmwqError");
    state->reentered = PyObject_GetAttrString(errors, "Reentered");
    Py_DECREF(errors);
    if (!state->cmwq_error || !state->reentered)
        return -1;
    return PyModule_AddType(m, state->watch_type) || PyModule_AddType(m, state->parker_type) ||
           PyModule_AddType(m, state->lock_type) ? -1 : 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, exec},
#ifdef Py_MOD_PER_INTERPRETER_GIL_SUPPORTED
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_MOD_GIL_NOT_USED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_sentinel",
    .m_doc = "An idle-priority sentinel per CPU that notices when a worker blocks. See README.md beside it.",
    .m_size = sizeof(State),
    .m_methods = functions,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__sentinel(void)
{
    return PyModuleDef_Init(&module);
}
