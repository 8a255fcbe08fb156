/* Preloaded before the C library: the n-th system call on a path fails, falls short or kills.

   arm(n, fault, path) starts counting calls whose path, or whose descriptor's path, has `path` in it; call
   number n (from 0) gets the fault: an errno, SHORT (half of what was to be written or read; other
   calls are done as they are), or KILL (SIGKILL just before the call). With STICKY added, all later
   calls fail too. disarm() stops, and returns how many calls there were. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { SHORT = 1000, KILL = 1001, STICKY = 10000 };

static atomic_int armed, calls;
static int at, fault, sticky;
static char part[4096], last[64];

void arm(int n, int what, const char *path) {
    at = n, fault = what % STICKY, sticky = what >= STICKY;
    snprintf(part, sizeof part, "%s", path);
    last[0] = 0;
    calls = 0;
    armed = 1;
}

int disarm(void) {
    armed = 0;
    return calls;
}

const char *failed(void) { return last; }

static int hit(const char *name, const char *path) {
    if (!armed || !path || !strstr(path, part)) return 0;
    int n = atomic_fetch_add(&calls, 1);
    if (n != at && !(sticky && n > at)) return 0;
    if (n == at) snprintf(last, sizeof last, "%s", name);
    if (fault == KILL) kill(getpid(), SIGKILL);
    return fault;
}

static int hit_descriptor(const char *name, int descriptor) {
    if (!armed) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return hit(name, path);
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define FAIL(value, ...) \
    do { \
        int code = __VA_ARGS__; \
        if (code && code != SHORT) { \
            errno = code; \
            return value; \
        } \
    } while (0)


#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        static int (*real)(const char *, int, ...); \
        if (!real) real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        FAIL(-1, hit("open", path)); \
        return real(path, flags, mode); \
    }

OPENS(open)
OPENS(open64)

#define MOVES(name, kind) \
    ssize_t name(int descriptor, kind *data, size_t size) { \
        REAL(ssize_t, name, int, kind *, size_t); \
        int what = hit_descriptor(#name, descriptor); \
        if (what == SHORT) return real(descriptor, data, size > 1 ? size / 2 : size); \
        FAIL(-1, what); \
        return real(descriptor, data, size); \
    }

MOVES(write, const void)
MOVES(read, void)

/* It does not wait for the disk: no power is lost here. */
int fsync(int descriptor) {
    FAIL(-1, hit_descriptor("fsync", descriptor));
    return 0;
}

int close(int descriptor) { /* whatever it reports, the descriptor is gone */
    REAL(int, close, int);
    int what = hit_descriptor("close", descriptor);
    int result = real(descriptor);
    FAIL(-1, what);
    return result;
}

#define SEEKS(name, offset) \
    offset name(int descriptor, offset where, int whence) { \
        REAL(offset, name, int, offset, int); \
        FAIL(-1, hit_descriptor("lseek", descriptor)); \
        return real(descriptor, where, whence); \
    }

SEEKS(lseek, off_t)
SEEKS(lseek64, off64_t)

#define ON_PATH(name) \
    int name(const char *path) { \
        REAL(int, name, const char *); \
        FAIL(-1, hit(#name, path)); \
        return real(path); \
    }

ON_PATH(unlink)
ON_PATH(rmdir)

int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    FAIL(-1, hit("mkdir", path));
    return real(path, mode);
}

int rename(const char *old, const char *new) {
    REAL(int, rename, const char *, const char *);
    FAIL(-1, hit("rename", new));
    return real(old, new);
}

DIR *opendir(const char *path) {
    REAL(DIR *, opendir, const char *);
    FAIL(NULL, hit("opendir", path));
    return real(path);
}

#define STATS(name, kind) \
    int name(const char *path, struct kind *result) { \
        REAL(int, name, const char *, struct kind *); \
        FAIL(-1, hit(#name, path)); \
        return real(path, result); \
    }

STATS(lstat, stat)
STATS(lstat64, stat64)
STATS(statvfs, statvfs)
STATS(statvfs64, statvfs64)

#define STATS_DESCRIPTOR(name, kind) \
    int name(int descriptor, struct kind *result) { \
        REAL(int, name, int, struct kind *); \
        FAIL(-1, hit_descriptor(#name, descriptor)); \
        return real(descriptor, result); \
    }

STATS_DESCRIPTOR(fstat, stat)
STATS_DESCRIPTOR(fstat64, stat64)
