/* Prints the native stack of a crash, below what Python prints of it. `first_minutes.py` loads it into every step. */

#include <execinfo.h>
#include <signal.h>
#include <unistd.h>

static char stack[1 << 16]; /* a handler needs one of its own where the usual one has overflowed */

static void show(int number) {
    static const char title[] = "Native stack (most recent call first):\n";
    void *frames[64];
    if (write(STDERR_FILENO, title, sizeof title - 1) > 0)
        backtrace_symbols_fd(frames, backtrace(frames, 64), STDERR_FILENO);
    signal(number, SIG_DFL);
    raise(number);
}

__attribute__((constructor)) static void install(void) {
    static const int numbers[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    stack_t own = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_handler = show, .sa_flags = SA_ONSTACK | SA_NODEFER};
    void *frame;
    backtrace(&frame, 1); /* its first call loads a library, which a handler must not */
    sigaltstack(&own, 0);
    for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; ++i)
        sigaction(numbers[i], &action, 0);
}
