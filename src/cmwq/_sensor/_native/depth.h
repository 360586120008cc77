/* More frames than the recursion limit leaves, for what must be done at any depth.

   RecursionError is no interruption that comes once.  At a given depth it comes each time, so what has to undo
   something there would fail again and again.  It gets more frames instead: this thread's own count of those that are
   left is raised meanwhile.  Other threads and the limit itself, which is the user's, are not touched.

   What is called so may run code of users, which may recurse without end and arrive here again.  So there is more only
   once at a time.

   The count is no part of the limited API.  There `cmwq._core.surely` does what it can.  */

#pragma once
#include "base.h"

#ifndef Py_LIMITED_API

enum {
    MORE_FRAMES = 200,          /* ours need a few dozens */
    MORE_C_CALLS = 50,          /* these are on the C stack, of which the interpreter leaves so much */
};

static THREAD_LOCAL bool deepened;

static void add_frames(int frames, int c_calls)
{
    PyThreadState *me = PyThreadState_Get();
#if PY_VERSION_HEX < 0x030c0000
    me->recursion_remaining += frames;
    (void)c_calls;              /* they are counted together with the frames */
#else
    me->py_recursion_remaining += frames;
#if PY_VERSION_HEX < 0x030e0000
    me->c_recursion_remaining += c_calls;
#else
    (void)c_calls;              /* they are not counted: the stack is measured */
#endif
#endif
}

/* Have more frames from now on.  False: there are more already.  The result is for restore_depth(). */
static bool deepen(void)
{
    if (deepened)
        return false;
    deepened = true;
    add_frames(MORE_FRAMES, MORE_C_CALLS);
    return true;
}

static void restore_depth(bool more)
{
    if (more) {
        add_frames(-MORE_FRAMES, -MORE_C_CALLS);
        deepened = false;
    }
}

static PyObject *at_any_depth(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t nargs)
{
    if (!nargs) {
        PyErr_SetString(PyExc_TypeError, "at_any_depth() takes a callable and its arguments");
        return NULL;
    }
    bool more = deepen();
    PyObject *result = PyObject_Vectorcall(args[0], args + 1, (size_t)nargs - 1, NULL);
    restore_depth(more);
    return result;
}

#else

static bool deepen(void)
{
    return false;
}

static void restore_depth(bool Py_UNUSED(more))
{
}

#endif
