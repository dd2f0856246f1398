/*
 * Preloaded into a test's child process to play a device that fails.
 *
 * It looks at files below the folder in FAULTS_FOLDER only, and does two things.
 *
 * 1. Power loss. For each such file it keeps, in the folder FAULTS_SYNCED, an image named by the
 *    inode that holds what was flushed: fsync and fdatasync copy the ranges written since the last
 *    flush into it. sync_file_range flushes nothing, for it neither empties the device's cache nor
 *    writes metadata. After the child was killed, the test makes each file what a power loss may
 *    have left: its image plus any part of what was written later. Creating, renaming and removing
 *    files count as durable at once, which is the harder case for data that is not.
 *
 * 2. Errors. FAULTS_FAIL="write:N:ERRNO[:once]" or "sync:N:ERRNO[:once]" makes the N-th write
 *    (or flush) and, unless "once", all later ones fail with that error number. A write that fails
 *    with ENOSPC writes half of its bytes first, as a full disk does (but with "once", where the
 *    rest would follow). With the number 0 the
 *    process is killed before that write or flush instead.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES 4096

struct dirty { ino_t inode; off_t from, to; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct dirty dirty[FILES];
static int files;
static const char *folder, *images;
enum operation { NONE, WRITE, SYNC };
static enum operation fail_what;
static long fail_at, seen;
static int fail_errno, fail_once;

static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static int (*real_fsync)(int), (*real_fdatasync)(int);
static int (*real_ftruncate)(int, off_t);
static int (*real_unlink)(const char *), (*real_unlinkat)(int, const char *, int);
static int (*real_rename)(const char *, const char *);

static void fatal(const char *what)
{
    static const char prefix[] = "faults shim: ";
    if (real_write) {
        real_write(2, prefix, sizeof prefix - 1);
        real_write(2, what, strlen(what));
        real_write(2, "\n", 1);
    }
    _exit(99);
}

static void *must(const char *name)
{
    void *symbol = dlsym(RTLD_NEXT, name);
    if (!symbol) fatal(name);
    return symbol;
}

__attribute__((constructor)) static void start(void)
{
    real_write = must("write");
    real_pwrite = must("pwrite64");
    real_writev = must("writev");
    real_fsync = must("fsync");
    real_fdatasync = must("fdatasync");
    real_ftruncate = must("ftruncate64");
    real_unlink = must("unlink");
    real_unlinkat = must("unlinkat");
    real_rename = must("rename");
    folder = getenv("FAULTS_FOLDER");
    images = getenv("FAULTS_SYNCED");
    const char *fail = getenv("FAULTS_FAIL");
    char what[8], once[8] = "";
    if (fail) {
        if (sscanf(fail, "%7[a-z]:%ld:%d:%7s", what, &fail_at, &fail_errno, once) < 3) fatal("FAULTS_FAIL");
        fail_what = strcmp(what, "sync") == 0 ? SYNC : WRITE;
        fail_once = strcmp(once, "once") == 0;
    }
}

/* Whether fd is a regular file of ours; its inode. */
static int ours(int fd, ino_t *inode)
{
    struct stat st;
    char link[64], path[PATH_MAX];
    if (!folder || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    *inode = st.st_ino;
    return strncmp(path, folder, strlen(folder)) == 0;
}

static void image_path(ino_t inode, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/%lu", images, (unsigned long)inode);
}

/* The entry of a file, made when absent. Called with the lock held. */
static struct dirty *entry(ino_t inode)
{
    for (int i = 0; i < files; i++)
        if (dirty[i].inode == inode) return &dirty[i];
    if (files == FILES) fatal("too many files");
    dirty[files] = (struct dirty){ .inode = inode };
    return &dirty[files++];
}

static void mark(ino_t inode, off_t from, off_t to)
{
    struct dirty *d = entry(inode);
    if (d->to == d->from) { d->from = from; d->to = to; return; }
    if (from < d->from) d->from = from;
    if (to > d->to) d->to = to;
}

/* The file is gone: its inode may come back as another one. */
static void forget(ino_t inode)
{
    char path[PATH_MAX];
    for (int i = 0; i < files; i++)
        if (dirty[i].inode == inode) { dirty[i] = dirty[--files]; break; }
    image_path(inode, path);
    real_unlink(path);
}

static void copy_to_image(int fd, ino_t inode)
{
    static char buffer[1 << 16];
    char path[PATH_MAX];
    struct stat st;
    struct dirty *d = entry(inode);
    image_path(inode, path);
    int image = open(path, O_WRONLY | O_CREAT, 0600);
    /* The file may be open for writing only. */
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int source = open(path, O_RDONLY);
    if (image < 0 || source < 0 || fstat(fd, &st) != 0) fatal("cannot keep an image");
    off_t at = d->from;
    while (at < d->to && at < st.st_size) {
        size_t want = (size_t)(d->to - at) < sizeof buffer ? (size_t)(d->to - at) : sizeof buffer;
        ssize_t got = pread(source, buffer, want, at);
        if (got < 0) fatal("cannot read back");
        if (got == 0) break;
        if (real_pwrite(image, buffer, (size_t)got, at) != got) fatal("cannot write an image");
        at += got;
    }
    if (real_ftruncate(image, st.st_size) != 0) fatal("cannot size an image");
    close(image);
    close(source);
    d->from = d->to = 0;
}

/* Whether this operation is one that fails. Called with the lock held. */
static int fails(enum operation what, int fd)
{
    char link[64], text[PATH_MAX] = "faults shim: fails at ";
    if (fail_what != what) return 0;
    if (++seen == fail_at) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        size_t at = strlen(text);
        ssize_t length = readlink(link, text + at, sizeof text - at - 1);
        if (length > 0) {
            text[at + (size_t)length] = '\n';
            real_write(2, text, at + (size_t)length + 1);
        }
        if (fail_errno == 0) kill(getpid(), SIGKILL);
    }
    return fail_once ? seen == fail_at : seen >= fail_at;
}

/* Where the next write without a position goes. */
static off_t position(int fd)
{
    struct stat st;
    if (fcntl(fd, F_GETFL) & O_APPEND && fstat(fd, &st) == 0) return st.st_size;
    return lseek(fd, 0, SEEK_CUR);
}

static ssize_t put(int fd, const void *data, size_t count, off_t at, int positioned)
{
    ino_t inode;
    if (!ours(fd, &inode)) return positioned ? real_pwrite(fd, data, count, at) : real_write(fd, data, count);
    pthread_mutex_lock(&lock);
    ssize_t done = -1;
    int error = 0;
    if (fails(WRITE, fd)) {
        error = fail_errno;
        count = error == ENOSPC && !fail_once ? count / 2 : 0;
    }
    if (!positioned) at = position(fd);
    if (!error || count) done = positioned ? real_pwrite(fd, data, count, at) : real_write(fd, data, count);
    if (!error) error = errno;
    if (done > 0 && images) mark(inode, at, at + done);
    pthread_mutex_unlock(&lock);
    if (done <= 0) { errno = error; return -1; }
    return done;
}

ssize_t write(int fd, const void *data, size_t count) { return put(fd, data, count, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t count, off_t at) { return put(fd, data, count, at, 1); }
ssize_t pwrite64(int fd, const void *data, size_t count, off64_t at) { return put(fd, data, count, at, 1); }

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    ino_t inode;
    if (!ours(fd, &inode)) return real_writev(fd, parts, count);
    /* A short write is always allowed, so the first part that holds anything will do. */
    for (int i = 0; i < count; i++)
        if (parts[i].iov_len) return put(fd, parts[i].iov_base, parts[i].iov_len, 0, 0);
    return 0;
}

static int flush(int fd, int (*real)(int))
{
    ino_t inode;
    if (!ours(fd, &inode)) return real(fd);
    pthread_mutex_lock(&lock);
    int outcome = -1, error = 0;
    if (fails(SYNC, fd)) {
        error = fail_errno;
        /* As Linux does: the pages count as clean, though they never reached the device. */
        entry(inode)->from = entry(inode)->to = 0;
    } else {
        outcome = real(fd);
        error = errno;
        if (outcome == 0 && images) copy_to_image(fd, inode);
    }
    pthread_mutex_unlock(&lock);
    errno = error;
    return outcome;
}

int fsync(int fd) { return flush(fd, real_fsync); }
int fdatasync(int fd) { return flush(fd, real_fdatasync); }

/* What a folder's entry names, if removing it removes the file. */
static int last_link(int dir, const char *path, ino_t *inode)
{
    struct stat st;
    if (!images || fstatat(dir, path, &st, AT_SYMLINK_NOFOLLOW) != 0) return 0;
    *inode = st.st_ino;
    return S_ISREG(st.st_mode) && st.st_nlink == 1;
}

int unlinkat(int dir, const char *path, int flags)
{
    ino_t inode;
    pthread_mutex_lock(&lock);
    int gone = last_link(dir, path, &inode);
    int outcome = real_unlinkat(dir, path, flags), error = errno;
    if (outcome == 0 && gone) forget(inode);
    pthread_mutex_unlock(&lock);
    errno = error;
    return outcome;
}

int unlink(const char *path)
{
    ino_t inode;
    pthread_mutex_lock(&lock);
    int gone = last_link(AT_FDCWD, path, &inode);
    int outcome = real_unlink(path), error = errno;
    if (outcome == 0 && gone) forget(inode);
    pthread_mutex_unlock(&lock);
    errno = error;
    return outcome;
}

int rename(const char *from, const char *to)
{
    ino_t inode;
    pthread_mutex_lock(&lock);
    int gone = last_link(AT_FDCWD, to, &inode);
    int outcome = real_rename(from, to), error = errno;
    if (outcome == 0 && gone) forget(inode);
    pthread_mutex_unlock(&lock);
    errno = error;
    return outcome;
}
