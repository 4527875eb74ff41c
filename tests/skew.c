/* Shifts or stops the wall clock of one process while it runs, for tests of what a clock step does.
 *
 * Preloaded, it answers for the C library whenever the process asks for the time of day, by two
 * int64 in native byte order in the file CLOCK_OFFSET_FILE: milliseconds to add; and, unless that is
 * 0, the time to tell instead, microseconds since 1970, which stands still until it is written anew.
 * The file is mapped, so what a test writes into it counts from the process's next look at the
 * clock. CLOCK_MONOTONIC passes through untouched, for a step of the wall clock does not move it.
 *
 *   cc -shared -fPIC -O2 -o skew.so skew.c
 *   CLOCK_OFFSET_FILE=offset LD_PRELOAD=./skew.so redis-server
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct clock {
    int64_t offset_ms;
    int64_t frozen_us;
};

static const volatile struct clock *told;

/* Runs before main. A process whose clock cannot be shifted would pass tests for the wrong reason,
 * so it does not get to run. */
__attribute__((constructor)) static void map_the_clock(void) {
    const char *path = getenv("CLOCK_OFFSET_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *map = mmap(NULL, sizeof *told, PROT_READ, MAP_SHARED, file, 0);
    if (map == MAP_FAILED) {
        perror("skew: CLOCK_OFFSET_FILE cannot be mapped");
        exit(1);
    }
    told = map;
    close(file);
}

static void shift(struct timespec *t) {
    if (!told) return; /* Other libraries' constructors may run before ours. */
    int64_t ms = told->offset_ms, us = told->frozen_us;
    if (us) {
        t->tv_sec = us / 1000000;
        t->tv_nsec = us % 1000000 * 1000;
        return;
    }
    t->tv_sec += ms / 1000;
    t->tv_nsec += ms % 1000 * 1000000;
    if (t->tv_nsec >= 1000000000) {
        t->tv_nsec -= 1000000000;
        t->tv_sec++;
    } else if (t->tv_nsec < 0) {
        t->tv_nsec += 1000000000;
        t->tv_sec--;
    }
}

int clock_gettime(clockid_t clock, struct timespec *t) {
    int status = syscall(SYS_clock_gettime, clock, t);
    if (status == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) shift(t);
    return status;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    struct timespec now;
    (void)zone; /* Obsolete: no one asks for it. */
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec;
    t->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}
