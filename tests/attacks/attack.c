/* attack WAY TARGET SECONDS: tries to have code run that no list names, in one way; a listed program itself.
   Whoever gets it to run prints "ran"; so does this one itself without arguments. Built static by the test. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;
static char *words[] = {"echo", "ran", 0};

static int no(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	return 1;
}

static int copy(const char *from, int to)
{
	char page[65536];
	int in = open(from, O_RDONLY);
	ssize_t n;
	while ((n = read(in, page, sizeof page)) > 0)
		if (write(to, page, n) != n)
			return -1;
	close(in);
	return n;
}

static int copied(const char *from, const char *to)
{
	int out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0755);
	if (out < 0 || copy(from, out))
		return no(to);
	close(out);
	execve(to, words, environ);
	return no("execve");
}

/* b8 2a 00 00 00 c3: mov eax, 42; ret */
static const unsigned char code[] = {0xb8, 42, 0, 0, 0, 0xc3};

static int called(void *code)
{
	if (code != MAP_FAILED && ((int (*)(void))code)() == 42)
		return puts("ran"), 0;
	return no("mmap");
}

static void *spawned(void *target)
{
	pid_t child;
	errno = posix_spawn(&child, target, 0, 0, words, environ);
	if (!errno)
		waitpid(child, 0, 0);
	else
		no("posix_spawn");
	return 0;
}

static int ran(const char *path)
{
	char *quiet[] = {"true", 0};
	pid_t child;
	if ((errno = posix_spawn(&child, path, 0, 0, quiet, environ)))
		return no(path);
	waitpid(child, 0, 0);
	return 0;
}

static void own_namespaces(void)
{
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS))
		exit(no("unshare"));
}

static void told(const char *path, const char *text)
{
	int file = open(path, O_WRONLY);
	if (write(file, text, strlen(text)) < 0)
		exit(no(path));
	close(file);
}

/* Without them an owner has no number on a file system of the namespace's own; not for root, who would need
   CAP_SETFCAP. */
static void own_numbers(unsigned uid, unsigned gid)
{
	char line[32];
	snprintf(line, sizeof line, "0 %u 1", uid);
	told("/proc/self/uid_map", line);
	told("/proc/self/setgroups", "deny");
	snprintf(line, sizeof line, "0 %u 1", gid);
	told("/proc/self/gid_map", line);
}

/* A descriptor of the file that a ring opened. */
static int opened_by_ring(const char *path)
{
	struct io_uring_params about = {0};
	int ring = syscall(SYS_io_uring_setup, 1, &about);
	if (ring < 0)
		return ring;
	size_t size = about.cq_off.cqes + about.cq_entries * sizeof(struct io_uring_cqe);
	size_t other = about.sq_off.array + about.sq_entries * sizeof(unsigned);
	char *rings = mmap(0, size > other ? size : other, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			   ring, IORING_OFF_SQ_RING);
	struct io_uring_sqe *wish = mmap(0, sizeof *wish, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
					 ring, IORING_OFF_SQES);
	if (rings == MAP_FAILED || wish == MAP_FAILED)
		return -1;
	*wish = (struct io_uring_sqe){ .opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .addr = (unsigned long)path,
				       .open_flags = O_RDONLY };
	*(unsigned *)(rings + about.sq_off.array) = 0;
	__atomic_store_n((unsigned *)(rings + about.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0)
		return -1;
	return ((struct io_uring_cqe *)(rings + about.cq_off.cqes))->res;
}

/* A child that waits, with what it has opened or unshared; it writes to the pipe when it has. */
static pid_t waiting(void (*prepare)(void))
{
	int ready[2];
	char byte = 0;
	pipe(ready);
	pid_t child = fork();
	if (!child) {
		prepare();
		write(ready[1], &byte, 1);
		pause();
	}
	read(ready[0], &byte, 1);
	return child;
}

static const char *wanted;
enum { LENT = 99 };

static void lend(void)
{
	dup2(open(wanted, O_PATH), LENT);
}

static void bind_elsewhere(void)
{
	own_namespaces();
	if (mount("/usr/local", "/opt", 0, MS_BIND, 0))
		exit(no("mount"));
}

static void enter(pid_t process, const char *kind, int type)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/ns/%s", process, kind);
	if (setns(open(path, O_RDONLY), type))
		exit(no(path));
}

static volatile int over;

/* Now the one, now the other has the name. */
static void *swap(void *unused)
{
	while (!over) {
		link("/root/good", "/root/next");
		rename("/root/next", "/root/swapped");
		link("/root/bad", "/root/next");
		rename("/root/next", "/root/swapped");
	}
	return 0;
}

static void *rewrite(void *target)
{
	while (!over)
		for (int i = 0; i < 2; i++) {
			int out = open("/root/rewritten", O_WRONLY | O_TRUNC);
			copy(i ? "/root/bad" : "/root/good", out);
			close(out);
		}
	return 0;
}

static int file(const char *path, const char *content, const char *end)
{
	int out = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0755);
	if (out < 0 || copy(content, out) || write(out, end, strlen(end)) < 0)
		return no(path);
	return close(out);
}

int main(int argc, char **argv)
{
	setbuf(stdout, 0);
	if (argc == 1)
		return puts("ran"), 0;
	if (argc != 4)
		return 2;
	const char *way = argv[1], *target = argv[2];
#define WAY(name) if (!strcmp(way, name))
	WAY("execve") {
		execve(target, words, environ);
		return no("execve");
	}
	WAY("execveat") {
		syscall(SYS_execveat, open(target, O_PATH), "", words, environ, AT_EMPTY_PATH);
		return no("execveat");
	}
	WAY("fexecve") {
		fexecve(open(target, O_RDONLY), words, environ);
		return no("fexecve");
	}
	WAY("vfork") {
		if (!vfork()) {
			execve(target, words, environ);
			_exit(errno);
		}
		int status;
		wait(&status);
		return WEXITSTATUS(status);
	}
	WAY("thread") {
		pthread_t threads[8];
		for (int i = 0; i < 8; i++)
			pthread_create(&threads[i], 0, spawned, (void *)target);
		for (int i = 0; i < 8; i++)
			pthread_join(threads[i], 0);
		return 0;
	}
	WAY("hardlink") {
		if (link(target, "/root/echo"))
			return no("link");
		execve("/root/echo", words, environ);
		return no("execve");
	}
	WAY("symlink") {
		if (symlink(target, "/root/sym"))
			return no("symlink");
		execve("/root/sym", words, environ);
		return no("execve");
	}
	WAY("copy") return copied(target, "/root/echo");
	WAY("tmpfs") return copied(target, "/dev/echo");
	WAY("volume") return copied(target, "/data/echo");
	WAY("deleted") {
		int out = open("/root/gone", O_WRONLY | O_CREAT, 0755);
		copy(target, out);
		int in = open("/root/gone", O_PATH);
		close(out);
		unlink("/root/gone");
		syscall(SYS_execveat, in, "", words, environ, AT_EMPTY_PATH);
		return no("execveat");
	}
	WAY("proc") {
		char path[64];
		snprintf(path, sizeof path, "/proc/self/fd/%d", open(target, O_RDONLY));
		execve(path, words, environ);
		return no("execve");
	}
	WAY("io-uring") {
		fexecve(opened_by_ring(target), words, environ);
		return no("fexecve");
	}
	WAY("pidfd") { /* a descriptor of another process */
		wanted = target;
		pid_t child = waiting(lend);
		int lent = syscall(SYS_pidfd_getfd, syscall(SYS_pidfd_open, child, 0), LENT, 0);
		syscall(SYS_execveat, lent, "", words, environ, AT_EMPTY_PATH);
		no("execveat");
		return kill(child, SIGKILL), 1;
	}
	WAY("sibling") { /* the mount namespace of another process */
		pid_t child = waiting(bind_elsewhere);
		enter(child, "user", CLONE_NEWUSER);
		enter(child, "mnt", CLONE_NEWNS);
		kill(child, SIGKILL);
		execve("/opt/bin/echo", words, environ);
		return no("execve");
	}
	WAY("chroot") {
		if (chroot("/usr/local"))
			return no("chroot");
		execve("/bin/echo", words, environ);
		return no("execve");
	}
	WAY("pivot-root") {
		own_namespaces();
		if (mount("/usr/local", "/usr/local", 0, MS_BIND, 0) || chdir("/usr/local"))
			return no("mount");
		if (syscall(SYS_pivot_root, ".", ".") || chdir("/"))
			return no("pivot_root");
		execve("/bin/echo", words, environ);
		return no("execve");
	}
	WAY("race") { /* replaced and overwritten by two threads while it is executed */
		char *quiet[] = {"true", 0};
		pthread_t threads[2];
		pid_t child;
		int good = 0;
		if (file("/root/good", "/bin/busybox", "") || file("/root/bad", "/opt/attack", "!")
		    || file("/root/swapped", "/bin/busybox", "") || file("/root/rewritten", "/bin/busybox", ""))
			return 1;
		pthread_create(&threads[0], 0, swap, 0);
		pthread_create(&threads[1], 0, rewrite, 0);
		for (time_t end = time(0) + atoi(argv[3]); time(0) < end;)
			for (int i = 0; i < 2; i++)
				if (!posix_spawn(&child, i ? "/root/swapped" : "/root/rewritten", 0, 0, quiet, environ)) {
					waitpid(child, 0, 0);
					good++;
				}
		over = 1;
		for (int i = 0; i < 2; i++)
			pthread_join(threads[i], 0);
		printf("%d executions\n", good);
		return good == 0;
	}
	WAY("preload") {
		char *const with[] = {"LD_PRELOAD=/root/library.so", 0};
		if (file("/root/library.so", "/opt/library.so", "!"))
			return 1;
		execve("/opt/dynamic", words, with);
		return no("execve");
	}
	WAY("audit") {
		char *const with[] = {"LD_AUDIT=/root/audit.so", 0};
		if (file("/root/audit.so", "/opt/library.so", "!"))
			return 1;
		execve("/opt/dynamic", words, with);
		return no("execve");
	}
	WAY("script") {
		FILE *script = fopen("/root/script", "w");
		fprintf(script, "#!/bin/sh\necho ran\n");
		fclose(script);
		chmod("/root/script", 0755);
		execve("/root/script", words, environ);
		return no("execve");
	}
	WAY("interpreter") {
		FILE *script = fopen("/root/script", "w");
		fprintf(script, "#!%s ran\n", target);
		fclose(script);
		chmod("/root/script", 0755);
		execve("/root/script", words, environ);
		return no("execve");
	}
	WAY("loader") { /* a listed program whose ELF interpreter is not listed */
		int out = open("/dev/loader", O_WRONLY | O_CREAT, 0755);
		copy(target, out);
		close(out);
		execve("/opt/strange-loader", words, environ);
		return no("execve");
	}
	WAY("namespace") { /* its own mounts of the same file system */
		own_namespaces();
		if (mount("/usr/local", "/opt", 0, MS_BIND, 0))
			return no("mount");
		execve("/opt/bin/echo", words, environ);
		return no("execve");
	}
	WAY("overlay") { /* an overlay of its own over the container's files */
		own_namespaces();
		if (mount("none", "/opt", "overlay", 0, "lowerdir=/usr/local:/etc,userxattr"))
			return no("mount");
		execve("/opt/bin/echo", words, environ);
		return no("execve");
	}
	WAY("new-tmpfs") {
		unsigned uid = getuid(), gid = getgid();
		own_namespaces();
		own_numbers(uid, gid);
		if (mount("none", "/opt", "tmpfs", 0, 0))
			return no("mount");
		return copied(target, "/opt/echo");
	}
	WAY("volume-namespace") {
		int out = open("/data/echo", O_WRONLY | O_CREAT | O_TRUNC, 0755);
		copy(target, out);
		close(out);
		own_namespaces();
		execve("/data/echo", words, environ);
		return no("execve");
	}
	WAY("rewritten") { /* run, overwritten in place, run again */
		int out = open("/root/twice", O_RDWR | O_CREAT, 0755);
		copy("/bin/busybox", out);
		close(out);
		ran("/root/twice");
		return copied(target, "/root/twice");
	}
	WAY("later-mapping") { /* run, changed through a mapping made and closed since, run again */
		struct stat stat;
		int out = open("/root/later", O_RDWR | O_CREAT | O_TRUNC, 0755);
		copy("/bin/busybox", out);
		close(out);
		if (ran("/root/later"))
			return 1;
		usleep(300000); /* nobody holds it any more */
		out = open("/root/later", O_RDWR);
		fstat(out, &stat);
		char *page = mmap(0, stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, out, 0);
		page[stat.st_size - 1] ^= 1; /* another content, which runs all the same */
		munmap(page, stat.st_size);
		close(out);
		execve("/root/later", words, environ);
		return no("execve");
	}
	WAY("shared-mapping") { /* run, overwritten through a mapping that was there before, run again */
		struct stat stat;
		int out = open("/root/mapped", O_RDWR | O_CREAT | O_TRUNC, 0755);
		copy("/bin/busybox", out);
		int in = open(target, O_RDONLY);
		fstat(in, &stat);
		ftruncate(out, stat.st_size - 18); /* what the unlisted one has more */
		char *page = mmap(0, stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, out, 0);
		close(out);
		if (ran("/root/mapped"))
			return 1;
		page[stat.st_size - 19] ^= 1; /* its last byte: another content, which runs all the same */
		execve("/root/mapped", words, environ);
		return no("execve");
	}
	WAY("image-written") { /* a listed program of the image, which nobody had touched */
		struct stat stat;
		char byte;
		if (ran("/opt/written") || ran("/opt/written"))
			return 1;
		int out = open("/opt/written", O_RDWR);
		fstat(out, &stat);
		pread(out, &byte, 1, stat.st_size - 1);
		byte ^= 1; /* another content, which runs all the same */
		if (pwrite(out, &byte, 1, stat.st_size - 1) != 1)
			return no("pwrite");
		close(out);
		execve("/opt/written", words, environ);
		return no("execve");
	}
	WAY("image-mapped") { /* the same, changed through a mapping that was there when it ran again */
		struct stat stat;
		if (ran("/opt/mapped"))
			return 1;
		int out = open("/opt/mapped", O_RDWR);
		fstat(out, &stat);
		char *page = mmap(0, stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, out, 0);
		*(volatile char *)(page + stat.st_size - 1) ^= 0; /* no later store moves the time of change */
		close(out);
		if (ran("/opt/mapped"))
			return 1;
		page[stat.st_size - 1] ^= 1;
		execve("/opt/mapped", words, environ);
		return no("execve");
	}
	WAY("memfd") {
		int memory = memfd_create("echo", 0);
		copy(target, memory);
		fexecve(memory, words, environ);
		return no("fexecve");
	}
	WAY("library") { /* as the dynamic loader maps one */
		int out = open("/root/library", O_WRONLY | O_CREAT, 0755);
		write(out, code, sizeof code);
		close(out);
		return called(mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, open("/root/library", O_RDONLY), 0));
	}
	WAY("own-mapping") { /* written and mapped by one descriptor */
		int both = open("/root/both", O_RDWR | O_CREAT, 0755);
		write(both, code, sizeof code);
		return called(mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, both, 0));
	}
	WAY("anonymous") {
		void *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		memcpy(page, code, sizeof code);
		if (mprotect(page, 4096, PROT_READ | PROT_EXEC))
			return no("mprotect");
		return called(page);
	}
	WAY("read-by-shell") {
		char *shell[] = {"sh", "-c", "echo 'echo ran' > /root/read; exec sh /root/read", 0};
		execve("/bin/sh", shell, environ);
		return no("execve");
	}
	return 2;
}
