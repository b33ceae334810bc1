/* A libnvidia-ml.so.1 that plays a script instead of asking a driver.
 *
 * The unmodified pynvml loads it, so the tests run all of cellmeter's NVML code on machines without a GPU. Every
 * exported function has the name, the arguments and the return codes of NVIDIA's nvml.h; __init__.py compiles it.
 *
 * Environment
 *   NVML_STUB_TRACE   the script (below). Without it nvmlInit answers DRIVER_NOT_LOADED.
 *   NVML_STUB_CLOCK   a file that holds one native double: the script's time in seconds, which the test steers.
 *   NVML_STUB_T0      without a clock file: CLOCK_MONOTONIC seconds of the script's time 0, the same for all processes
 *                     of a test. Without either, time 0 is the first nvmlInit of a process.
 *   NVML_STUB_LOG     a file that gets one line a call: PID FUNCTION GPU ("-": a call that is about no GPU).
 *
 * The trace language: one directive a line, '#' starts a comment, names with blanks stand in double quotes. Numbers may
 * be hexadecimal (0x1f) or end in k, m or g (powers of 1024). Times are seconds; an end of '-' means for ever. A GPU is
 * G, a MIG instance G.M.
 *
 *   driver 580.95.05                        the driver's version
 *   driver-not-loaded                       nvmlInit answers DRIVER_NOT_LOADED (9)
 *   init CODE [FROM TO]                     nvmlInit answers CODE
 *   missing FUNCTION ...                    answers FUNCTION_NOT_FOUND (13), as the library of an older driver does
 *   gpu [name=] [uuid=] [mem=80g] [limit=700] [gpm=1] [from=T]
 *                                           one more GPU; limit in watts. from: the time at which it comes. A session of
 *                                           NVML shows what was there when it began
 *   live                                    GPUs that come or go show in sessions that are open, too
 *   gone FROM TO gpu G                      that GPU or MIG instance is not there; handles from before are lost
 *   mig G gi=1 [ci=0] [name=] [uuid=] [mem=10g] [from=T]
 *                                           one more MIG instance of GPU G, which has MIG mode on while it has any
 *   at T gpu G KEY=VALUE ...                readings from time T until the next of that key:
 *                                             util, memutil (%)  used (bytes; default: what its processes hold)
 *                                             power (W)  temp (C)  sm, memclk (MHz)  reasons (bit mask)
 *                                             gpm.ID (GPM metric by its number)
 *   proc FROM TO gpu G pid=P [used=2g] [type=C]
 *                                           a process that holds a context. P: a number, self, parent, or @FILE that
 *                                           holds it. used=none: the driver does not say. type: C, G or C+G
 *   err FROM TO gpu G FUNCTION CODE         that function (or *) answers CODE for GPU G (or *; "-": calls that are about
 *                                           no GPU); see enum status
 *   reset T gpu G                           handles given out before T are lost, new ones work
 *   window SECONDS                          utilisation is averaged over the last SECONDS, as drivers do (default 0)
 *   delay FUNCTION MICROSECONDS             that function (or *) sleeps, as when the driver's lock is taken
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* ---- what nvml.h says ------------------------------------------------------------------------------------------- */

enum status {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    FUNCTION_NOT_FOUND = 13,
    GPU_IS_LOST = 15,
    VERSION_MISMATCH = 25,
    GPU_NOT_FOUND = 28,
};

enum { INIT_FLAG_NO_GPUS = 1 };
enum { CLOCK_MEMORY = 2, CLOCKS = 4 };
enum { SAMPLES_POWER = 0, SAMPLES_UTILIZATION = 1 };
enum { FIELD_POWER_INSTANT = 186 };
enum { VALUE_UNSIGNED_INT = 1 };

typedef struct { unsigned gpu, memory; } utilization_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2_t;
typedef struct { unsigned version, sensor; int celsius; } temperature_v1_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process_t;
typedef union { double real; unsigned u32; unsigned long long u64; } value_t;
typedef struct { unsigned long long epoch_us; value_t value; } sample_t;
typedef struct {
    unsigned id, scope;
    long long epoch_us, latency_us;
    unsigned type;
    int status;
    value_t value;
} field_t;
typedef struct { unsigned version, supported; } gpm_support_t;
typedef struct { unsigned id; int status; double value; char *texts[3]; } gpm_metric_t;
typedef struct gpm_sample gpm_sample_t;
typedef struct { unsigned version, count; gpm_sample_t *before, *after; gpm_metric_t metrics[]; } gpm_request_t;

#define MEMORY_V2 (sizeof(memory_v2_t) | 2u << 24)
#define TEMPERATURE_V1 (sizeof(temperature_v1_t) | 1u << 24)
#define MEMORY_UNKNOWN (~0ull)

/* ---- the machine that the trace describes ------------------------------------------------------------------------ */

enum { MAX_GPUS = 32, MAX_INSTANCES = 8, MAX_RESETS = 8, MAX_GONE = 64, MAX_RULES = 256, MAX_GPM = 128, NAME = 96 };
enum key { UTIL, MEMUTIL, USED, POWER, TEMP, SM_CLOCK, MEM_CLOCK, REASONS, KEYS };
static const char *const KEY_NAMES[KEYS] = {"util", "memutil", "used", "power", "temp", "sm", "memclk", "reasons"};

static const double IDLE_WATTS = 70, IDLE_CELSIUS = 35, IDLE_SM_MHZ = 345, MEMORY_MHZ = 2619, IDLE_REASON = 1;
static const double RESERVED = 0.00625; /* share of the memory that the driver keeps for itself */
static const double SAMPLE_PERIOD = 0.1, SAMPLES_KEPT = 120;

typedef struct { double time, value; } point_t;
typedef struct { point_t *points; int count; } series_t; /* each value holds until the next point */

typedef struct gpu gpu_t;
typedef struct { gpu_t *gpu; int generation; } handle_t; /* what nvmlDevice_t points to */

struct gpu {
    char label[32], name[NAME], uuid[NAME];
    gpu_t *parent; /* the GPU that a MIG instance is part of, else NULL */
    gpu_t *instances[MAX_INSTANCES];
    int index, instance_count, gpm;
    unsigned gpu_instance, compute_instance; /* all ones: none, the GPU is whole */
    double memory, limit_watts;
    series_t readings[KEYS], gpm_readings[MAX_GPM];
    double since, resets[MAX_RESETS], gone_from[MAX_GONE], gone_to[MAX_GONE];
    int reset_count, gone_count;
    handle_t handles[MAX_RESETS + MAX_GONE + 1]; /* one for each time between resets and absences */
};

struct gpm_sample { gpu_t *gpu; double time; };

typedef struct {
    double from, to;
    gpu_t *gpu;
    int pid;
    char pid_file[256]; /* holds the pid where it is not yet known when the trace is read */
    double used;
    int known, compute, graphics;
} holder_t;
typedef struct { double from, to; char gpu[32], function[64]; int status; } failure_t;
typedef struct { char function[64]; unsigned microseconds; } delay_t;

static struct {
    int users, init_status, live;
    double init_from, init_to, opened; /* when nvmlInit fails; when this session began */
    char driver[80];
    gpu_t *gpus[MAX_GPUS];
    holder_t holders[MAX_RULES];
    failure_t failures[MAX_RULES];
    delay_t delays[MAX_RULES];
    char missing[MAX_RULES][64];
    int gpu_count, holder_count, failure_count, delay_count, missing_count;
    double window, t0, epoch;
    const volatile double *clock;
    FILE *log;
} machine;

/* ---- time and readings ------------------------------------------------------------------------------------------- */

static double seconds_of(clockid_t id) {
    struct timespec now;
    clock_gettime(id, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static double now(void) {
    return machine.clock ? *machine.clock : seconds_of(CLOCK_MONOTONIC) - machine.t0;
}

/* The driver stamps its own samples with the time of day in microseconds. */
static long long epoch_us(double time) {
    return llround((machine.epoch + time) * 1e6);
}

static void add_point(series_t *series, double time, double value) {
    series->points = realloc(series->points, (series->count + 1) * sizeof *series->points);
    series->points[series->count++] = (point_t){time, value};
}

static double value_at(const series_t *series, double time, double otherwise) {
    double value = otherwise;
    for (int i = 0; i < series->count && series->points[i].time <= time; i++)
        value = series->points[i].value;
    return value;
}

static double integral(const series_t *series, double from, double to, double otherwise) {
    double sum = 0, start = from, value = value_at(series, from, otherwise);
    for (int i = 0; i < series->count && series->points[i].time < to; i++) {
        const point_t point = series->points[i];
        if (point.time <= from)
            continue;
        sum += value * (point.time - start);
        start = point.time;
        value = point.value;
    }
    return sum + value * (to - start);
}

static double mean(const series_t *series, double from, double to, double otherwise) {
    return to > from ? integral(series, from, to, otherwise) / (to - from) : value_at(series, to, otherwise);
}

static double reading(const gpu_t *gpu, enum key key, double otherwise) {
    return value_at(&gpu->readings[key], now(), otherwise);
}

/* ---- the trace --------------------------------------------------------------------------------------------------- */

/* The next word of a line, without its quotes; NULL at the end or at a comment. Cuts the line up. */
static char *next_word(char **line) {
    char *from = *line + strspn(*line, " \t\r\n");
    if (!*from || *from == '#')
        return NULL;
    char *word = from, *to = from;
    for (int quoted = 0; *from && (quoted || !strchr(" \t\r\n", *from)); from++) {
        if (*from == '"')
            quoted = !quoted;
        else
            *to++ = *from;
    }
    *line = *from ? from + 1 : from;
    *to = 0;
    return word;
}

static void fail(const char *what) {
    fprintf(stderr, "nvml stub: bad trace: %s\n", what ? what : "a word is missing");
    abort();
}

static char *need_word(char **line) {
    char *word = next_word(line);
    if (!word)
        fail(word);
    return word;
}

static void need_room(int count, int most) {
    if (count >= most)
        fail("too many directives of one kind");
}

static double number(const char *text) {
    char *end;
    double value = strtod(text, &end); /* reads hexadecimal too */
    if (end == text)
        fail(text);
    switch (*end) {
    case 'k': return value * 0x1p10;
    case 'm': return value * 0x1p20;
    case 'g': return value * 0x1p30;
    default: return value;
    }
}

static double next_number(char **line) {
    return number(need_word(line));
}

static double next_end(char **line) {
    const char *word = need_word(line);
    return strcmp(word, "-") ? number(word) : INFINITY;
}

/* The next KEY=VALUE; returns the key and sets the value, NULL at the line's end. */
static char *next_pair(char **line, char **value) {
    char *word = next_word(line);
    if (!word)
        return NULL;
    *value = strchr(word, '=');
    if (!*value)
        fail(word);
    *(*value)++ = 0;
    return word;
}

static void copy(char *to, size_t size, const char *from) {
    snprintf(to, size, "%s", from);
}

static gpu_t *gpu_named(const char *label) {
    for (int i = 0; i < machine.gpu_count; i++) {
        gpu_t *gpu = machine.gpus[i];
        if (!strcmp(gpu->label, label))
            return gpu;
        for (int j = 0; j < gpu->instance_count; j++)
            if (!strcmp(gpu->instances[j]->label, label))
                return gpu->instances[j];
    }
    fail(label);
    return NULL;
}

/* "gpu G" */
static gpu_t *next_gpu(char **line) {
    const char *word = need_word(line);
    if (strcmp(word, "gpu"))
        fail(word);
    return gpu_named(need_word(line));
}

static void describe(gpu_t *gpu, char **line) {
    char *key, *value;
    while ((key = next_pair(line, &value))) {
        if (!strcmp(key, "name")) copy(gpu->name, NAME, value);
        else if (!strcmp(key, "uuid")) copy(gpu->uuid, NAME, value);
        else if (!strcmp(key, "mem")) gpu->memory = number(value);
        else if (!strcmp(key, "limit")) gpu->limit_watts = number(value);
        else if (!strcmp(key, "from")) gpu->since = number(value);
        else if (!strcmp(key, "gpm")) gpu->gpm = (int)number(value);
        else if (!strcmp(key, "gi")) gpu->gpu_instance = (unsigned)number(value);
        else if (!strcmp(key, "ci")) gpu->compute_instance = (unsigned)number(value);
        else fail(key);
    }
    for (int i = 0; i <= MAX_RESETS + MAX_GONE; i++)
        gpu->handles[i] = (handle_t){gpu, i};
}

static void read_gpu(char **line) {
    need_room(machine.gpu_count, MAX_GPUS);
    gpu_t *gpu = calloc(1, sizeof *gpu);
    gpu->since = -INFINITY;
    gpu->index = machine.gpu_count;
    snprintf(gpu->label, sizeof gpu->label, "%d", gpu->index);
    copy(gpu->name, NAME, "NVIDIA H100 80GB HBM3");
    snprintf(gpu->uuid, NAME, "GPU-%08x-0000-4000-8000-000000000000", 0xa0a0a0a0u + gpu->index);
    gpu->memory = 80 * 0x1p30;
    gpu->limit_watts = 700;
    gpu->gpu_instance = gpu->compute_instance = ~0u;
    describe(gpu, line);
    machine.gpus[machine.gpu_count++] = gpu;
}

static void read_mig(char **line) {
    gpu_t *parent = gpu_named(need_word(line)), *gpu = calloc(1, sizeof *gpu);
    need_room(parent->instance_count, MAX_INSTANCES);
    gpu->parent = parent;
    gpu->since = -INFINITY;
    gpu->index = parent->instance_count;
    gpu->gpm = parent->gpm;
    gpu->memory = 10 * 0x1p30;
    snprintf(gpu->label, sizeof gpu->label, "%d.%d", parent->index, gpu->index);
    snprintf(gpu->name, NAME, "%.60s MIG 1g.10gb", parent->name);
    snprintf(gpu->uuid, NAME, "MIG-%08x-0000-5000-8000-%012d", 0xb0b0b0b0u + gpu->index, parent->index);
    describe(gpu, line);
    parent->instances[parent->instance_count++] = gpu;
}

static void read_point(char **line) {
    double time = next_number(line);
    gpu_t *gpu = next_gpu(line);
    char *name, *value;
    while ((name = next_pair(line, &value))) {
        if (!strncmp(name, "gpm.", 4)) {
            int id = atoi(name + 4);
            if (id < 0 || id >= MAX_GPM)
                fail(name);
            add_point(&gpu->gpm_readings[id], time, number(value));
            continue;
        }
        int key = 0;
        while (key < KEYS && strcmp(name, KEY_NAMES[key]))
            key++;
        if (key == KEYS)
            fail(name);
        add_point(&gpu->readings[key], time, number(value));
    }
}

static void read_holder(char **line) {
    need_room(machine.holder_count, MAX_RULES);
    holder_t *holder = &machine.holders[machine.holder_count++];
    holder->from = next_number(line);
    holder->to = next_end(line);
    holder->gpu = next_gpu(line);
    holder->known = holder->compute = 1;
    char *key, *value;
    while ((key = next_pair(line, &value))) {
        if (!strcmp(key, "used")) {
            holder->known = strcmp(value, "none") != 0;
            holder->used = holder->known ? number(value) : 0;
        } else if (!strcmp(key, "type")) {
            holder->compute = strchr(value, 'C') != NULL;
            holder->graphics = strchr(value, 'G') != NULL;
        } else if (strcmp(key, "pid")) fail(key);
        else if (!strcmp(value, "self")) holder->pid = getpid();
        else if (!strcmp(value, "parent")) holder->pid = getppid();
        else if (*value == '@') copy(holder->pid_file, sizeof holder->pid_file, value + 1);
        else holder->pid = (int)number(value);
    }
}

static void read_failure(char **line) {
    need_room(machine.failure_count, MAX_RULES);
    failure_t *failure = &machine.failures[machine.failure_count++];
    failure->from = next_number(line);
    failure->to = next_end(line);
    need_word(line); /* "gpu" */
    copy(failure->gpu, sizeof failure->gpu, need_word(line));
    copy(failure->function, sizeof failure->function, need_word(line));
    failure->status = (int)next_number(line);
}

static void read_reset(char **line) {
    double time = next_number(line);
    gpu_t *gpu = next_gpu(line);
    need_room(gpu->reset_count, MAX_RESETS);
    gpu->resets[gpu->reset_count++] = time;
}

static void read_gone(char **line) {
    const double from = next_number(line), to = next_end(line);
    gpu_t *gpu = next_gpu(line);
    need_room(gpu->gone_count, MAX_GONE);
    gpu->gone_from[gpu->gone_count] = from;
    gpu->gone_to[gpu->gone_count++] = to;
}

static void fail_init(int status, double from, double to) {
    machine.init_status = status;
    machine.init_from = from;
    machine.init_to = to;
}

static void read_init(char **line) {
    const int status = (int)next_number(line);
    const char *from = next_word(line);
    fail_init(status, from ? number(from) : -INFINITY, from ? next_end(line) : INFINITY);
}

static void read_delay(char **line) {
    need_room(machine.delay_count, MAX_RULES);
    delay_t *delay = &machine.delays[machine.delay_count++];
    copy(delay->function, sizeof delay->function, need_word(line));
    delay->microseconds = (unsigned)next_number(line);
}

static void read_missing(char **line) {
    for (char *function; (function = next_word(line));) {
        need_room(machine.missing_count, MAX_RULES);
        copy(machine.missing[machine.missing_count++], sizeof machine.missing[0], function);
    }
}

static void read_directive(char *line) {
    const char *what = next_word(&line);
    if (!what) return;
    if (!strcmp(what, "driver")) copy(machine.driver, sizeof machine.driver, need_word(&line));
    else if (!strcmp(what, "driver-not-loaded")) fail_init(DRIVER_NOT_LOADED, -INFINITY, INFINITY);
    else if (!strcmp(what, "init")) read_init(&line);
    else if (!strcmp(what, "live")) machine.live = 1;
    else if (!strcmp(what, "gone")) read_gone(&line);
    else if (!strcmp(what, "window")) machine.window = next_number(&line);
    else if (!strcmp(what, "gpu")) read_gpu(&line);
    else if (!strcmp(what, "mig")) read_mig(&line);
    else if (!strcmp(what, "at")) read_point(&line);
    else if (!strcmp(what, "proc")) read_holder(&line);
    else if (!strcmp(what, "err")) read_failure(&line);
    else if (!strcmp(what, "reset")) read_reset(&line);
    else if (!strcmp(what, "delay")) read_delay(&line);
    else if (!strcmp(what, "missing")) read_missing(&line);
    else fail(what);
}

static void open_clock(void) {
    const char *path = getenv("NVML_STUB_CLOCK"), *t0 = getenv("NVML_STUB_T0");
    static double opened_first; /* a session that follows goes on with the script */
    if (!opened_first)
        opened_first = seconds_of(CLOCK_MONOTONIC);
    machine.t0 = t0 ? strtod(t0, NULL) : opened_first;
    machine.epoch = seconds_of(CLOCK_REALTIME) - (seconds_of(CLOCK_MONOTONIC) - machine.t0);
    if (!path)
        return;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    void *page = file < 0 ? MAP_FAILED : mmap(NULL, sizeof(double), PROT_READ, MAP_SHARED, file, 0);
    if (page == MAP_FAILED)
        fail(path);
    close(file);
    machine.clock = page;
    machine.epoch = 1700000000; /* a steered test is the same every time */
}

static int load(void) {
    const char *trace_path = getenv("NVML_STUB_TRACE"), *log_path = getenv("NVML_STUB_LOG");
    FILE *trace = trace_path ? fopen(trace_path, "re") : NULL;
    if (!trace)
        return DRIVER_NOT_LOADED;
    copy(machine.driver, sizeof machine.driver, "580.95.05");
    for (char line[4096]; fgets(line, sizeof line, trace);)
        read_directive(line);
    fclose(trace);
    open_clock();
    machine.opened = now();
    if (log_path && (machine.log = fopen(log_path, "ae")))
        setvbuf(machine.log, NULL, _IOLBF, 0);
    return SUCCESS;
}

static void free_gpu(gpu_t *gpu) {
    for (int i = 0; i < gpu->instance_count; i++)
        free_gpu(gpu->instances[i]);
    for (int i = 0; i < KEYS; i++)
        free(gpu->readings[i].points);
    for (int i = 0; i < MAX_GPM; i++)
        free(gpu->gpm_readings[i].points);
    free(gpu);
}

/* Back to the state before nvmlInit, so that one process can play several traces one after another. */
static void unload(void) {
    for (int i = 0; i < machine.gpu_count; i++)
        free_gpu(machine.gpus[i]);
    if (machine.clock)
        munmap((void *)machine.clock, sizeof(double));
    if (machine.log)
        fclose(machine.log);
    memset(&machine, 0, sizeof machine);
}

/* ---- what every call does first ---------------------------------------------------------------------------------- */

static int matches(const char *pattern, const char *text) {
    return !strcmp(pattern, "*") || !strcmp(pattern, text);
}

static void note(const char *function, const gpu_t *gpu) {
    if (machine.log)
        fprintf(machine.log, "%d %s %s\n", getpid(), function, gpu ? gpu->label : "-");
    for (int i = 0; i < machine.delay_count; i++)
        if (matches(machine.delays[i].function, function))
            usleep(machine.delays[i].microseconds);
}

static int scripted(const char *function, const gpu_t *gpu) {
    for (int i = 0; i < machine.missing_count; i++)
        if (!strcmp(machine.missing[i], function))
            return FUNCTION_NOT_FOUND;
    const char *label = gpu ? gpu->label : "-";
    const double time = now();
    for (int i = 0; i < machine.failure_count; i++) {
        const failure_t *failure = &machine.failures[i];
        if (time >= failure->from && time < failure->to && (gpu ? matches(failure->gpu, label) : !strcmp(failure->gpu, label))
            && matches(failure->function, function))
            return failure->status;
    }
    return SUCCESS;
}

static int begin(const char *function) {
    note(function, NULL);
    return machine.users ? scripted(function, NULL) : UNINITIALIZED;
}

static int generation(const gpu_t *gpu) {
    int resets = 0;
    while (resets < gpu->reset_count && gpu->resets[resets] <= now())
        resets++;
    int absences = 0;
    while (absences < gpu->gone_count && gpu->gone_from[absences] <= now())
        absences++;
    return resets + absences;
}

/* Whether a GPU is there, and this session knows of it. MIG instances show at once. */
static int is_there(const gpu_t *gpu) {
    const double time = now();
    double since = gpu->since;
    for (int i = 0; i < gpu->gone_count; i++) {
        if (time >= gpu->gone_from[i] && time < gpu->gone_to[i])
            return 0;
        if (time >= gpu->gone_to[i])
            since = fmax(since, gpu->gone_to[i]);
    }
    return since <= (machine.live || gpu->parent ? time : machine.opened);
}

/* The GPU or instance at a place among those that are there; NULL past their end. */
static gpu_t *nth(gpu_t *const *gpus, int count, unsigned index) {
    for (int i = 0; i < count; i++)
        if (is_there(gpus[i]) && !index--)
            return gpus[i];
    return NULL;
}

static int has_instances(const gpu_t *gpu) {
    return nth(gpu->instances, gpu->instance_count, 0) != NULL;
}

static int begin_with(const char *function, const handle_t *handle) {
    if (!machine.users) /* its memory is gone */
        return UNINITIALIZED;
    if (!handle)
        return INVALID_ARGUMENT;
    note(function, handle->gpu);
    if (handle->generation != generation(handle->gpu) || !is_there(handle->gpu))
        return GPU_IS_LOST;
    return scripted(function, handle->gpu);
}

#define EXPORT __attribute__((visibility("default")))
#define BEGIN()                                                                                                        \
    do {                                                                                                               \
        int status = begin(__func__);                                                                                  \
        if (status)                                                                                                    \
            return status;                                                                                             \
    } while (0)
#define BEGIN_WITH(handle)                                                                                             \
    do {                                                                                                               \
        int status = begin_with(__func__, handle);                                                                     \
        if (status)                                                                                                    \
            return status;                                                                                             \
    } while (0)
/* Counters that exist for whole GPUs only. */
#define WHOLE_GPU_ONLY(handle)                                                                                         \
    do {                                                                                                               \
        if ((handle)->gpu->parent)                                                                                     \
            return NOT_SUPPORTED;                                                                                      \
    } while (0)

/* ---- the library ------------------------------------------------------------------------------------------------- */

EXPORT int nvmlInitWithFlags(unsigned flags) {
    if (!machine.users) {
        int status = load();
        if (!status && now() >= machine.init_from && now() < machine.init_to)
            status = machine.init_status;
        if (!status && !nth(machine.gpus, machine.gpu_count, 0) && !(flags & INIT_FLAG_NO_GPUS))
            status = GPU_NOT_FOUND;
        if (status) {
            unload();
            return status;
        }
    }
    machine.users++;
    note(__func__, NULL);
    return SUCCESS;
}

EXPORT int nvmlInit_v2(void) {
    return nvmlInitWithFlags(0);
}

EXPORT int nvmlShutdown(void) {
    BEGIN();
    if (--machine.users == 0)
        unload();
    return SUCCESS;
}

EXPORT const char *nvmlErrorString(int status) {
    switch (status) {
    case GPU_NOT_FOUND: return "GPU not found";
    case VERSION_MISMATCH: return "Argument version mismatch";
    default: return "Unknown Error"; /* pynvml has its own words for the others */
    }
}

EXPORT int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    BEGIN();
    copy(text, size, machine.driver);
    return SUCCESS;
}

/* ---- which GPUs there are ---------------------------------------------------------------------------------------- */

static int hand_out(const char *function, gpu_t *gpu, handle_t **handle) {
    *handle = &gpu->handles[generation(gpu)];
    return scripted(function, gpu);
}

EXPORT int nvmlDeviceGetCount_v2(unsigned *count) {
    BEGIN();
    for (*count = 0; nth(machine.gpus, machine.gpu_count, *count);)
        ++*count;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, handle_t **handle) {
    BEGIN();
    gpu_t *gpu = nth(machine.gpus, machine.gpu_count, index);
    return gpu ? hand_out(__func__, gpu, handle) : INVALID_ARGUMENT;
}

EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, handle_t **handle) {
    BEGIN();
    for (int i = 0; i < machine.gpu_count; i++) {
        gpu_t *gpu = machine.gpus[i];
        if (!is_there(gpu))
            continue;
        if (!strcmp(gpu->uuid, uuid))
            return hand_out(__func__, gpu, handle);
        for (int j = 0; j < gpu->instance_count; j++)
            if (is_there(gpu->instances[j]) && !strcmp(gpu->instances[j]->uuid, uuid))
                return hand_out(__func__, gpu->instances[j], handle);
    }
    return NOT_FOUND;
}

EXPORT int nvmlDeviceGetName(handle_t *handle, char *text, unsigned size) {
    BEGIN_WITH(handle);
    copy(text, size, handle->gpu->name);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetUUID(handle_t *handle, char *text, unsigned size) {
    BEGIN_WITH(handle);
    copy(text, size, handle->gpu->uuid);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMaxMigDeviceCount(handle_t *handle, unsigned *count) {
    BEGIN_WITH(handle);
    *count = 7;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMigMode(handle_t *handle, unsigned *current, unsigned *pending) {
    BEGIN_WITH(handle);
    WHOLE_GPU_ONLY(handle);
    *current = *pending = has_instances(handle->gpu);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(handle_t *handle, unsigned index, handle_t **instance) {
    BEGIN_WITH(handle);
    gpu_t *found = nth(handle->gpu->instances, handle->gpu->instance_count, index);
    return found ? hand_out(__func__, found, instance) : NOT_FOUND;
}

EXPORT int nvmlDeviceGetGpuInstanceId(handle_t *handle, unsigned *id) {
    BEGIN_WITH(handle);
    if (!handle->gpu->parent)
        return NOT_SUPPORTED;
    *id = handle->gpu->gpu_instance;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetComputeInstanceId(handle_t *handle, unsigned *id) {
    BEGIN_WITH(handle);
    if (!handle->gpu->parent)
        return NOT_SUPPORTED;
    *id = handle->gpu->compute_instance;
    return SUCCESS;
}

/* ---- readings ---------------------------------------------------------------------------------------------------- */

EXPORT int nvmlDeviceGetUtilizationRates(handle_t *handle, utilization_t *rates) {
    BEGIN_WITH(handle);
    const gpu_t *gpu = handle->gpu;
    if (gpu->parent || has_instances(gpu))
        return NOT_SUPPORTED; /* with MIG on, neither the GPU nor its instances have it */
    const double time = now(), from = time - machine.window;
    rates->gpu = (unsigned)lround(mean(&gpu->readings[UTIL], from, time, 0));
    rates->memory = (unsigned)lround(mean(&gpu->readings[MEMUTIL], from, time, 0));
    return SUCCESS;
}

static int holds(const holder_t *holder, const gpu_t *gpu) {
    const double time = now();
    return (holder->gpu == gpu || holder->gpu->parent == gpu) && time >= holder->from && time < holder->to;
}

static double used_bytes(const gpu_t *gpu) {
    double held = 0;
    for (int i = 0; i < machine.holder_count; i++)
        if (holds(&machine.holders[i], gpu))
            held += machine.holders[i].used;
    return reading(gpu, USED, held);
}

/* Version 1 counts what the driver keeps for itself as used, version 2 keeps it apart. */
EXPORT int nvmlDeviceGetMemoryInfo(handle_t *handle, memory_t *memory) {
    BEGIN_WITH(handle);
    memory->total = handle->gpu->memory;
    memory->used = used_bytes(handle->gpu) + RESERVED * handle->gpu->memory;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMemoryInfo_v2(handle_t *handle, memory_v2_t *memory) {
    BEGIN_WITH(handle);
    if (memory->version != MEMORY_V2)
        return VERSION_MISMATCH;
    memory->total = handle->gpu->memory;
    memory->reserved = RESERVED * handle->gpu->memory;
    memory->used = used_bytes(handle->gpu);
    memory->free = memory->total - memory->reserved - memory->used;
    return SUCCESS;
}

/* The mean of the last second, as Ampere and newer GPUs give it; the instant is a field value. */
EXPORT int nvmlDeviceGetPowerUsage(handle_t *handle, unsigned *milliwatts) {
    BEGIN_WITH(handle);
    WHOLE_GPU_ONLY(handle);
    const double time = now();
    *milliwatts = (unsigned)lround(1000 * mean(&handle->gpu->readings[POWER], time - 1, time, IDLE_WATTS));
    return SUCCESS;
}

EXPORT int nvmlDeviceGetEnforcedPowerLimit(handle_t *handle, unsigned *milliwatts) {
    BEGIN_WITH(handle);
    WHOLE_GPU_ONLY(handle);
    *milliwatts = (unsigned)(1000 * handle->gpu->limit_watts);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetTotalEnergyConsumption(handle_t *handle, unsigned long long *millijoules) {
    BEGIN_WITH(handle);
    WHOLE_GPU_ONLY(handle);
    *millijoules = llround(1000 * integral(&handle->gpu->readings[POWER], 0, now(), IDLE_WATTS));
    return SUCCESS;
}

EXPORT int nvmlDeviceGetFieldValues(handle_t *handle, int count, field_t *fields) {
    BEGIN_WITH(handle);
    for (int i = 0; i < count; i++) {
        field_t *field = &fields[i];
        field->epoch_us = epoch_us(now());
        field->status = NOT_SUPPORTED;
        if (field->id != FIELD_POWER_INSTANT || handle->gpu->parent)
            continue;
        field->status = SUCCESS;
        field->type = VALUE_UNSIGNED_INT;
        field->value.u32 = (unsigned)lround(1000 * reading(handle->gpu, POWER, IDLE_WATTS));
    }
    return SUCCESS;
}

EXPORT int nvmlDeviceGetTemperature(handle_t *handle, unsigned sensor, unsigned *celsius) {
    BEGIN_WITH(handle);
    WHOLE_GPU_ONLY(handle);
    if (sensor)
        return INVALID_ARGUMENT;
    *celsius = (unsigned)reading(handle->gpu, TEMP, IDLE_CELSIUS);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetTemperatureV(handle_t *handle, temperature_v1_t *temperature) {
    BEGIN_WITH(handle);
    WHOLE_GPU_ONLY(handle);
    if (temperature->version != TEMPERATURE_V1)
        return VERSION_MISMATCH;
    if (temperature->sensor)
        return INVALID_ARGUMENT;
    temperature->celsius = (int)reading(handle->gpu, TEMP, IDLE_CELSIUS);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetClockInfo(handle_t *handle, unsigned clock, unsigned *megahertz) {
    BEGIN_WITH(handle);
    WHOLE_GPU_ONLY(handle);
    if (clock >= CLOCKS)
        return INVALID_ARGUMENT;
    const int memory = clock == CLOCK_MEMORY;
    *megahertz = (unsigned)reading(handle->gpu, memory ? MEM_CLOCK : SM_CLOCK, memory ? MEMORY_MHZ : IDLE_SM_MHZ);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetCurrentClocksEventReasons(handle_t *handle, unsigned long long *reasons) {
    BEGIN_WITH(handle);
    WHOLE_GPU_ONLY(handle);
    *reasons = (unsigned long long)reading(handle->gpu, REASONS, IDLE_REASON);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetCurrentClocksThrottleReasons(handle_t *handle, unsigned long long *reasons) {
    BEGIN_WITH(handle);
    WHOLE_GPU_ONLY(handle);
    *reasons = (unsigned long long)reading(handle->gpu, REASONS, IDLE_REASON);
    return SUCCESS;
}

/* The driver's own buffer: one sample each 100 ms, the newest 120, those after a time of day in microseconds. */
EXPORT int nvmlDeviceGetSamples(handle_t *handle, unsigned type, unsigned long long after_us, unsigned *value_type,
                                unsigned *count, sample_t *samples) {
    BEGIN_WITH(handle);
    WHOLE_GPU_ONLY(handle);
    if (type != SAMPLES_POWER && type != SAMPLES_UTILIZATION)
        return NOT_SUPPORTED;
    const int power = type == SAMPLES_POWER;
    const series_t *series = &handle->gpu->readings[power ? POWER : UTIL];
    const double last = floor(now() / SAMPLE_PERIOD + 1e-6);
    unsigned found = 0;
    for (double slot = fmax(1, last - SAMPLES_KEPT + 1); slot <= last; slot++) {
        const double time = slot * SAMPLE_PERIOD;
        const unsigned long long stamp = epoch_us(time);
        if (stamp <= after_us)
            continue;
        if (samples && found < *count) {
            const double value = mean(series, time - SAMPLE_PERIOD, time, power ? IDLE_WATTS : 0);
            samples[found] = (sample_t){.epoch_us = stamp, .value.u32 = (unsigned)lround(power ? 1000 * value : value)};
        }
        found++;
    }
    if (!found)
        return NOT_FOUND;
    *value_type = VALUE_UNSIGNED_INT;
    *count = samples && found > *count ? *count : found;
    return SUCCESS;
}

/* ---- processes --------------------------------------------------------------------------------------------------- */

static int pid_of(const holder_t *holder) {
    int pid = 0;
    if (!*holder->pid_file)
        return holder->pid;
    FILE *file = fopen(holder->pid_file, "re");
    if (file) {
        if (fscanf(file, "%d", &pid) != 1)
            pid = 0;
        fclose(file);
    }
    return pid;
}

static int list_processes(const gpu_t *gpu, int graphics, unsigned *count, process_t *processes) {
    unsigned found = 0;
    for (int i = 0; i < machine.holder_count; i++) {
        const holder_t *holder = &machine.holders[i];
        const int pid = pid_of(holder);
        if (!holds(holder, gpu) || !(graphics ? holder->graphics : holder->compute) || !pid)
            continue;
        if (processes && found < *count)
            processes[found] = (process_t){
                .pid = pid,
                .used = holder->known ? (unsigned long long)holder->used : MEMORY_UNKNOWN,
                .gpu_instance = holder->gpu->gpu_instance,
                .compute_instance = holder->gpu->compute_instance,
            };
        found++;
    }
    const int enough = found <= *count;
    *count = found;
    return enough ? SUCCESS : INSUFFICIENT_SIZE;
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(handle_t *handle, unsigned *count, process_t *processes) {
    BEGIN_WITH(handle);
    return list_processes(handle->gpu, 0, count, processes);
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v2(handle_t *handle, unsigned *count, process_t *processes) {
    BEGIN_WITH(handle);
    return list_processes(handle->gpu, 0, count, processes);
}

EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v3(handle_t *handle, unsigned *count, process_t *processes) {
    BEGIN_WITH(handle);
    return list_processes(handle->gpu, 1, count, processes);
}

EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v2(handle_t *handle, unsigned *count, process_t *processes) {
    BEGIN_WITH(handle);
    return list_processes(handle->gpu, 1, count, processes);
}

/* ---- GPM: means between two samples ------------------------------------------------------------------------------ */

EXPORT int nvmlGpmQueryDeviceSupport(handle_t *handle, gpm_support_t *support) {
    BEGIN_WITH(handle);
    if (support->version != 1)
        return VERSION_MISMATCH;
    support->supported = handle->gpu->gpm;
    return SUCCESS;
}

EXPORT int nvmlGpmSampleAlloc(gpm_sample_t **sample) {
    BEGIN();
    *sample = calloc(1, sizeof **sample);
    return SUCCESS;
}

EXPORT int nvmlGpmSampleFree(gpm_sample_t *sample) {
    BEGIN();
    free(sample);
    return SUCCESS;
}

EXPORT int nvmlGpmSampleGet(handle_t *handle, gpm_sample_t *sample) {
    BEGIN_WITH(handle);
    if (!handle->gpu->gpm)
        return NOT_SUPPORTED;
    *sample = (gpm_sample_t){handle->gpu, now()};
    return SUCCESS;
}

EXPORT int nvmlGpmMigSampleGet(handle_t *handle, unsigned gpu_instance, gpm_sample_t *sample) {
    BEGIN_WITH(handle);
    if (!handle->gpu->gpm)
        return NOT_SUPPORTED;
    for (int i = 0; i < handle->gpu->instance_count; i++) {
        gpu_t *instance = handle->gpu->instances[i];
        if (instance->gpu_instance == gpu_instance) {
            *sample = (gpm_sample_t){instance, now()};
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

EXPORT int nvmlGpmMetricsGet(gpm_request_t *request) {
    BEGIN();
    const gpm_sample_t *before = request->before, *after = request->after;
    if (request->version != 1)
        return VERSION_MISMATCH;
    if (!before || !after || !before->gpu || before->gpu != after->gpu || after->time <= before->time)
        return INVALID_ARGUMENT;
    for (unsigned i = 0; i < request->count; i++) {
        gpm_metric_t *metric = &request->metrics[i];
        const series_t *series = metric->id < MAX_GPM ? &before->gpu->gpm_readings[metric->id] : NULL;
        metric->status = series && series->count ? SUCCESS : NOT_SUPPORTED;
        metric->value = metric->status ? 0 : mean(series, before->time, after->time, 0);
    }
    return SUCCESS;
}
