/* Ways of changing a file that stay open: attacks WAY FILE; says "done" and waits to be killed. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <unistd.h>

static void need(int right, const char *what)
{
    if (!right) {
        perror(what);
        exit(1);
    }
}

static int writable(const char *path)
{
    int fd = open(path, O_RDWR);
    need(fd >= 0, path);
    return fd;
}

static void map(const char *path)
{
    int fd = writable(path);
    char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    need(page != MAP_FAILED, "mmap");
    close(fd);
    page[0] ^= 1;
}

static void by_path_descriptor(const char *path)
{
    char name[64];
    int at = open(path, O_PATH), fd;
    need(at >= 0, path);
    snprintf(name, sizeof name, "/proc/self/fd/%d", at);
    fd = writable(name);
    need(pwrite(fd, "opath", 5, 0) == 5, "pwrite");
}

static void by_handle(const char *path)
{
    struct { struct file_handle head; char bytes[128]; } space = { .head.handle_bytes = 128 };
    int mount, fd, at = open(path, O_RDONLY);
    need(at >= 0, path);
    need(!name_to_handle_at(AT_FDCWD, path, &space.head, &mount, 0), "name_to_handle_at");
    fd = open_by_handle_at(at, &space.head, O_WRONLY);
    need(fd >= 0, "open_by_handle_at");
    need(pwrite(fd, "handle", 6, 0) == 6, "pwrite");
}

static void by_ring(const char *path)
{
    struct io_uring_params params = { 0 };
    static char text[] = "uring";
    int ring = syscall(SYS_io_uring_setup, 1, &params), fd = writable(path);
    struct io_uring_sqe *entries;
    char *queue;
    need(ring >= 0, "io_uring_setup");
    queue = mmap(NULL, params.sq_off.array + 64, PROT_READ | PROT_WRITE, MAP_SHARED, ring,
                 IORING_OFF_SQ_RING);
    entries = mmap(NULL, sizeof *entries, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    need(queue != MAP_FAILED && entries != MAP_FAILED, "mmap");
    memset(entries, 0, sizeof *entries);
    entries->opcode = IORING_OP_WRITE;
    entries->fd = fd;
    entries->addr = (unsigned long)text;
    entries->len = 5;
    *(unsigned *)(queue + params.sq_off.array) = 0;
    __atomic_store_n((unsigned *)(queue + params.sq_off.tail), 1, __ATOMIC_RELEASE);
    need(syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1, "enter");
}

static void by_copy(const char *path)
{
    int from = open("/proc/self/exe", O_RDONLY), fd = writable(path);
    need(sendfile(fd, from, NULL, 100) == 100, "sendfile");
}

static void by_hole(const char *path)
{
    int fd = writable(path);
    need(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), "fallocate");
}

int main(int count, char **words)
{
    static const struct { const char *name; void (*way)(const char *); } ways[] = {
        { "map", map }, { "path-descriptor", by_path_descriptor }, { "handle", by_handle },
        { "ring", by_ring }, { "copy", by_copy }, { "hole", by_hole },
    };
    for (unsigned n = 0; count == 3 && n < sizeof ways / sizeof *ways; n++)
        if (!strcmp(words[1], ways[n].name)) {
            ways[n].way(words[2]);
            puts("done");
            fflush(stdout);
            for (;;)
                pause();
        }
    fprintf(stderr, "attacks WAY FILE\n");
    return 2;
}
