/* For the dynamic loader, which runs it wherever it is mapped: as a library, and as an auditor
   (rtld-audit(7)), where there is no other library yet. */
static void say(const char *text, long length) /* write(2) */
{
#if defined(__x86_64__)
	long call = 1;
	__asm__ volatile("syscall" : "+a"(call) : "D"(1L), "S"(text), "d"(length) : "rcx", "r11", "memory");
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = 64, x0 __asm__("x0") = 1, x2 __asm__("x2") = length;
	register const char *x1 __asm__("x1") = text;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
#endif
}

__attribute__((constructor)) static void loaded(void)
{
	say("ran\n", 4);
}

unsigned la_version(unsigned version)
{
	return version;
}
