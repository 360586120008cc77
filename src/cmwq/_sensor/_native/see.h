/* What a thread does right now, and for how long it has not run.

   look_at() reads /proc/self/task/TID/syscall, still_for() the thread's CPU clock.

   Guarantees
   - Neither waits for another thread, nor needs the GIL.  Several threads may ask about one slot at once.
   - At most MAX_KEPT descriptors stay open per runtime, and at most 1 / KEPT_SHARE of those that the process may have.
     One that the program closed or replaced is neither read nor closed.

   Relies on the slot's memory staying what it is (watch.h).  */

#pragma once
#include "watch.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

enum {
    MAX_KEPT = 256,             /* descriptors kept open: a pool of a thousand threads must not hold a thousand */
    KEPT_SHARE = 8,             /* and at most an eighth of those that the process may have */
};

/* What a thread does.  UNKNOWN: it has ended, or nothing can be read of it. */
typedef enum { RUNS, WAITS_FOR_GIL, WAITS_FOR_LOCK, SLEEPS, UNKNOWN } Doing;

/* Whether the descriptor that the slot keeps is still ours.  A program that closes all descriptors it finds closes this
   one too, and then the number may be another file's. */
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

/* Read the thread's syscall file, by a descriptor that its slot keeps or, which takes three times as long, by one that
   is opened for it.  Reading fails with the kept descriptor of a thread that has ended, even if another thread has its
   number now; then the file is opened anew. */
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
   call: a page fault), or the number and arguments of the call it sleeps in.  A wait for the pool's own lock, between
   two items, does not count as blocked, because the thread that holds it is a worker too, or is about to wake one.
   UNKNOWN if nothing can be read: the thread has ended, no descriptor is free, or /proc is out of reach. */
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

/* A moment as in the low half of Slot.still, in units of 1024 ns: 2^32 of these are 73 minutes. */
static uint32_t short_time(long long ns)
{
    return (uint32_t)(ns >> 10);
}

/* For how many ns a thread has been seen as it is now: with the same word, the same `key` and the same CPU time, so
   that it did not run in between.  -1 if it has ended.  Slot.still is one word, a digest of what was seen << 32 | since
   when, so that several threads that look at once can't mix their records.  (Taking turns, as with `reading`, would not
   do: a thread that is kept off the CPU in its turn would keep the others from seeing that a wait lasts.)  The start is
   read after the CPU time, and the end before it, so a look that is interrupted makes the result too short, never too
   long.  A start that seems to lie ahead is another thread's, or half an hour old; then the time begins anew. */
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
