/* Loaded before libc: a process is killed at its n-th call that changes files, or finds its disk
   full after so many bytes. Calls on the standard streams are let through uncounted. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long calls, last = -1, room = -1;
static int when; /* 0: before the call, 1: after it, 2: a write is cut in half */

void faults_arm(long n, int moment, long bytes) {
    calls = 0, last = n, when = moment, room = bytes;
}

long faults_calls(void) { return calls; }

static int due(void) { return ++calls == last; }

static void die(void) { kill(getpid(), SIGKILL), pause(); }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CHANGES(name, types, values)                                                               \
    int name types {                                                                               \
        int now = due();                                                                           \
        if (now && when != 1) die();                                                               \
        int result = REAL(name) values;                                                            \
        if (now) die();                                                                            \
        return result;                                                                             \
    }

CHANGES(rename, (const char *from, const char *to), (from, to))
CHANGES(renameat, (int d, const char *from, int e, const char *to), (d, from, e, to))
CHANGES(unlink, (const char *path), (path))
CHANGES(unlinkat, (int d, const char *path, int flags), (d, path, flags))
CHANGES(mkdir, (const char *path, mode_t mode), (path, mode))
CHANGES(mkdirat, (int d, const char *path, mode_t mode), (d, path, mode))
CHANGES(rmdir, (const char *path), (path))
CHANGES(fsync, (int file), (file))
CHANGES(ftruncate64, (int file, off64_t size), (file, size))

#define WRITES(name, types, values)                                                                \
    ssize_t name types {                                                                           \
        if (file <= 2) return REAL(name) values;                                                   \
        int now = due();                                                                           \
        if (now && when == 0) die();                                                               \
        if (now && when == 2) size = size / 2;                                                     \
        if (room >= 0) {                                                                           \
            if (room == 0) return errno = ENOSPC, -1;                                              \
            if (size > (size_t)room) size = (size_t)room;                                          \
            room -= (long)size;                                                                    \
        }                                                                                          \
        ssize_t result = REAL(name) values;                                                        \
        if (now) die();                                                                            \
        return result;                                                                             \
    }

WRITES(write, (int file, const void *data, size_t size), (file, data, size))
WRITES(pwrite64, (int file, const void *data, size_t size, off64_t at), (file, data, size, at))

#define OPENS(name, first, second)                                                                 \
    int name first {                                                                               \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;                                  \
        va_end(rest);                                                                              \
        int now = flags & (O_CREAT | O_TRUNC) ? due() : 0;                                         \
        if (now && when != 1) die();                                                               \
        int result = REAL(name) second;                                                            \
        if (now) die();                                                                            \
        return result;                                                                             \
    }

OPENS(open, (const char *path, int flags, ...), (path, flags, mode))
OPENS(open64, (const char *path, int flags, ...), (path, flags, mode))
OPENS(openat64, (int d, const char *path, int flags, ...), (d, path, flags, mode))
