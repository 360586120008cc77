/* What everything here is built on: the headers of the system, time, futexes, and the module's own types.

   In every file of this folder, letters behind the fields say which threads touch them: A atomic, any thread; I set
   before it is shared; P atomic, Python threads only; L the thread that holds the lock it belongs to; S its own thread
   alone; F the child of a fork.  For a field without a letter the struct says it.  */

#pragma once

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#ifndef __linux__
#error "the sentinel needs Linux; cmwq works without it"
#endif

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* With Py_LIMITED_API one build serves every Python from 3.11 on (setup.py: CMWQ_EXTENSION=abi3).  Without it, which is
   better where one Python is built for, the whole API may be used.  Code that needs more than the limited one stands
   under `#ifndef Py_LIMITED_API`, with something else beside it; all other code keeps to what both have. */
#ifdef Py_LIMITED_API
/* Not in it. */
#define PyMem_RawMalloc malloc
#define PyMem_RawFree free
/* There they take nothing but a PyObject *. */
#undef Py_TYPE
#undef Py_IS_TYPE
#undef Py_DECREF
#undef Py_NewRef
#define Py_TYPE(object) Py_TYPE((PyObject *)(object))
#define Py_IS_TYPE(object, type) Py_IS_TYPE((PyObject *)(object), type)
#define Py_DECREF(object) Py_DECREF((PyObject *)(object))
#define Py_NewRef(object) Py_NewRef((PyObject *)(object))
#endif

/* Thread-local, at a fixed offset from the thread pointer: the usual model calls a function to find the variable, which
   would slow down each acquire and release.  C libraries other than glibc reserve no such places for code that is
   loaded late. */
#if defined __GLIBC__ && defined __GNUC__
#define THREAD_LOCAL _Thread_local __attribute__((tls_model("initial-exec")))
#else
#define THREAD_LOCAL _Thread_local
#endif

#define US 1000LL
#define MS (1000 * US)

/* What a loop does between two looks.  Not sched_yield(): Linux charges each one to the thread as a time slice that it
   has used (README.md, "How a thread parks"). */
static void spin_wait(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb");
#endif
}

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
    PyObject *refusals, *refused, *package;     /* of `_errors` */
} State;

/* Convert the argument of a METH_O function to int.  False: an exception is set. */
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

/* Raise TypeError: `wanted`, and what `value` is instead. */
static void wrong_type(const char *wanted, PyObject *value)
{
    PyObject *name = PyType_GetName(Py_TYPE(value));
    if (name)
        PyErr_Format(PyExc_TypeError, "%s, not %U", wanted, name);
    Py_XDECREF(name);
}
