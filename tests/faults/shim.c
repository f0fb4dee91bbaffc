/*
 * A machine that lies, for one process: loaded by LD_PRELOAD, it stands between the process and its C
 * library, and does to files and to the wall clock what a page of shared memory says.
 *
 * The page is the file that SHARDHOST_TEST_FAULTS names. tests/faults/shim.rs writes it, at any time; the
 * layout stands at `struct page` and there. Everything is passed on untouched while it says nothing.
 *
 * The file that SHARDHOST_TEST_BOOT names stands for the kernel's word on which boot this is.
 *
 * What the process does by raw system calls is not seen; RocksDB and Rust's library make none of those
 * that are listed here.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { RULES = 4, DIRECTORY = 472, PAGE = 4096 };
enum effect { NOTHING, HANG, FAIL, SLOW };
/* Kinds of operations, as bits. */
enum operation { WRITE = 1, SYNC = 2, NAMES = 4, READ = 8 };

struct rule {
  _Atomic uint32_t effect;
  _Atomic uint32_t operations;
  _Atomic int32_t error;
  _Atomic uint32_t delay_ms;
  /* Operations that the rule was applied to. */
  _Atomic uint64_t hits;
  /* Operations that hang now. */
  _Atomic uint64_t hanging;
  uint64_t unused;
  /* Files under this directory, which ends with a slash. */
  char directory[DIRECTORY];
};

struct page {
  _Atomic int64_t clock_shift_ms;
  uint64_t unused[7];
  struct rule rules[RULES];
};

_Static_assert(sizeof(struct rule) == 512, "shim.rs knows the layout");
_Static_assert(sizeof(struct page) == 2112, "shim.rs knows the layout");

static struct page *page;

/* Which boot of the machine it is stands in this file instead. */
static const char *boot;
static const char BOOT_ID[] = "/proc/sys/kernel/random/boot_id";

#define REAL(name)                                          \
  static __typeof__(&name) real;                            \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void load(void) {
  /* Whoever made the page ends: nobody is left to release what hangs. */
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  boot = getenv("SHARDHOST_TEST_BOOT");
  const char *path = getenv("SHARDHOST_TEST_FAULTS");
  if (!path) return;
  int fd = open(path, O_RDWR | O_CLOEXEC);
  void *at = fd < 0 ? MAP_FAILED : mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) {
    fprintf(stderr, "faults: %s: %s\n", path, strerror(errno));
    _exit(97);
  }
  close(fd);
  page = at;
}

/* Without the C library's own, which some other thread may be shifting. */
static void rest(uint32_t ms) {
  struct timespec time = {ms / 1000, (long)(ms % 1000) * 1000000};
  while (nanosleep(&time, &time) && errno == EINTR) {
  }
}

/* What one rule does to an operation: an error, or 0. */
static int obey(struct rule *rule) {
  switch (rule->effect) {
    case HANG:
      rule->hits++;
      rule->hanging++;
      while (rule->effect == HANG) rest(2);
      rule->hanging--;
      /* A disk that hung may say at last that it failed. */
      return rule->effect == FAIL ? rule->error : 0;
    case FAIL:
      rule->hits++;
      return rule->error;
    case SLOW:
      rule->hits++;
      rest(rule->delay_ms);
      return 0;
    default:
      return 0;
  }
}

static int any(enum operation operation) {
  if (!page) return 0;
  for (int i = 0; i < RULES; i++)
    if (page->rules[i].effect && page->rules[i].operations & operation) return 1;
  return 0;
}

/* What becomes of an operation on a path: an error, or 0. */
static int judge_path(const char *path, enum operation operation) {
  if (!any(operation) || !path) return 0;
  for (int i = 0; i < RULES; i++) {
    struct rule *rule = &page->rules[i];
    if (!rule->effect || !(rule->operations & operation)) continue;
    if (strncmp(path, rule->directory, strnlen(rule->directory, DIRECTORY))) continue;
    int error = obey(rule);
    if (error) return error;
  }
  return 0;
}

static int judge(int fd, enum operation operation) {
  if (!any(operation)) return 0;
  char link[32], path[4096];
  int saved = errno;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  errno = saved;
  if (length < 0) return 0;
  path[length] = 0;
  return judge_path(path, operation);
}

#define JUDGED(type, name, operation, parameters, arguments, subject, how) \
  type name parameters {                                                   \
    REAL(name);                                                            \
    int error = how(subject, operation);                                   \
    if (error) {                                                           \
      errno = error;                                                       \
      return -1;                                                           \
    }                                                                      \
    return real arguments;                                                 \
  }
#define ON_FILE(type, name, operation, parameters, arguments) \
  JUDGED(type, name, operation, parameters, arguments, fd, judge)
#define ON_PATH(name, parameters, arguments) \
  JUDGED(int, name, NAMES, parameters, arguments, path, judge_path)

ON_FILE(ssize_t, write, WRITE, (int fd, const void *data, size_t size), (fd, data, size))
ON_FILE(ssize_t, writev, WRITE, (int fd, const struct iovec *parts, int count), (fd, parts, count))
ON_FILE(ssize_t, pwrite, WRITE, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
ON_FILE(ssize_t, pwrite64, WRITE, (int fd, const void *data, size_t size, off64_t at),
        (fd, data, size, at))
ON_FILE(int, fallocate, WRITE, (int fd, int mode, off_t at, off_t size), (fd, mode, at, size))
ON_FILE(int, fallocate64, WRITE, (int fd, int mode, off64_t at, off64_t size), (fd, mode, at, size))
ON_FILE(int, ftruncate, WRITE, (int fd, off_t size), (fd, size))
ON_FILE(int, ftruncate64, WRITE, (int fd, off64_t size), (fd, size))
ON_FILE(int, fsync, SYNC, (int fd), (fd))
ON_FILE(int, fdatasync, SYNC, (int fd), (fd))
ON_FILE(int, sync_file_range, SYNC, (int fd, off64_t at, off64_t size, unsigned flags),
        (fd, at, size, flags))
ON_FILE(ssize_t, read, READ, (int fd, void *data, size_t size), (fd, data, size))
ON_FILE(ssize_t, pread, READ, (int fd, void *data, size_t size, off_t at), (fd, data, size, at))
ON_FILE(ssize_t, pread64, READ, (int fd, void *data, size_t size, off64_t at), (fd, data, size, at))
ON_PATH(rename, (const char *path, const char *to), (path, to))
ON_PATH(link, (const char *path, const char *to), (path, to))
ON_PATH(unlink, (const char *path), (path))
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode))

/* Of openings only those that may make a file need the disk. */
#define OPENING(name)                                              \
  int name(const char *path, int flags, ...) {                     \
    REAL(name);                                                    \
    mode_t mode = 0;                                               \
    if (flags & (O_CREAT | O_TMPFILE)) {                           \
      va_list rest;                                                \
      va_start(rest, flags);                                       \
      mode = va_arg(rest, mode_t);                                 \
      va_end(rest);                                                \
    }                                                              \
    int error = flags & O_CREAT ? judge_path(path, NAMES) : 0;     \
    if (error) {                                                   \
      errno = error;                                               \
      return -1;                                                   \
    }                                                              \
    if (boot && !strcmp(path, BOOT_ID)) path = boot;               \
    return real(path, flags, mode);                                \
  }
OPENING(open)
OPENING(open64)

static void shift(struct timespec *time, int64_t by_ms) {
  int64_t ns = time->tv_nsec + by_ms % 1000 * 1000000;
  time->tv_sec += by_ms / 1000 + (ns >= 1000000000) - (ns < 0);
  time->tv_nsec = ns + (ns < 0 ? 1000000000 : 0) - (ns >= 1000000000 ? 1000000000 : 0);
}

static int64_t clock_shift(void) { return page ? page->clock_shift_ms : 0; }

int clock_gettime(clockid_t clock, struct timespec *time) {
  REAL(clock_gettime);
  int result = real(clock, time);
  int is_wall = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
  if (!result && is_wall) shift(time, clock_shift());
  return result;
}

int gettimeofday(struct timeval *time, void *zone) {
  struct timespec now;
  (void)zone;
  int result = clock_gettime(CLOCK_REALTIME, &now);
  time->tv_sec = now.tv_sec;
  time->tv_usec = now.tv_nsec / 1000;
  return result;
}

time_t time(time_t *to) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (to) *to = now.tv_sec;
  return now.tv_sec;
}

/*
 * Who waits until a time of the wall clock computed it from the shifted one, and the kernel waits by its
 * own. A time of the monotonic clock is that of a machine that runs for less than thirty years.
 */
int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex,
                           const struct timespec *until) {
  static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
  if (!real) {
    /* On x86-64 the oldest version of this name is another kind of condition. */
    void *found = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!found) found = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    real = (int (*)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *))found;
  }
  struct timespec own = *until;
  if (own.tv_sec > 1000000000) shift(&own, -clock_shift());
  return real(cond, mutex, &own);
}
