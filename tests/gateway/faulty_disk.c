/* Makes system calls on files under one folder fail, for tests: LD_PRELOAD it into the gateway.
 *
 *   SEALANE_FAULT_FOLDER    only descriptors and paths in it are concerned
 *   SEALANE_FAULT_ORDER     a file that says what fails now: "<call> <errno>" (a number), or anything else for nothing.
 *                           Call: write, fdatasync, fsync, rename, open (for writing), all. Read at each such call.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int ordered(const char *call) {
    const char *path = getenv("SEALANE_FAULT_ORDER");
    char text[64] = "", wanted[32] = "";
    int number = 0, file;
    ssize_t length;
    if (!path || (file = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC)) < 0) return 0;
    length = syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    if (length <= 0 || sscanf(text, "%31s %d", wanted, &number) != 2) return 0;
    return strcmp(wanted, call) == 0 || strcmp(wanted, "all") == 0 ? number : 0;
}

static int concerned(const char *path) {
    const char *folder = getenv("SEALANE_FAULT_FOLDER");
    return folder && strncmp(path, folder, strlen(folder)) == 0;
}

static int fails(const char *call, int descriptor) {
    char link[64], path[PATH_MAX] = "";
    int saved = errno, number;
    ssize_t length;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    number = length > 0 && concerned(path) ? ordered(call) : 0;
    errno = number ? number : saved;
    return number;
}

ssize_t write(int descriptor, const void *data, size_t size) {
    return fails("write", descriptor) ? -1 : REAL(write)(descriptor, data, size);
}

int fdatasync(int descriptor) { return fails("fdatasync", descriptor) ? -1 : REAL(fdatasync)(descriptor); }

int fsync(int descriptor) { return fails("fsync", descriptor) ? -1 : REAL(fsync)(descriptor); }

int rename(const char *from, const char *to) {
    int number = concerned(to) ? ordered("rename") : 0;
    if (number) { errno = number; return -1; }
    return REAL(rename)(from, to);
}

static int open_fails(const char *path, int flags) {
    int number = (flags & O_ACCMODE) != O_RDONLY && concerned(path) ? ordered("open") : 0;
    if (number) errno = number;
    return number;
}

#define OPEN(name)                                                                  \
    int name(const char *path, int flags, ...) {                                    \
        va_list rest;                                                               \
        va_start(rest, flags);                                                      \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;     \
        va_end(rest);                                                               \
        return open_fails(path, flags) ? -1 : REAL(name)(path, flags, mode);        \
    }
OPEN(open)
OPEN(open64)
