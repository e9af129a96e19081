/* Counts the file operations of a process below given folders, and spoils some of them.
 *
 * Preloaded (LD_PRELOAD). Nothing happens until faulty_arm, which the process itself calls:
 *   folders  path prefixes, separated by ':'
 *   first    number of the first operation to spoil, from 1; 0: none
 *   last     number of the last
 *   error    errno of a spoilt operation; 0: SIGKILL in its place; -1: SIGKILL half way through,
 *            which for a write is after half of its bytes
 *   trace    a file that gets a line per operation, its name and path; "" for none
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

static char folders[4096];
static long first_bad, last_bad;
static int wanted_error, armed, trace_file = -1;
static atomic_long count;

void faulty_arm(const char *below, long first, long last, int error, const char *trace) {
    snprintf(folders, sizeof folders, "%s", below);
    first_bad = first;
    last_bad = last;
    wanted_error = error;
    if (*trace) trace_file = syscall(SYS_openat, AT_FDCWD, trace, O_WRONLY | O_CREAT | O_APPEND, 0644);
    count = 0;
    armed = 1;
}

long faulty_count(void) { return count; }

static int concerns(const char *path) {
    if (!path || path[0] != '/') return 0;
    for (const char *at = folders; *at;) {
        size_t length = strcspn(at, ":");
        if (!strncmp(path, at, length)) return 1;
        at += length + (at[length] == ':');
    }
    return 0;
}

/* 0: go on; 1: fail with errno; 2: die half way. */
static int spoilt_path(const char *name, const char *path) {
    if (!armed || !concerns(path)) return 0;
    long number = ++count;
    if (trace_file >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%s %s\n", name, path);
        syscall(SYS_write, trace_file, line, length);
    }
    if (!first_bad || number < first_bad || number > last_bad) return 0;
    if (wanted_error == 0) syscall(SYS_kill, getpid(), SIGKILL);
    if (wanted_error == -1) return 2;
    errno = wanted_error;
    return 1;
}

static int spoilt_file(const char *name, int file) {
    if (!armed) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return spoilt_path(name, path);
}

static void *resolved(void **known, const char *name) {
    if (!*known) *known = dlsym(RTLD_NEXT, name);
    return *known;
}

static void die(void) { syscall(SYS_kill, getpid(), SIGKILL); }

#define REAL(name) ((__typeof__(&name))resolved(&real_##name, #name))
#define DECLARE(name) static void *real_##name

#define ON_PATH(type, name, path, declared, passed, failed)                                   \
    DECLARE(name);                                                                            \
    type name declared {                                                                      \
        int how = spoilt_path(#name, path);                                                   \
        if (how == 1) return failed;                                                          \
        type result = REAL(name) passed;                                                       \
        if (how == 2) die();                                                           \
        return result;                                                                        \
    }
#define ON_FILE(type, name, file, declared, passed, failed)                                   \
    DECLARE(name);                                                                            \
    type name declared {                                                                      \
        int how = spoilt_file(#name, file);                                                   \
        if (how == 1) return failed;                                                          \
        type result = REAL(name) passed;                                                       \
        if (how == 2) die();                                                           \
        return result;                                                                        \
    }
#define OPENS(name)                                                                           \
    DECLARE(name);                                                                            \
    int name(const char *path, int flags, ...) {                                              \
        va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more);      \
        int how = spoilt_path(#name, path);                                                   \
        if (how == 1) return -1;                                                              \
        int result = ((int (*)(const char *, int, int))REAL(name))(path, flags, mode);         \
        if (how == 2) die();                                                           \
        return result;                                                                        \
    }
#define WRITES(name, declared, passed, half)                                                  \
    DECLARE(name);                                                                            \
    ssize_t name declared {                                                                   \
        int how = spoilt_file(#name, file);                                                   \
        if (how == 1) return -1;                                                              \
        if (how == 2) { REAL(name) half; die(); }                                      \
        return REAL(name) passed;                                                             \
    }

OPENS(open)
OPENS(open64)
ON_FILE(ssize_t, read, file, (int file, void *to, size_t size), (file, to, size), -1)
ON_FILE(ssize_t, pread, file, (int file, void *to, size_t size, off_t at), (file, to, size, at), -1)
ON_FILE(ssize_t, pread64, file, (int file, void *to, size_t size, off64_t at), (file, to, size, at), -1)
WRITES(write, (int file, const void *from, size_t size), (file, from, size), (file, from, size / 2))
WRITES(pwrite, (int file, const void *from, size_t size, off_t at), (file, from, size, at),
       (file, from, size / 2, at))
WRITES(pwrite64, (int file, const void *from, size_t size, off64_t at), (file, from, size, at),
       (file, from, size / 2, at))
ON_FILE(int, fsync, file, (int file), (file), -1)
ON_FILE(int, fdatasync, file, (int file), (file), -1)
ON_FILE(int, ftruncate, file, (int file, off_t size), (file, size), -1)
ON_FILE(int, ftruncate64, file, (int file, off64_t size), (file, size), -1)
ON_FILE(int, flock, file, (int file, int what), (file, what), -1)
ON_FILE(int, fstat, file, (int file, struct stat *to), (file, to), -1)
ON_FILE(int, fstat64, file, (int file, struct stat64 *to), (file, to), -1)
ON_PATH(int, stat, path, (const char *path, struct stat *to), (path, to), -1)
ON_PATH(int, stat64, path, (const char *path, struct stat64 *to), (path, to), -1)
ON_PATH(int, lstat, path, (const char *path, struct stat *to), (path, to), -1)
ON_PATH(int, lstat64, path, (const char *path, struct stat64 *to), (path, to), -1)
ON_PATH(int, statvfs, path, (const char *path, struct statvfs *to), (path, to), -1)
ON_PATH(int, statvfs64, path, (const char *path, struct statvfs64 *to), (path, to), -1)
ON_PATH(int, rename, to, (const char *from, const char *to), (from, to), -1)
ON_PATH(int, link, to, (const char *from, const char *to), (from, to), -1)
ON_PATH(int, unlink, path, (const char *path), (path), -1)
ON_PATH(int, mkdir, path, (const char *path, mode_t mode), (path, mode), -1)
ON_PATH(int, rmdir, path, (const char *path), (path), -1)
ON_PATH(DIR *, opendir, path, (const char *path), (path), NULL)
