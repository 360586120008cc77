/* Which processes a thread has started: `_host/processes.py` in C, without releasing the GIL.

   A worker that was woken asks this before it works.  To release the GIL for a system call of a microsecond can cost a
   switch interval, 5 ms, if another thread computes.  */

#pragma once
#include "base.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>

enum { MOST_CHILDREN = 64 };

static PyObject *has_children(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(none))
{
    siginfo_t info;
    return PyBool_FromLong(!waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT));
}

/* Read the whole file, or as much as fits, into `text` as a string.  False: it can't be read. */
static bool read_text(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, size - 1);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    return n >= 0;
}

static PyObject *children_of(PyObject *Py_UNUSED(self), PyObject *args)
{
    int tid, pid = 0;
    char path[64], text[16 * MOST_CHILDREN], *rest = text;
    if (!PyArg_ParseTuple(args, "i|i:children_of", &tid, &pid))
        return NULL;
    if (pid)
        snprintf(path, sizeof path, "/proc/%d/task/%d/children", pid, tid);
    else
        snprintf(path, sizeof path, "/proc/self/task/%d/children", tid);
    if (!read_text(path, text, sizeof text))
        text[0] = 0;
    PyObject *found = PyList_New(0);
    for (int i = 0; found && i < MOST_CHILDREN; i++) {
        char *end;
        long child = strtol(rest, &end, 10);
        if (end == rest || !*end)       /* each number ends with a space; the last one may be cut */
            break;
        PyObject *number = PyLong_FromLong(child);
        if (!number || PyList_Append(found, number))
            Py_CLEAR(found);
        Py_XDECREF(number);
        rest = end;
    }
    PyObject *result = found ? PyList_AsTuple(found) : NULL;
    Py_XDECREF(found);
    return result;
}
