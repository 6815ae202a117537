/* Preloaded into a process, puts its wall clock forward by $LATER_SECONDS. */
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long later(void) {
    const char *seconds = getenv("LATER_SECONDS");
    return seconds ? atol(seconds) : 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec real;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &real);
    now->tv_sec = real.tv_sec + later();
    now->tv_usec = real.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec real;
    clock_gettime(CLOCK_REALTIME, &real);
    if (now) *now = real.tv_sec + later();
    return real.tv_sec + later();
}
