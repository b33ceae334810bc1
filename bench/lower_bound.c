/* The least that reading these files can cost: the same preads as the recorder, each number in them parsed, no Python.
 *
 *   lower_bound HZ COUNTER [FILE...] -- [FILE...]
 *
 * Reads the files before "--" HZ times a second, at absolute deadlines, and those after it once a second, until it is
 * killed. COUNTER is a file of 8 bytes that is mapped and holds the number of samples so far. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { MOST_FILES = 1024, MOST_BYTES = 65536, NS = 1000000000 };

static char content[MOST_BYTES];
static volatile uint64_t sum; /* keeps the parsing from being optimised away */

static void parse(ssize_t length) {
    uint64_t number = 0, total = 0;
    for (ssize_t i = 0; i < length; i++) {
        if (content[i] >= '0' && content[i] <= '9') {
            number = number * 10 + (uint64_t)(content[i] - '0');
        } else {
            total += number;
            number = 0;
        }
    }
    sum += total + number;
}

static void read_all(const int *files, int count) {
    for (int i = 0; i < count; i++) {
        ssize_t length = pread(files[i], content, sizeof content, 0);
        if (length > 0) parse(length);
    }
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    const long step = (long)(NS / atof(argv[1]));
    const int each_second = (int)(atof(argv[1]) + 0.5);
    const int counter = open(argv[2], O_RDWR);
    volatile uint64_t *taken = mmap(NULL, sizeof *taken, PROT_READ | PROT_WRITE, MAP_SHARED, counter, 0);
    if (taken == MAP_FAILED) return perror(argv[2]), 1;
    int files[2][MOST_FILES], counts[2] = {0, 0}, rare = 0;
    for (int i = 3; i < argc; i++) {
        if (!strcmp(argv[i], "--")) {
            rare = 1;
            continue;
        }
        int file = open(argv[i], O_RDONLY | O_CLOEXEC);
        if (file < 0) return perror(argv[i]), 1;
        if (counts[rare] == MOST_FILES) return fprintf(stderr, "more than %d files\n", MOST_FILES), 1;
        files[rare][counts[rare]++] = file;
    }
    struct timespec deadline;
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    for (;;) {
        for (deadline.tv_nsec += step; deadline.tv_nsec >= NS; deadline.tv_nsec -= NS) deadline.tv_sec++;
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, NULL);
        read_all(files[0], counts[0]);
        if (*taken % (uint64_t)each_second == 0) read_all(files[1], counts[1]);
        *taken += 1;
    }
}
