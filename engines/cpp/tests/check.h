// Checks that report where they failed and go on. main() returns exit_code().
#pragma once

#include <cstdio>
#include <string>

inline int failures = 0;

// What a test's main() returns. It is not the number of failures, of which the system keeps only eight bits.
inline int exit_code(int failed = failures) { return failed == 0 ? 0 : 1; }

#define CHECK(condition)                                                       \
  do {                                                                         \
    if (!(condition)) {                                                        \
      std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                              \
    }                                                                          \
  } while (false)

// Checks that a call throws an E whose message contains `part`.
template <typename E, typename Call>
void check_throws(Call call, const std::string &part, int line) {
  std::string found = "nothing was thrown";
  try {
    call();
  } catch (const E &e) {
    found = e.what();
    if (found.find(part) != std::string::npos) return;
  }
  std::fprintf(stderr, "line %d: expected \"%s\": %s\n", line, part.c_str(), found.c_str());
  ++failures;
}

#define CHECK_THROWS(E, call, part) check_throws<E>([&] { static_cast<void>(call); }, part, __LINE__)
