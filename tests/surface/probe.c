//! What a process can see of its own confinement, one fact a line: `key what value`. The test compares
//! the lines under attestrun with those under plain runc.
//!
//! `probe`: report; `probe wait`: be an init that does nothing. Static, so that it needs nothing of the
//! image. Calls are made with arguments that change nothing, whether they are allowed or not.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/// The name of what a call returned: `ok` or the error.
static const char *outcome(long ret) { return ret >= 0 ? "ok" : strerrorname_np(errno); }

/// A file's lines, each behind `key`; those that do not begin with one of `wanted` are left out.
static void lines(const char *key, const char *path, const char **wanted) {
    char line[8192];
    FILE *file = fopen(path, "r");
    if (!file) {
        printf("%s %s %s\n", key, path, strerrorname_np(errno));
        return;
    }
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        int take = !wanted;
        for (int i = 0; wanted && wanted[i]; i++) take |= !strncmp(line, wanted[i], strlen(wanted[i]));
        if (take) printf("%s %s\n", key, line);
    }
    // a read may be what is refused
    if (ferror(file)) printf("%s %s read: %s\n", key, path, strerrorname_np(errno));
    fclose(file);
}

static void status(void) {
    const char *wanted[] = {"Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff",
        "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Speculation", "THP_enabled", "CoreDumping", "Cpus_allowed_list",
        "Mems_allowed_list", "untag_mask", 0};
    lines("status", "/proc/self/status", wanted);
    for (int resource = 0; resource < 16; resource++) {
        struct rlimit limit = {0};
        getrlimit(resource, &limit);
        printf("rlimit %d %lld %lld\n", resource, (long long)limit.rlim_cur, (long long)limit.rlim_max);
    }
    const char *files[] = {"oom_score_adj", "uid_map", "gid_map", "setgroups", "projid_map", "loginuid", "cgroup", "attr/current",
        "attr/exec", "coredump_filter", "timens_offsets", "personality", "comm", 0};
    for (int i = 0; files[i]; i++) {
        char path[64], key[64];
        snprintf(path, sizeof path, "/proc/self/%s", files[i]);
        snprintf(key, sizeof key, "proc %s", files[i]);
        lines(key, path, 0);
    }
    for (char **entry = environ; *entry; entry++) printf("env %s\n", *entry);
    char path[PATH_MAX];
    printf("cwd %s\n", getcwd(path, sizeof path) ? path : strerrorname_np(errno));
    ssize_t len = readlink("/proc/self/exe", path, sizeof path - 1);
    printf("exe %.*s\n", (int)(len < 0 ? 0 : len), path);
    struct utsname name;
    uname(&name);
    printf("uts %s %s\n", name.nodename, name.domainname);
}

/// Attributes of the process that /proc does not tell.
static void attributes(void) {
    printf("attribute personality %#x\n", personality(0xffffffff));
    printf("attribute secure %ld\n", getauxval(AT_SECURE));
    const struct { const char *name; int option; } flags[] = {{"securebits", PR_GET_SECUREBITS}, {"dumpable", PR_GET_DUMPABLE},
        {"keepcaps", PR_GET_KEEPCAPS}, {"timerslack", PR_GET_TIMERSLACK}, {"thp_disable", PR_GET_THP_DISABLE},
        {"mce_kill", PR_MCE_KILL_GET}, {"io_flusher", PR_GET_IO_FLUSHER}};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        int ret = prctl(flags[i].option, 0, 0, 0, 0);
        ret < 0 ? printf("attribute %s %s\n", flags[i].name, outcome(ret)) : printf("attribute %s %d\n", flags[i].name, ret);
    }
    int value = -1;
    prctl(PR_GET_PDEATHSIG, &value);
    printf("attribute pdeathsig %d\n", value);
    prctl(PR_GET_CHILD_SUBREAPER, &value);
    printf("attribute subreaper %d\n", value);
    printf("attribute scheduler %d\n", sched_getscheduler(0));
    printf("attribute nice %d\n", getpriority(PRIO_PROCESS, 0));
    printf("attribute ioprio %ld\n", syscall(SYS_ioprio_get, 1, 0));
    printf("attribute leads session=%d group=%d\n", getsid(0) == getpid(), getpgrp() == getpid());
    printf("attribute parent %s\n", getppid() ? "seen" : "outside");
    int tty = open("/dev/tty", O_RDWR | O_CLOEXEC);
    printf("attribute tty %s foreground=%d\n", outcome(tty), tty >= 0 && tcgetpgrp(tty) == getpgrp());
    char ring[256] = "";
    long ret = syscall(SYS_keyctl, 6 /* KEYCTL_DESCRIBE */, -3 /* KEY_SPEC_SESSION_KEYRING */, ring, sizeof ring);
    printf("keyring session %s %s\n", outcome(ret), ret < 0 ? "" : ring);
    ret = syscall(SYS_keyctl, 0 /* KEYCTL_GET_KEYRING_ID */, -3, 0);
    printf("keyring serial %ld\n", ret);
}

static void namespaces(void) {
    const char *names[] = {"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[64], mine[64] = "", init[64] = "";
        snprintf(path, sizeof path, "/proc/self/ns/%s", names[i]);
        if (readlink(path, mine, sizeof mine - 1) < 0) strcpy(mine, strerrorname_np(errno));
        snprintf(path, sizeof path, "/proc/1/ns/%s", names[i]);
        const char *same = readlink(path, init, sizeof init - 1) < 0 ? strerrorname_np(errno) : strcmp(mine, init) ? "other" : "same";
        printf("namespace %s %s init: %s\n", names[i], mine, same);
    }
}

/// Fields of mountinfo without numbers that differ from run to run: root, point, options, propagation.
static void mounts(void) {
    char line[8192];
    FILE *file = fopen("/proc/self/mountinfo", "r");
    while (file && fgets(line, sizeof line, file)) {
        char *rest = line, *fields[64];
        int n = 0, dash = 0;
        for (char *f; n < 64 && (f = strsep(&rest, " \n")); n++) fields[n] = f;
        while (dash < n && strcmp(fields[dash], "-")) dash++;
        if (dash + 3 >= n) continue;
        printf("mount %s root=%s %s", fields[4], fields[3], fields[5]);
        for (int i = 6; i < dash; i++) printf(" %.*s", (int)strcspn(fields[i], ":"), fields[i]);
        printf(" - %s %s %s\n", fields[dash + 1], fields[dash + 2], fields[dash + 3]);
    }
}

static char letter(mode_t mode) {
    return S_ISDIR(mode) ? 'd' : S_ISLNK(mode) ? 'l' : S_ISCHR(mode) ? 'c' : S_ISBLK(mode) ? 'b' : S_ISFIFO(mode) ? 'p'
        : S_ISSOCK(mode) ? 's' : '-';
}

/// Each entry of a directory, two levels deep.
static void tree(const char *dir, int depth) {
    DIR *entries = opendir(dir);
    for (struct dirent *e; entries && (e = readdir(entries));) {
        char path[PATH_MAX], target[PATH_MAX] = "";
        struct stat st;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (lstat(path, &st)) continue;
        ssize_t len = readlink(path, target, sizeof target - 1);
        printf("dev %s %c%04o %d:%d %d:%d %s\n", path, letter(st.st_mode), st.st_mode & 07777, st.st_uid, st.st_gid,
            major(st.st_rdev), minor(st.st_rdev), len < 0 ? "" : target);
        if (S_ISDIR(st.st_mode) && depth) tree(path, depth - 1);
    }
    if (entries) closedir(entries);
}

static void descriptors(void) {
    for (int fd = 0; fd < 1024; fd++) {
        char path[64], target[PATH_MAX] = "";
        struct stat st;
        int flags = fcntl(fd, F_GETFL);
        if (flags < 0 || fstat(fd, &st)) continue;
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (readlink(path, target, sizeof target - 1) < 0) strcpy(target, "?");
        // where the standard streams lead is the caller's business
        printf("fd %d %c flags=%#o %s\n", fd, letter(st.st_mode), flags, fd > 2 ? target : "");
    }
}

/// Whether paths can be read and opened for writing; nothing is written.
static void paths(void) {
    const char *files[] = {"/", "/etc/layer2", "/etc/hosts", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug",
        "/proc/latency_stats", "/proc/sysrq-trigger", "/proc/sys/kernel/hostname", "/proc/sys/kernel/core_pattern", "/proc/irq/0",
        "/proc/bus", "/proc/fs", "/proc/acpi", "/proc/asound", "/proc/scsi", "/proc/1/environ", "/proc/1/root", "/proc/1/mem",
        "/sys/firmware", "/sys/kernel", "/sys/fs/cgroup", "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs",
        "/sys/fs/cgroup/systemd/tasks", "/sys/fs/cgroup/memory/tasks", "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/pids/pids.max", "/sys/fs/cgroup/devices/devices.allow", "/sys/fs/cgroup/pids.max", "/dev", "/dev/shm",
        "/dev/mqueue", "/dev/console", "/run", "/tmp", 0};
    for (int i = 0; files[i]; i++) {
        struct stat st;
        if (stat(files[i], &st)) {
            printf("path %s %s\n", files[i], strerrorname_np(errno));
            continue;
        }
        int in = open(files[i], O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
        const char *readable = outcome(in);
        // access(2) says EROFS too
        printf("path %s %c%04o %d:%d read=%s write=%s\n", files[i], letter(st.st_mode), st.st_mode & 07777, st.st_uid, st.st_gid,
            readable, outcome(faccessat(AT_FDCWD, files[i], W_OK, AT_EACCESS)));
        if (in >= 0) close(in);
    }
    const char *dirs[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", 0};
    for (int i = 0; dirs[i]; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/probe", dirs[i]);
        int ret = mkdir(path, 0755);
        printf("mkdir %s %s\n", path, outcome(ret));
        if (!ret) rmdir(path);
    }
}

/// Device nodes: whether they can be made, and opened.
static void devices(void) {
    const struct { mode_t kind; int major, minor; } nodes[] = {{S_IFCHR, 1, 1}, {S_IFCHR, 1, 3}, {S_IFCHR, 1, 5}, {S_IFCHR, 1, 11},
        {S_IFCHR, 5, 1}, {S_IFCHR, 5, 2}, {S_IFCHR, 10, 200}, {S_IFCHR, 10, 229}, {S_IFCHR, 10, 237}, {S_IFCHR, 136, 0},
        {S_IFCHR, 240, 1}, {S_IFBLK, 7, 0}, {S_IFBLK, 8, 0}, {S_IFBLK, 254, 0}};
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++) {
        const char *path = "/dev/probe-node";
        int made = mknod(path, nodes[i].kind | 0600, makedev(nodes[i].major, nodes[i].minor));
        printf("device %c %d:%d mknod=%s", letter(nodes[i].kind), nodes[i].major, nodes[i].minor, outcome(made));
        int modes[] = {O_RDONLY, O_WRONLY};
        for (int m = 0; !made && m < 2; m++) {
            int fd = open(path, modes[m] | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
            printf(" %s=%s", m ? "write" : "read", outcome(fd));
            if (fd >= 0) close(fd);
        }
        printf("\n");
        if (!made) unlink(path);
    }
}

/// One system call in a child of its own, which it may kill.
static void attempt(const char *name, long number, long a, long b, long c, long d, long e) {
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) {
        long ret = syscall(number, a, b, c, d, e, 0);
        printf("syscall %s %s\n", name, outcome(ret));
        fflush(stdout);
        _exit(0);
    }
    int how = 0;
    waitpid(pid, &how, 0);
    if (WIFSIGNALED(how)) printf("syscall %s signal %d\n", name, WTERMSIG(how));
}

static void system_calls(void) {
    attempt("9999", 9999, 0, 0, 0, 0, 0);
    attempt("9999-x32", 0x40000000 | 9999, 0, 0, 0, 0, 0);
    attempt("getpid-x32", 0x40000000 | SYS_getpid, 0, 0, 0, 0, 0);
    attempt("unshare-user", SYS_unshare, CLONE_NEWUSER, 0, 0, 0, 0);
    attempt("unshare-mount", SYS_unshare, CLONE_NEWNS, 0, 0, 0, 0);
    attempt("clone-user", SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    attempt("clone3", 435, 0, 0, 0, 0, 0);
    attempt("mount", SYS_mount, 0, 0, 0, 0, 0);
    attempt("umount", SYS_umount2, 0, 0, 0, 0, 0);
    attempt("pivot_root", SYS_pivot_root, 0, 0, 0, 0, 0);
    attempt("open_tree", 428, -1, 0, 0, 0, 0);
    attempt("mount_setattr", 442, -1, 0, 0, 0, 0);
    attempt("bpf", SYS_bpf, 99, 0, 0, 0, 0);
    attempt("perf_event_open", SYS_perf_event_open, 0, 0, 0, 0, 0);
    attempt("userfaultfd", SYS_userfaultfd, ~0, 0, 0, 0, 0);
    attempt("io_uring_setup", 425, 0, 0, 0, 0, 0);
    attempt("keyctl", SYS_keyctl, 99, 0, 0, 0, 0);
    attempt("add_key", SYS_add_key, 0, 0, 0, 0, 0);
    attempt("ptrace", SYS_ptrace, PTRACE_TRACEME, 0, 0, 0, 0);
    attempt("process_vm_readv", SYS_process_vm_readv, 1, 0, 0, 0, 0);
    attempt("kcmp", SYS_kcmp, 1, 1, 99, 0, 0);
    attempt("reboot", SYS_reboot, 0, 0, 0, 0, 0);
    attempt("swapon", SYS_swapon, 0, 0, 0, 0, 0);
    attempt("init_module", SYS_init_module, 0, 0, 0, 0, 0);
    attempt("kexec_load", SYS_kexec_load, 0, 99, 0, 0, 0);
    attempt("iopl", SYS_iopl, 4, 0, 0, 0, 0);
    attempt("settimeofday", SYS_settimeofday, 1, 1, 0, 0, 0);
    attempt("clock_adjtime", SYS_clock_adjtime, 99, 0, 0, 0, 0);
    attempt("sethostname", SYS_sethostname, 0, -1, 0, 0, 0);
    attempt("setns", SYS_setns, -1, 0, 0, 0, 0);
    attempt("chroot", SYS_chroot, 0, 0, 0, 0, 0);
    attempt("quotactl", SYS_quotactl, -1, 0, 0, 0, 0);
    attempt("acct", SYS_acct, 1, 0, 0, 0, 0);
    attempt("syslog", SYS_syslog, 10, 0, 0, 0, 0);
    attempt("open_by_handle_at", SYS_open_by_handle_at, -1, 0, 0, 0, 0);
    attempt("fanotify_init", SYS_fanotify_init, ~0, 0, 0, 0, 0);
    attempt("personality-linux32", SYS_personality, 8, 0, 0, 0, 0);
    attempt("personality-norandomize", SYS_personality, 0x40000, 0, 0, 0, 0);
    attempt("socket-vsock", SYS_socket, AF_VSOCK, SOCK_STREAM, 0, 0, 0);
    attempt("socket-raw", SYS_socket, AF_INET, SOCK_RAW, 1, 0, 0);
    attempt("socket-packet", SYS_socket, AF_PACKET, SOCK_RAW, 0, 0, 0);
    attempt("setuid-1000", SYS_setuid, 1000, 0, 0, 0, 0);
    attempt("capset", SYS_capset, 0, 0, 0, 0, 0);
    attempt("seccomp", SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, 0, 0, 0);
    attempt("nice", SYS_setpriority, 0, 0, -5, 0, 0);
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "wait"))
        for (;;) pause();
    setvbuf(stdout, 0, _IOFBF, 1 << 16);
    for (int i = 0; i < argc; i++) printf("argv %d %s\n", i, argv[i]);
    descriptors(); // first: the others open some
    status();
    attributes();
    namespaces();
    mounts();
    tree("/dev", 1);
    paths();
    devices();
    const char *sysctls[] = {"net/ipv4/ping_group_range", "net/ipv4/ip_unprivileged_port_start", "kernel/msgmax",
        "kernel/shm_rmid_forced", "kernel/domainname", 0};
    for (int i = 0; sysctls[i]; i++) {
        char path[128];
        snprintf(path, sizeof path, "/proc/sys/%s", sysctls[i]);
        lines(path, path, 0);
    }
    system_calls();
    fflush(stdout);
    return 0;
}
